"""Layout, identity and publication of a scoring run.

    results_uri/published.json                 ids of the published run and of those before it
    results_uri/runs/RUN_ID/manifest.parquet   objects to score
    results_uri/runs/RUN_ID/scores/*.parquet   the score table, part by part
    results_uri/runs/RUN_ID/heatmaps/*.png     heatmaps of flagged images
    results_uri/runs/RUN_ID/checkpoint/        keys of the rows that are safely written; deleted on completion
    results_uri/runs/RUN_ID/quarantine.*       objects without a score
    results_uri/runs/RUN_ID/report.html        report page; results_uri/index.html links to it
    results_uri/runs/RUN_ID/run.json           written last: a run without it is not complete
    results_uri/runs/RUN_ID/retired.json       run.json of a run whose rows and pictures retention has deleted

Results are invisible until a run is reconciled with its manifest and published by one conditional write.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from steelray.config import ConfigError, JobFailed, require
from steelray.description import dump, parse
from steelray.runs.record import RunRecord
from steelray.schema import SCORES, Status
from steelray.storage.location import Location, ObjectMissing

READERS = 8
"""Threads that read score files."""
POINTER, RUNS = "published.json", "runs"
MANIFEST_FILE, SCORES_DIR, CHECKPOINT_DIR = "manifest.parquet", "scores", "checkpoint"
REPORT_FILE, RECORD_FILE, RETIRED_FILE = "report.html", "run.json", "retired.json"
PARQUET, PENDING = ".parquet", ".pending.parquet"
"""Suffixes of Ray Data's checkpoints: of rows that are written, and of rows that may not be."""


class IncompleteRun(JobFailed):
    """Raised if the score table does not have one row per manifest entry; running again continues the run."""


def run_id_of(manifest: pa.Table, **identity: Any) -> str:
    """Return a digest of the manifest and of everything else that scores depend on, so that equal runs have equal ids.

    Args:
        identity: model and bank ids, thresholds, decoding limits; JSON-able.
    """
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode())
    for batch in manifest.select(["image_key", "etag", "size_bytes"]).to_batches(max_chunksize=65_536):
        for column in batch.columns:
            digest.update("\0".join(map(str, column.to_pylist())).encode())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Run:
    """Folder of one run."""

    results_uri: str
    run_id: str

    @cached_property
    def location(self) -> Location:
        return Location(f"{self.results_uri.rstrip('/')}/{RUNS}/{self.run_id}")

    def record(self) -> RunRecord | None:
        """Read run.json; None if the run is not complete."""
        return self._record(RECORD_FILE)

    def retired_record(self) -> RunRecord | None:
        """Read run.json of a retired run; None if the run is not retired."""
        return self._record(RETIRED_FILE)

    def _record(self, name: str) -> RunRecord | None:
        try:
            body = self.location.read(name)
        except ObjectMissing:
            return None
        return parse(RunRecord, body, f"{self.location}/{name}", "restore the file, or delete the run's folder")

    def write_manifest(self, manifest: pa.Table) -> None:
        """Write the manifest of the objects to score. A retired run that is scored again is no longer retired."""
        self.location.delete(RETIRED_FILE)
        sink = pa.BufferOutputStream()
        pq.write_table(manifest, sink)
        self.location.write(MANIFEST_FILE, sink.getvalue().to_pybytes())

    def manifest(self) -> pa.Table:
        """Read the objects to score, schema `MANIFEST`."""
        return pq.read_table(pa.BufferReader(self.location.read(MANIFEST_FILE)))

    def settle(self) -> int:
        """Clean up after killed attempts: keep each safely written row once. Return the number of deleted parts.

        A part is the output of one writing task: score files PART-*.parquet and checkpoint/PART.parquet, which holds
        their keys and is renamed from PART.pending.parquet when they are complete. A part is deleted if it was never
        completed, if its files do not hold the expected keys, or if another part holds one of its keys, which happens
        if an attempt that seemed dead has continued to write.
        """
        checkpoints = self.location / CHECKPOINT_DIR
        names = {stored.key for stored in checkpoints.list()}
        committed = {name.removesuffix(PARQUET) for name in names if not name.endswith(PENDING)}
        for name in names:
            if name.endswith(PENDING):  # its part may be complete nevertheless, because S3 renames by copying
                checkpoints.delete(name)
        files: dict[str, list[str]] = {part: [] for part in committed}
        for stored in (self.location / SCORES_DIR).list():
            files.setdefault(stored.key.rpartition("-")[0], []).append(stored.key)
        kept = SCORES.empty_table().column("image_key")
        num_discarded = 0
        for part, written in sorted(files.items()):
            keys = self._whole_part(part, written) if part in committed else None
            if keys is not None and not pc.any(pc.is_in(keys, value_set=kept.combine_chunks())).as_py():
                kept = pa.chunked_array([*kept.chunks, *keys.chunks], pa.string())
                continue
            num_discarded += 1
            checkpoints.delete(f"{part}{PARQUET}")  # first, because a part without it does not count as written
            for name in written:
                self.location.delete(f"{SCORES_DIR}/{name}")
        return num_discarded

    def _whole_part(self, part: str, written: Sequence[str]) -> pa.ChunkedArray | None:
        """Read the keys of a part; None if its files are damaged or do not hold those of its checkpoint."""
        try:
            keys = self._keys(SCORES_DIR, written)
            expected = self._keys(CHECKPOINT_DIR, [f"{part}{PARQUET}"])
        except (pa.ArrowInvalid, ObjectMissing):
            return None
        return keys if keys.combine_chunks().sort().equals(expected.combine_chunks().sort()) else None

    def remaining(self, manifest: pa.Table) -> pa.Table:
        """Return the manifest's rows that are not safely written yet. Call `settle` first."""
        names = [stored.key for stored in (self.location / CHECKPOINT_DIR).list()]
        done = self._keys(CHECKPOINT_DIR, names).combine_chunks()
        return manifest.filter(pc.invert(pc.is_in(manifest.column("image_key"), value_set=done)))

    def _keys(self, folder: str, names: Sequence[str]) -> pa.ChunkedArray:
        schema = pa.schema([SCORES.field("image_key")])
        return self._read(folder, names, schema, None).column("image_key")

    def scores(self, columns: list[str] | None = None) -> pa.Table:
        """Read the score table, or some of its columns, sorted by key."""
        names = [stored.key for stored in (self.location / SCORES_DIR).list()]
        return self._read(SCORES_DIR, names, SCORES, columns).sort_by("image_key")

    def write_table(self, path: Path) -> None:
        """Write the whole score table as one local Parquet file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(self.scores(), path)

    def _read(self, folder: str, names: Sequence[str], schema: pa.Schema, columns: list[str] | None) -> pa.Table:
        """Read Parquet files as one table and verify their checksums, which Arrow's own S3 reader does not do."""
        location = self.location / folder
        columns = columns or schema.names

        def read(name: str) -> pa.Table:
            body = pa.BufferReader(location.read(name))
            try:
                return pq.read_table(body, schema=schema, columns=columns, page_checksum_verification=True)
            except OSError as error:  # Arrow's error for damaged pages
                raise pa.ArrowInvalid(f"{folder}/{name}: {error}") from None

        with ThreadPoolExecutor(READERS) as pool:
            tables = list(pool.map(read, [name for name in sorted(names) if name.endswith(PARQUET)]))
        return pa.concat_tables([pa.schema([schema.field(name) for name in columns]).empty_table(), *tables])

    def reconcile(self, manifest: pa.Table) -> dict[str, int]:
        """Check that there is exactly one row per manifest entry.

        Returns:
            Counts: `listed`, one per status that occurs, and `flagged`.

        Raises:
            IncompleteRun: rows are missing, duplicate, or of objects that were not listed.
        """
        table = self.scores(["image_key", "status", "is_anomalous"])
        listed, scored = manifest.column("image_key"), table.column("image_key")
        if not listed.combine_chunks().equals(scored.combine_chunks()):
            distinct = pc.count_distinct(scored).as_py()
            found = pc.sum(pc.is_in(listed, value_set=scored.combine_chunks())).as_py() or 0
            raise IncompleteRun(
                f"run {self.run_id}: {len(listed)} objects listed, {len(scored)} rows written, {distinct} of them "
                f"distinct, {len(listed) - found} objects without a row: run the same command again"
            )
        counts = {"listed": len(listed)}
        statuses = table.column("status").value_counts().to_pylist()
        counts.update({entry["values"]: entry["counts"] for entry in sorted(statuses, key=lambda e: -e["counts"])})
        counts["flagged"] = pc.sum(table.column("is_anomalous")).as_py() or 0
        assert sum(counts[status] for status in Status if status in counts) == counts["listed"]
        return counts

    def finish(self, record: bytes) -> None:
        """Mark the run as complete."""
        self.location.write(RECORD_FILE, record)
        (self.location / CHECKPOINT_DIR).delete_all()


@dataclass(frozen=True)
class Pointer:
    """Contents of published.json."""

    run_id: str
    run_ids: tuple[str, ...]
    retired_run_ids: tuple[str, ...] = ()
    published_at: str = ""
    format_version: Literal[1] = 1

    def __post_init__(self) -> None:
        require(self.run_ids[:1] == (self.run_id,), "run_id is not the first of run_ids")


@dataclass(frozen=True)
class Published:
    """State of published.json: the published run and those before it, newest first."""

    run_ids: tuple[str, ...]
    retired_ids: tuple[str, ...]
    """Runs that were published and have been retired since."""
    etag: str | None
    """ETag of published.json when it was read; None if there is none yet."""

    @property
    def current(self) -> str | None:
        return self.run_ids[0] if self.run_ids else None


def read_published(results_uri: str) -> Published:
    """Read the ids of the published run and of those before it."""
    location = Location(results_uri)
    etag = location.etag(POINTER)
    if etag is None:
        return Published((), (), None)
    pointer = parse(Pointer, location.read(POINTER), f"{location}/{POINTER}", "restore the file")
    return Published(pointer.run_ids, pointer.retired_run_ids, etag)


def move_pointer(results_uri: str, before: Published, run_ids: Sequence[str], retired_ids: Sequence[str]) -> None:
    """Replace published.json as read before. Raise `ObjectChanged` if it has changed since."""
    retired = tuple(run_id for run_id in retired_ids if run_id not in run_ids)
    pointer = Pointer(run_ids[0], tuple(run_ids), retired, datetime.now(UTC).isoformat(timespec="seconds"))
    Location(results_uri).write_if(POINTER, dump(pointer), before.etag)


def publish(run: Run) -> bool:
    """Publish a complete run. Return False if it is the published one already.

    Raises:
        ObjectChanged: another run is being published at the same time.
    """
    before = read_published(run.results_uri)
    if before.current == run.run_id:
        return False
    earlier = [run_id for run_id in before.run_ids if run_id != run.run_id]
    move_pointer(run.results_uri, before, [run.run_id, *earlier], before.retired_ids)
    return True


def roll_back(results_uri: str) -> str:
    """Publish the previous run again and return its id. Raise `ConfigError` if there is none."""
    before = read_published(results_uri)
    if len(before.run_ids) < 2:
        raise ConfigError(f"{results_uri}: there is no earlier published run to go back to")
    move_pointer(results_uri, before, before.run_ids[1:], before.retired_ids)
    return before.run_ids[1]


def published_runs(results_uri: str) -> Iterator[tuple[Run, RunRecord]]:
    """Yield published runs with their records, newest first, without retired ones."""
    for run_id in read_published(results_uri).run_ids:
        run = Run(results_uri, run_id)
        record = run.record()
        if record is not None:
            yield run, record
