"""A run's folder from its first part to publication, locally and on a real S3 server."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steelray.config import ConfigError
from steelray.description import dump
from steelray.runs.run import IncompleteRun, Run, publish, published_runs, read_published, roll_back, run_id_of
from steelray.schema import MANIFEST, SCORES
from steelray.storage.location import Location
from tests.plant import some_record

KEYS = [f"{index:02d}.jpg" for index in range(12)]


def manifest_of(keys: Sequence[str]) -> pa.Table:
    entry = {"etag": "e", "size_bytes": 1, "last_modified": datetime(2026, 1, 1, tzinfo=UTC)}
    return pa.Table.from_pylist(
        [{"image_index": place, "image_key": key, **entry} for place, key in enumerate(keys)], MANIFEST
    )


def rows_of(keys: Sequence[str]) -> pa.Table:
    row = {"etag": "e", "size_bytes": 1, "status": "ok", "model_id": "m", "run_id": "r", "is_anomalous": False}
    now = datetime.now(UTC)
    return pa.Table.from_pylist([{"image_key": key, "scored_at": now, **row} for key in keys], SCORES)


def put(run: Run, name: str, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True, compression="none")
    run.location.write(name, sink.getvalue().to_pybytes())


def put_part(run: Run, part: str, keys: Sequence[str], *, committed: bool = True) -> None:
    """Write the files of one writing task."""
    put(run, f"scores/{part}-0.parquet", rows_of(keys))
    put(run, f"checkpoint/{part}{'' if committed else '.pending'}.parquet", rows_of(keys).select(["image_key"]))


@pytest.fixture(params=["folder", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    uri = str(tmp_path / "results") if request.param == "folder" else request.getfixturevalue("s3_uri")
    return Run(uri, "0123456789abcdef")


def names(run: Run) -> list[str]:
    return sorted(stored.key for stored in run.location.list())


def remaining(run: Run) -> list[str]:
    return run.remaining(manifest_of(KEYS)).column("image_key").to_pylist()


class TestSettlingAfterAKilledAttempt:
    def test_nothing_has_been_written(self, run: Run) -> None:
        assert run.settle() == 0
        assert remaining(run) == KEYS

    def test_complete_parts_stay_and_begun_ones_go(self, run: Run) -> None:
        put_part(run, "u_000000", KEYS[:4])
        put_part(run, "u_000001", KEYS[4:7], committed=False)
        run.location.write("scores/u_000002-0.parquet", b"PAR1 half a file")
        run.location.write("checkpoint/u_000003.pending.parquet", b"PAR1 half a checkpoint")
        assert run.settle() == 2
        assert names(run) == ["checkpoint/u_000000.parquet", "scores/u_000000-0.parquet"]
        assert remaining(run) == KEYS[4:]
        assert run.settle() == 0

    def test_a_part_killed_between_copy_and_delete_of_the_rename_stays(self, run: Run) -> None:
        put_part(run, "u_000000", KEYS[:4])
        put_part(run, "u_000000", KEYS[:4], committed=False)
        assert run.settle() == 0
        assert names(run) == ["checkpoint/u_000000.parquet", "scores/u_000000-0.parquet"]
        assert remaining(run) == KEYS[4:]

    def test_rows_that_two_attempts_have_written_stay_once(self, run: Run) -> None:
        put_part(run, "first_000000", KEYS[:6])
        put_part(run, "second_000000", KEYS[4:8])
        put_part(run, "second_000001", KEYS[8:])
        assert run.settle() == 1
        assert remaining(run) == KEYS[6:8]
        assert run.scores(["image_key"]).column("image_key").to_pylist() == KEYS[:6] + KEYS[8:]

    @pytest.mark.parametrize("damage", ["gone", "cut off", "a flipped bit", "another"])
    def test_a_part_whose_rows_are_not_there_is_written_again(self, run: Run, damage: str) -> None:
        put_part(run, "u_000000", KEYS[:4])
        put_part(run, "u_000001", KEYS[4:])
        if damage == "gone":
            run.location.delete("scores/u_000001-0.parquet")
        elif damage == "cut off":
            run.location.write("scores/u_000001-0.parquet", b"PAR1 half a file")
        elif damage == "a flipped bit":
            body = bytearray(run.location.read("scores/u_000001-0.parquet"))
            body[body.index(KEYS[5].encode())] ^= 1
            run.location.write("scores/u_000001-0.parquet", bytes(body))
        else:
            put(run, "scores/u_000001-0.parquet", rows_of(KEYS[5:]))
        assert run.settle() == 1
        assert names(run) == ["checkpoint/u_000000.parquet", "scores/u_000000-0.parquet"]
        assert remaining(run) == KEYS[4:]


class TestReconciliation:
    def test_one_row_for_each_entry(self, run: Run) -> None:
        put_part(run, "u_000000", KEYS[6:])
        put_part(run, "u_000001", KEYS[:6])
        assert run.reconcile(manifest_of(KEYS)) == {"listed": 12, "ok": 12, "flagged": 0}

    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            ([KEYS[:6]], "12 objects listed, 6 rows written, 6 of them distinct, 6 objects without a row"),
            ([KEYS, KEYS[:1]], "12 objects listed, 13 rows written, 12 of them distinct, 0 objects without a row"),
            ([KEYS[1:], ["other.jpg"]], "12 rows written, 12 of them distinct, 1 objects without a row"),
        ],
    )
    def test_anything_else_is_refused(self, run: Run, parts: list[list[str]], message: str) -> None:
        for place, keys in enumerate(parts):
            put_part(run, f"u_{place:06d}", keys)
        with pytest.raises(IncompleteRun, match=message):
            run.reconcile(manifest_of(KEYS))


def test_equal_work_and_nothing_else_has_the_same_id() -> None:
    table = manifest_of(KEYS)
    later = pa.array([datetime(2027, 1, 1, tzinfo=UTC)] * 12, MANIFEST.field("last_modified").type)
    same = [
        run_id_of(table, bank_id="b", x=[1]),
        run_id_of(manifest_of(KEYS), x=[1], bank_id="b"),
        run_id_of(table.set_column(4, MANIFEST.field(4), later), bank_id="b", x=[1]),
    ]
    others = [
        run_id_of(manifest_of(KEYS[:-1]), bank_id="b", x=[1]),
        run_id_of(table.set_column(2, MANIFEST.field(2), pa.array(["f"] + ["e"] * 11)), bank_id="b", x=[1]),
        run_id_of(table.set_column(3, MANIFEST.field(3), pa.array([2] + [1] * 11)), bank_id="b", x=[1]),
        run_id_of(table, bank_id="c", x=[1]),
    ]
    assert len(set(same)) == 1
    assert len({*same, *others}) == 5


class TestPublishing:
    def test_the_newest_counts_and_rolling_back_undoes_it(self, run: Run) -> None:
        uri = run.results_uri
        assert read_published(uri).current is None
        for name in ("a", "b", "c"):
            Run(uri, name).finish(dump(some_record(name)))
            assert publish(Run(uri, name))
        assert not publish(Run(uri, "c")), "it counts already"
        assert read_published(uri).run_ids == ("c", "b", "a")
        assert roll_back(uri) == "b"
        assert read_published(uri).run_ids == ("b", "a")
        publish(Run(uri, "a"))
        assert read_published(uri).run_ids == ("a", "b")
        assert [entry.run_id for entry, _ in published_runs(uri)] == ["a", "b"]
        roll_back(uri)
        with pytest.raises(ConfigError, match="no earlier published run"):
            roll_back(uri)

    def test_finishing_leaves_no_checkpoint(self, run: Run) -> None:
        put_part(run, "u_000000", KEYS)
        assert run.record() is None
        record = some_record("run")
        run.finish(dump(record))
        assert run.record() == record
        assert names(run) == ["run.json", "scores/u_000000-0.parquet"]
        assert Location(run.results_uri).folders() == ("runs",)
