"""The benchmarks' own parts: what they compare with is right, and what they write is what they measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import detection, growth, pipeline, run, search
from benchmarks.coreset import cover_radius, difference_loop, matrix_vector_loop
from benchmarks.table import lines, write_readme
from steelray.patchcore.coreset import greedy_coreset
from steelray.patchcore.index import LocalSearch, shard_of

HEAD: dict[str, Any] = {
    "date": "2026-11-25T00:00:00+00:00",
    "git_commit": "abc",
    "hardware": {"cpu": "some CPU", "cores": 2, "gpu": None},
    "versions": {"python": "3.11.7", "torch": "2.14.1"},
    "load_average_before": 0.1,
}


def record(benchmark: str, result: dict[str, Any]) -> dict[str, Any]:
    return {"benchmark": benchmark, "case": "x", **HEAD, "result": result}


def loop(seconds: float, ratio: float, measured: int = 10, **more: float) -> dict[str, Any]:
    return {"seconds": seconds, "ratio": ratio, "measured_picks": measured, **more}


RECORDS = {
    "coreset-200k": record(
        "coreset",
        {
            "points": 200_000,
            "dim": 176,
            "picks": 2000,
            "steelray": {"seconds": 4.0, "cover_radius": 22.8},
            "textbook": loop(120.0, 30.0),
            "textbook_matrix_vector": loop(40.0, 10.0),
            "anomalib": loop(248.0, 62.0, cover_radius=24.5),
        },
    ),
    "pipeline-strips": record(
        "pipeline",
        {
            "vectors": 1728,
            "strips": 480,
            "ray_job": {"strips_per_s": 17.5, "whole_job_strips_per_s": 14.0},
            **{
                name: {"strips_per_s": 4.0, "ray_job_is_faster_by": 4.375, "largest_score_difference": 1e-4}
                for name in ("bare_loop_same_backend", "bare_loop_eager", "anomalib_predict")
            },
        },
    ),
}


def test_both_textbook_loops_pick_as_the_coreset_does() -> None:
    points = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    expected = greedy_coreset(points, 60).tolist()
    assert difference_loop(points, 60) == matrix_vector_loop(points, 60) == expected
    centers = points[expected]
    assert cover_radius(points, centers) == pytest.approx(float(torch.cdist(points, centers).min(dim=1).values.max()))


def test_the_table_says_what_was_measured(tmp_path: Path) -> None:
    results, readme = tmp_path / "results", tmp_path / "README.md"
    results.mkdir()
    for name, entry in RECORDS.items():
        (results / f"{name}.json").write_text(json.dumps(entry))
    readme.write_text("before\n<!-- table -->\nold\n<!-- end of table -->\nafter\n")
    write_readme(readme, results)
    text = readme.read_text()
    assert text.startswith("before\n<!-- table -->\n### Coreset")
    assert text.endswith("<!-- end of table -->\nafter\n")
    assert "old" not in text
    assert "| 200,000 x 176 | 2,000 | 4.00 | 22.800 | 120 (10 picks) | 30.0x |" in text
    assert "248 | 62.0x | 24.500 |" in text, "a whole selection needs no number of picks"
    assert "**17.50** | 4.00 (Ray job 4.38x)" in text
    assert "2 cores of some CPU; python 3.11.7, torch 2.14.1; commit abc; load before the cases 0.1 to 0.1." in text
    write_readme(readme, results)
    assert readme.read_text() == text


def test_every_kept_result_finds_its_place_in_the_table() -> None:
    kept = {path.stem: json.loads(path.read_text()) for path in run.RESULTS.glob("*.json") if path != detection.RESULTS}
    text = "\n".join(lines(kept))
    assert text.count("### ") == len({entry["benchmark"] for entry in kept.values()})


def test_cases_are_found_by_name() -> None:
    every = run.names(quick=False, only=[])
    assert {name.partition("/")[0] for name in every} == set(run.BENCHMARKS)
    assert run.names(quick=False, only=["search"]) == [name for name in every if name.startswith("search/")]
    assert run.names(quick=False, only=["growth/plan-1M"]) == ["growth/plan-1M"]
    with pytest.raises(SystemExit, match="unknown benchmark nonsense"):
        run.names(quick=True, only=["nonsense"])


def test_searches_in_flight_answer_in_order() -> None:
    rng = np.random.default_rng(0)
    bank = search.bank_of(rng.standard_normal((50, 8)).astype(np.float32))
    batches = [rng.standard_normal((5, 8)).astype(np.float32) for _ in range(5)]
    local = LocalSearch([shard_of(bank)])
    for answer, queries_QD in zip(search.ask(local, batches), batches, strict=True):
        np.testing.assert_array_equal(answer, local.submit(queries_QD, 1).result()[0])


def test_start_up_is_no_part_of_the_price_of_an_image() -> None:
    assert pipeline.per_image(lambda count: 7.0 + 0.25 * count, 10, 50) == pytest.approx(0.25)


def test_ratios_are_those_within_a_turn() -> None:
    loads = iter([1.0, 1.0, 9.0, 9.0, 2.0, 2.0])
    rows = pipeline.compared({"ray_job": lambda: 0.1 * next(loads), "other": lambda: 0.4 * next(loads)})
    assert rows["other"]["ray_job_is_faster_by"] == pytest.approx(4.0)
    assert rows["ray_job"]["strips_per_s"] == pytest.approx(1 / 0.2)


def test_planning_reads_every_listed_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "SCRATCH", tmp_path)
    planned = growth.plan(5000)
    assert planned["keys"] == 5000
    assert planned["tasks"] == -(-5000 // 32)
    assert planned["seconds"] > 0


def detection_row(method: str, scores: list[float], **more: Any) -> dict[str, Any]:
    labels = [0, 0, 0, 1, 1]
    split = {"labels": labels, "scores": scores, "figures": {"image_auroc": 1.0, "pixel_auroc": 0.9, "pixel_ap": 0.5}}
    return {
        "data": "x", "method": method, "num_fit": 3, "size_px": [8, 9],
        "splits": [split | {"fit_s": 3.2, "score_s": 1.0} | more], **HEAD,
    }  # fmt: skip


def test_detection_measures_our_recipes_on_generated_strips(tmp_path: Path) -> None:
    data = detection.generated_strips(tmp_path, num_fit=8, num_test=4, size_px=(64, 192))
    case = detection.Case("tiny", data, map_px=(32, 96), native_px=(64, 192), shared_px=(32, 96))
    assert case.methods == [*detection.RECIPES, detection.SAME_SIZE, detection.PATCHCORE, detection.PADIM]
    row = json.loads(json.dumps(detection.rounded(detection.measure(case, detection.SAME_SIZE))))
    [split] = row["splits"]
    assert row["size_px"] == [32, 96]
    assert split["labels"].count(1) == split["labels"].count(0) == 4
    assert split["figures"].keys() >= {"image_auroc", "pixel_auroc", "pixel_ap", "recall", "false_alarm_rate"}
    assert 0 <= split["power"] <= 1
    assert str(tmp_path) not in json.dumps(row)
    [head, _, _, _, line, _] = detection.table_lines([row])
    assert head == "**tiny**: 8 nominal images to fit; 4 nominal and 4 defective images to test"
    assert line.startswith(f"| {detection.SAME_SIZE} | 32×96 | {split['figures']['image_auroc']:.3f} [")


def test_detection_compares_methods_on_the_same_resamples(tmp_path: Path) -> None:
    good, bad = [0.1, 0.2, 0.3, 0.8, 0.9], [0.9, 0.8, 0.3, 0.2, 0.1]
    rows = [
        detection_row("surface", good, power=0.25, can_decide=True),
        detection_row(detection.PATCHCORE, good),
        detection_row(detection.PADIM, bad),
    ]
    assert (detection.resampled_aurocs(rows[0]) == detection.resampled_aurocs(rows[1])).all()
    assert detection.resampled_aurocs(rows[2]).max() < 0.5
    page = tmp_path / "detection.md"
    page.write_text("before\n<!-- table -->\nold\n<!-- end of table -->\nafter\n")
    detection.write_page(page, rows)
    text = page.read_text()
    line = "1.000 [1.000, 1.000] | +0.000 [+0.000, +0.000] | 0.900 | 0.500 | – | – | 0.25 | yes | 3 | 1 |"
    assert f"| `surface` | 8×9 | {line}" in text
    assert "old" not in text
    assert text.endswith("<!-- end of table -->\nafter\n")
    detection.write_page(page, rows)
    assert page.read_text() == text


def test_detection_keeps_the_rows_that_it_has(tmp_path: Path) -> None:
    path = tmp_path / "detection.json"
    rows = [detection_row("surface", [0.1, 0.2, 0.3, 0.8, 0.9])]
    detection.store(path, rows)
    assert json.loads(path.read_text())["rows"] == rows
