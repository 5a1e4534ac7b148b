"""Incremental runs: which objects of an archive no earlier published run has scored with the same model."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from steelray.models.model import Model
from steelray.runs.config import ScoreArchiveConfig
from steelray.runs.quarantine import PASSING, read_quarantine
from steelray.runs.record import RunRecord
from steelray.runs.run import Run, read_published
from steelray.schema import MANIFEST


def leave_out_scored(manifest: pa.Table, config: ScoreArchiveConfig, model: Model) -> tuple[pa.Table, int]:
    """Return the objects of a manifest that are still to be scored, and the number of those left out.

    An object counts as scored if a published run, even one retired since, scored the same key of the same archive with
    the same ETag, model, bank and decoding. Objects that were missing, denied or changed are tried again.
    """
    settled = [_identities(_settled(run)) for run in _earlier_runs(config, model)]
    if not settled:
        return manifest, 0
    known = pc.is_in(_identities(manifest), value_set=pa.concat_arrays(settled))
    rest = manifest.filter(pc.invert(known)).set_column(
        0, MANIFEST.field(0), pa.array(range(pc.sum(pc.invert(known)).as_py() or 0), pa.int64())
    )
    return rest, manifest.num_rows - rest.num_rows


def _earlier_runs(config: ScoreArchiveConfig, model: Model) -> Iterator[Run]:
    published = read_published(config.results_uri)
    for run_id in (*published.run_ids, *published.retired_ids):
        run = Run(config.results_uri, run_id)
        record = run.record() or run.retired_record()
        if record is not None and _same_work(record, config, model):
            yield run


def _same_work(record: RunRecord, config: ScoreArchiveConfig, model: Model) -> bool:
    before = record.config
    return record.is_of(model) and (before.archive.uri, before.decode) == (config.archive.uri, config.decode)


def _settled(run: Run) -> pa.Table:
    """Return a run's manifest without the objects whose status may be another one next time."""
    manifest, quarantine = run.manifest(), read_quarantine(run.location)
    passing = quarantine.filter(
        pc.is_in(quarantine["status"], value_set=pa.array([status.value for status in PASSING]))
    )
    return manifest.filter(pc.invert(pc.is_in(manifest["image_key"], value_set=passing["image_key"].combine_chunks())))


def _identities(table: pa.Table) -> pa.Array:
    """Join key and ETag of every row to one string."""
    joined = pc.binary_join_element_wise(table["image_key"], table["etag"], "\0")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined
