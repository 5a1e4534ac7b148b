"""Retention: runs that are kept, retired and deleted."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from steelray.description import dump
from steelray.runs.quarantine import quarantine_of, write_quarantine
from steelray.runs.retention import plan_prune, prune
from steelray.runs.run import Run, publish, read_published, roll_back
from steelray.schema import MANIFEST
from steelray.storage.location import Location, ObjectChanged
from tests.plant import some_record
from tests.report.examples import score_table

NOW = datetime.now(UTC)


@pytest.fixture
def results_uri(tmp_path: Path) -> str:
    return str(tmp_path / "results")


def write_run(results_uri: str, run_id: str, days_ago: float = 0, *, published: bool = True) -> Run:
    """A complete run, as far as retention looks."""
    run = Run(results_uri, run_id)
    run.write_manifest(MANIFEST.empty_table())
    for key in ("scores/part.parquet", "heatmaps/a.png", "report.html"):
        run.location.write(key, b"x")
    write_quarantine(run.location, quarantine_of(score_table(2)))
    run.finish(dump(some_record(run_id, ended_at=NOW - timedelta(days=days_ago))))
    if published:
        publish(run)
    return run


def files(run: Run) -> set[str]:
    return {stored.key for stored in run.location.list()}


RETIRED = {"manifest.parquet", "quarantine.parquet", "quarantine.csv", "retired.json"}
WHOLE = (RETIRED - {"retired.json"}) | {"scores/part.parquet", "heatmaps/a.png", "report.html", "run.json"}


@pytest.mark.parametrize("store", ["folder", "s3"])
def test_the_newest_stay_and_the_others_leave_their_manifest(store: str, request: pytest.FixtureRequest) -> None:
    results_uri = request.getfixturevalue("s3_uri" if store == "s3" else "results_uri")
    runs = [write_run(results_uri, name) for name in ("a", "b", "c", "d")]
    plan = plan_prune(results_uri, keep=2, keep_days=None)
    assert (plan.kept, plan.retired, plan.deleted) == (("d", "c"), ("b", "a"), ())
    assert [files(run) for run in runs] == [WHOLE] * 4, "a plan does nothing"
    prune(results_uri, plan)
    assert [files(run) for run in runs] == [RETIRED, RETIRED, WHOLE, WHOLE]
    published = read_published(results_uri)
    assert (published.run_ids, published.retired_ids) == (("d", "c"), ("b", "a"))
    assert runs[0].record() is None
    assert runs[0].retired_record().run_id == "a"
    assert roll_back(results_uri) == "c"


def test_young_runs_stay_whatever_their_number(results_uri: str) -> None:
    ages = {"a": 40.0, "b": 20.0, "c": 9.0, "d": 1.0}
    for name, days in ages.items():
        write_run(results_uri, name, days)
    assert plan_prune(results_uri, keep=None, keep_days=10).retired == ("b", "a")
    assert plan_prune(results_uri, keep=3, keep_days=10).retired == ("a",)
    assert plan_prune(results_uri, keep=1, keep_days=10).retired == ("b", "a")


def test_the_run_that_counts_is_never_removed(results_uri: str) -> None:
    run = write_run(results_uri, "only", days_ago=1000)
    plan = plan_prune(results_uri, keep=None, keep_days=0)
    assert plan.kept == ("only",)
    prune(results_uri, plan)
    assert files(run) == WHOLE


def test_runs_that_do_not_count_go_by_age_only(results_uri: str) -> None:
    write_run(results_uri, "a")
    write_run(results_uri, "rolled back")
    roll_back(results_uri)
    Run(results_uri, "killed").location.write("scores/part.parquet", b"x")
    assert plan_prune(results_uri, keep=1, keep_days=None).deleted == ()
    assert plan_prune(results_uri, keep=None, keep_days=7).deleted == ()
    plan = plan_prune(results_uri, keep=None, keep_days=7, now=NOW + timedelta(days=8))
    assert plan.deleted == ("killed", "rolled back")
    prune(results_uri, plan)
    assert (Location(results_uri) / "runs").folders() == ("a",)


def test_an_interrupted_prune_is_finished_by_the_next(results_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [write_run(results_uri, name) for name in ("a", "b")]
    delete, deleted = Location.delete, []

    def fail_at_third(self: Location, key: str) -> None:
        if len(deleted) == 2:
            raise OSError("gone")
        deleted.append(key)
        delete(self, key)

    monkeypatch.setattr(Location, "delete", fail_at_third)
    with pytest.raises(OSError, match="gone"):
        prune(results_uri, plan_prune(results_uri, keep=1, keep_days=None))
    monkeypatch.undo()
    assert runs[0].record() is None, "a run that lacks rows is not complete"
    prune(results_uri, plan_prune(results_uri, keep=1, keep_days=None))
    assert [files(run) for run in runs] == [RETIRED, WHOLE]


def test_a_plan_made_before_another_run_was_published_does_nothing(results_uri: str) -> None:
    runs = [write_run(results_uri, name) for name in ("a", "b")]
    plans = [plan_prune(results_uri, keep=1, keep_days=None), plan_prune(results_uri, keep=5, keep_days=None)]
    roll_back(results_uri)
    for plan in plans:
        with pytest.raises(ObjectChanged):
            prune(results_uri, plan)
    assert [files(run) for run in runs] == [WHOLE, WHOLE]


def test_a_retired_run_that_is_scored_again_is_a_run_like_any_other(results_uri: str) -> None:
    for name in ("a", "b"):
        write_run(results_uri, name)
    prune(results_uri, plan_prune(results_uri, keep=1, keep_days=None))
    run = Run(results_uri, "a")
    run.write_manifest(pa.Table.from_pylist([], MANIFEST))
    run.location.write("scores/part.parquet", b"x")
    prune(results_uri, plan_prune(results_uri, keep=1, keep_days=None))
    assert "scores/part.parquet" in files(run), "it is under way"
    write_run(results_uri, "a")
    published = read_published(results_uri)
    assert (published.run_ids, published.retired_ids) == (("a", "b"), ())
