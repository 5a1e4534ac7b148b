import json

import pytest

from steelray import runs
from steelray.config import ReportConfig
from steelray.data.storage import Location, ObjectMissing
from steelray.job import JobFailed
from steelray.nightly import publish_night, write_index
from steelray.quarantine import read_quarantine
from steelray.runs import IncompleteRun, Run, read_published, roll_back
from tests.nights import Plant, fill_archive, strip


def test_a_finished_night_is_published_with_its_page(plant: Plant) -> None:
    defects = fill_archive(plant, 48)
    summary = plant.run_night(report=ReportConfig(gallery=6))
    results = Location(plant.results_uri)
    run = Run(plant.results_uri, summary["run_id"])
    assert read_published(plant.results_uri).run_ids == (run.run_id,)
    record = run.record()
    assert record is not None
    assert record["summary"] == summary
    assert record["night"]["num_rows"] == 48
    assert summary["quarantined"] == 0
    assert summary["report_uri"] == f"{run.location}/report.html"
    page = run.location.read("report.html").decode()
    assert page.count('class="card"') == 6
    assert sum(f'data-key="{key}"' in page for key in defects) >= 3
    assert f"runs/{run.run_id}/report.html" in results.read("index.html").decode()
    assert summary["drift_warnings"] == []


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
        plant.run_night()
    summary = end.value.summary
    assert summary is not None
    assert summary["quarantined"] == 1
    run = Run(plant.results_uri, summary["run_id"])
    assert read_published(plant.results_uri).current == run.run_id
    assert read_quarantine(run.location).column("reason").to_pylist() == ["0 bytes"]
    assert "Too many objects without a score" in run.location.read("report.html").decode()
    assert publish_night(run, summary, max_quarantine_share=0.2) == summary, "a higher limit is enough for the rerun"


def test_a_darker_line_is_said_in_summary_record_and_page(plant: Plant) -> None:
    fill_archive(plant, 60, darker="line1")
    summary = plant.run_night()
    [warning] = [line for line in summary["drift_warnings"] if "darker" in line]
    assert warning.startswith("line1: strips are darker than at calibration")
    assert not any(line.startswith("line0") for line in summary["drift_warnings"])
    run = Run(plant.results_uri, summary["run_id"])
    record = run.record()
    assert record is not None
    assert record["drift"]["warnings"] == summary["drift_warnings"]
    drifted = [shift for shift in record["drift"]["shifts"] if shift["state"] == "drifted"]
    assert ("line1", "brightness") in {(shift["group"], shift["measure"]) for shift in drifted}
    assert "strips are darker than at calibration" in run.location.read("report.html").decode()


def test_trends_run_over_the_nights_of_the_same_model(plant: Plant) -> None:
    for night in range(8):
        for index in range(44):
            key = f"line{index % 2}/{index}.jpg"
            plant.place("archive").write(key, strip(index, seed=night + 10, brightness=110.0 - 3 * night))
        summary = plant.run_night()
    trends = [line for line in summary["drift_warnings"] if "in 8 runs" in line]
    assert any("strips are darker from run to run" in line for line in trends)
    run = Run(plant.results_uri, summary["run_id"])
    record = run.record()
    assert record is not None
    assert {trend["num_runs"] for trend in record["drift"]["trends"]} == {8}

    # another model's nights are not of this history
    other = json.loads(run.location.read("run.json"))
    other["model"]["model_id"] = "another"
    run.location.write("run.json", json.dumps(other).encode())
    fill_archive(plant, 2)
    last = Run(plant.results_uri, plant.run_night()["run_id"]).record()
    assert last is not None
    assert {trend["num_runs"] for trend in last["drift"]["trends"]} == {8}


def test_the_index_tells_which_run_counts(plant: Plant) -> None:
    fill_archive(plant, 2)
    first = plant.run_night()
    fill_archive(plant, 4)
    second = plant.run_night()
    roll_back(plant.results_uri)
    write_index(plant.results_uri)
    page = Location(plant.results_uri).read("index.html").decode()
    states = {run: page.split(run)[1].split("</tr>")[0] for run in (first["run_id"], second["run_id"])}
    assert "current" in states[first["run_id"]]
    assert "not published" in states[second["run_id"]]


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
    record = run.record()
    assert record is not None
    assert publish_night(run, record["summary"], None) == record["summary"]
    assert read_published(plant.results_uri).run_ids == (run.run_id, "other")
