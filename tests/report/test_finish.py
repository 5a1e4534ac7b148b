import json
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest

from steelray.config import JobFailed, ReportConfig
from steelray.report.finish import publish_run, write_index
from steelray.runs import run as runs
from steelray.runs.quarantine import read_quarantine
from steelray.runs.record import JobSummary, RunRecord
from steelray.runs.run import IncompleteRun, Run, read_published, roll_back
from steelray.schema import SCORES
from steelray.storage.location import Location, ObjectMissing
from tests.plant import Plant, fill_archive, strip


def record_of(run: Run) -> RunRecord:
    record = run.record()
    assert record is not None
    return record


def test_a_finished_run_is_published_with_its_page(plant: Plant) -> None:
    defects = fill_archive(plant, 48)
    summary = plant.run(report=ReportConfig(gallery=6))
    results = Location(plant.results_uri)
    run = Run(plant.results_uri, summary["run_id"])
    assert read_published(plant.results_uri).run_ids == (run.run_id,)
    record = record_of(run)
    assert asdict(record.summary) == summary
    assert record.night.num_rows == 48
    assert summary["quarantined"] == 0
    assert summary["report_uri"] == f"{run.location}/report.html"
    page = run.location.read("report.html").decode()
    assert page.count('class="card"') == 6
    assert any(f'data-key="{key}"' in page for key in defects)
    assert f"runs/{run.run_id}/report.html" in results.read("index.html").decode()
    assert summary["drift_warnings"] == ()


def test_nothing_is_published_while_rows_are_missing(plant: Plant) -> None:
    fill_archive(plant, 4)
    run, manifest = plant.written_run()
    run.location.delete("scores/part.parquet")
    with pytest.raises(IncompleteRun, match="4 objects listed, 0 rows written"):
        plant.finish(run, manifest)
    assert read_published(plant.results_uri).current is None
    assert run.record() is None
    with pytest.raises(ObjectMissing):
        Location(plant.results_uri).read("index.html")


def test_too_large_a_quarantine_ends_the_job_after_all_its_work(plant: Plant) -> None:
    fill_archive(plant, 4)
    plant.place("archive").write("line0/dead.jpg", b"")
    with pytest.raises(
        JobFailed, match=r"is complete and published, but 1 of 5 objects \(20.0%\) have no score"
    ) as end:
        plant.run()
    summary = end.value.summary
    assert summary is not None
    assert summary["quarantined"] == 1
    run = Run(plant.results_uri, summary["run_id"])
    assert read_published(plant.results_uri).current == run.run_id
    assert read_quarantine(run.location).column("reason").to_pylist() == ["0 bytes"]
    assert "Too many objects without a score" in run.location.read("report.html").decode()
    assert asdict(publish_run(run, JobSummary(**summary), 0.2)) == summary, "a higher limit is enough for the rerun"


def test_the_summary_names_the_threshold_that_was_given(plant: Plant) -> None:
    fill_archive(plant, 2)
    summary = plant.run(threshold=0.0)
    assert summary["threshold"] == 0
    assert record_of(Run(plant.results_uri, summary["run_id"])).summary.threshold == 0


def test_a_darker_line_is_said_in_summary_record_and_page(plant: Plant) -> None:
    fill_archive(plant, 60, darker="line1")
    summary = plant.run()
    [warning] = [line for line in summary["drift_warnings"] if "darker" in line]
    assert warning.startswith("line1: strips are darker than at calibration")
    assert not any(line.startswith("line0") for line in summary["drift_warnings"])
    run = Run(plant.results_uri, summary["run_id"])
    record = json.loads(run.location.read("run.json"))
    assert record["drift"]["warnings"] == list(summary["drift_warnings"])
    drifted = [shift for shift in record["drift"]["shifts"] if shift["state"] == "drifted"]
    assert ("line1", "brightness") in {(shift["group"], shift["measure"]) for shift in drifted}
    assert "strips are darker than at calibration" in run.location.read("report.html").decode()


def test_strips_without_thresholds_of_their_group_are_said_in_summary_and_page(plant: Plant) -> None:
    fill_archive(plant, 4)
    plant.place("archive").write("line7/other.jpg", strip(1))
    summary = plant.run()
    [warning] = summary["group_warnings"]
    assert "1 of 3 groups of objects in the archive have the thresholds of all strips: line7 (1)" in warning
    assert "line7 (1)" in Run(plant.results_uri, summary["run_id"]).location.read("report.html").decode()


def test_trends_run_over_the_runs_of_the_same_model(plant: Plant) -> None:
    fill_archive(plant, 44)
    rows = plant.written_run()[0].scores()
    brightness = rows.column("mean_brightness").to_numpy()
    column = rows.schema.get_field_index("mean_brightness")

    def run_darker(step: int) -> Run:
        darker = rows.set_column(column, SCORES.field("mean_brightness"), pa.array(brightness - np.float32(3 * step)))
        return Run(plant.results_uri, plant.finish(*plant.written_run(darker))["run_id"])

    runs_so_far = [run_darker(step) for step in range(8)]
    record = json.loads(runs_so_far[-1].location.read("run.json"))
    assert any("strips are darker from run to run" in line for line in record["summary"]["drift_warnings"])
    assert {trend["num_runs"] for trend in record["drift"]["trends"]} == {8}
    assert "strips are darker from run to run" in runs_so_far[-1].location.read("report.html").decode()

    # a run of another model belongs to another history
    record["model"]["model_id"] = "another"
    runs_so_far[-1].location.write("run.json", json.dumps(record).encode())
    last = json.loads(run_darker(9).location.read("run.json"))
    assert {trend["num_runs"] for trend in last["drift"]["trends"]} == {8}


def test_the_index_tells_which_run_counts(plant: Plant) -> None:
    fill_archive(plant, 2)
    first = plant.run()
    fill_archive(plant, 4)
    second = plant.run()
    roll_back(plant.results_uri)
    write_index(plant.results_uri)
    page = Location(plant.results_uri).read("index.html").decode()
    states = [page.partition(f">{run['run_id']}</a>")[2].partition("</tr>")[0] for run in (first, second)]
    assert ">current<" in states[0]
    assert ">not published<" in states[1]


def test_two_runs_that_publish_at_once_do_not_overwrite_each_other(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_archive(plant, 2)
    run, manifest = plant.written_run()
    read = runs.read_published

    def read_then_lose(results_uri: str) -> runs.Published:
        before = read(results_uri)
        Location(results_uri).write(runs.POINTER, json.dumps({"run_id": "other", "run_ids": ["other"]}).encode())
        return before

    monkeypatch.setattr(runs, "read_published", read_then_lose)
    with pytest.raises(JobFailed, match="another was published at this moment: run the same command again"):
        plant.finish(run, manifest)
    monkeypatch.undo()
    assert read_published(plant.results_uri).current == "other"
    summary = record_of(run).summary
    assert publish_run(run, summary, None) == summary
    assert read_published(plant.results_uri).run_ids == (run.run_id, "other")
