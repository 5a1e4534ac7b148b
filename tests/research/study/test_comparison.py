"""Detection on the test split: kept networks at their plain and chosen readings, and other methods."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steelray.reconstruction.config import TrainDataConfig
from steelray.reconstruction.session import TrainingSession
from steelray.research.study.comparison import compare
from steelray.research.study.config import StudyConfig
from steelray.research.study.data import StudyImages
from steelray.research.study.detection import ScoredStrips, share_beyond_tile
from steelray.research.study.networks import read_network, score_networks
from steelray.research.study.plan import plan_trials
from steelray.research.study.report import write_report
from steelray.research.study.runner import run_plan
from steelray.research.study.trial import run_trial
from tests.research.ablation.conftest import write_dataset
from tests.research.study.study import TRAIN, small_study


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    """A study whose claim ran on two seeds, over eight nominal and six defective strips."""
    steel = write_dataset(tmp_path_factory.mktemp("steel"), size_px=(64, 192))
    train = replace(TRAIN, data=TrainDataConfig(dataset=steel))
    results = tmp_path_factory.mktemp("results")
    readings: dict[str, Any] = {"map_sigmas_px": (0.0, 6.0), "scoring_scales": (1.0, 0.5)}
    study = small_study(results, train=train, detect=True, confirm_seeds=(0, 1), **readings)
    run_plan(study, plan_trials(study), lambda line: None)
    return study


def test_baseline_and_fix_beside_other_methods(confirmed: StudyConfig) -> None:
    compare(confirmed, lambda line: None)
    found = json.loads((Path(confirmed.results_dir) / "detection.json").read_text())
    assert list(found["networks"]) == ["baseline", "fix"]
    for arm in found["networks"].values():
        assert list(arm["plain"]) == list(arm["chosen"]) == ["0", "1"]
        readings = {(scale, sigma): mean for scale, row in arm["validation"].items() for sigma, mean in row.items()}
        assert set(readings) == {("1", "0"), ("1", "6"), ("0.5", "0"), ("0.5", "6")}
        chosen = f"{arm['scoring_scale']:g}", f"{arm['map_sigma_px']:g}"
        assert readings[chosen] == max(readings.values())
        if arm["scoring_scale"] == 1:  # an image's score is taken before its map is smoothed
            assert all(arm["plain"][seed]["image_auroc"] == arm["chosen"][seed]["image_auroc"] for seed in ("0", "1"))
    assert list(found["methods"]) == ["local standard deviation", "|I - median|", "PatchCore", "ConvAE"]
    assert all(figures["num_test"] == 3 + 4 for figures in found["methods"].values())

    write_report(confirmed.results_dir, confirmed.results_dir)
    lines = (Path(confirmed.results_dir) / "study.md").read_text().splitlines()
    for arm in ("baseline", "fix"):
        assert any(line.startswith(f"| DRAEM, {arm}, ") and "maps smoothed by " in line for line in lines)
    assert sum(line.startswith("| PatchCore |") for line in lines) == 2


def test_a_kept_network_gives_the_maps_of_the_one_that_was_trained(confirmed: StudyConfig) -> None:
    trial = next(trial for trial in plan_trials(confirmed) if trial.arm == "fix")
    sessions: list[TrainingSession] = []
    images = StudyImages(confirmed)
    run_trial(trial, confirmed, images.condition(trial.condition), images.textures, on_end=sessions.append)
    trained, kept = sessions[0].eval_model.state_dict(), read_network(confirmed, trial).state_dict()
    assert trained.keys() == kept.keys()
    assert all(torch.equal(trained[name], kept[name]) for name in trained)


def test_networks_that_are_gone_are_left_out(confirmed: StudyConfig, tmp_path: Path) -> None:
    elsewhere = replace(confirmed, results_dir=str(tmp_path))
    for name in ("study.json", "trials.jsonl"):
        (tmp_path / name).write_bytes((Path(confirmed.results_dir) / name).read_bytes())
    assert score_networks(elsewhere, plan_trials(elsewhere), [], [], lambda line: None) == {}
    write_report(str(tmp_path), str(tmp_path))
    assert "Not measured yet" in (tmp_path / "study.md").read_text()


def test_smoothing_fills_a_coarse_mask_and_leaves_the_scores() -> None:
    rng = np.random.default_rng(0)
    mask_HW = np.zeros((64, 64), dtype=bool)
    mask_HW[16:48, 16:48] = True
    map_HW = (rng.random((64, 64)) < np.where(mask_HW, 0.2, 0.05)).astype(np.float32)
    strips = ScoredStrips(np.array([True, False]), np.array([1.0, 0.0], dtype=np.float32),
                          [map_HW, 0 * map_HW], [mask_HW[::4, ::4], np.zeros((16, 16), dtype=bool)])  # fmt: skip
    smoothed = strips.smoothed(4.0)
    assert smoothed.pixel_auroc() > strips.pixel_auroc() + 0.1
    assert smoothed.figures()["image_auroc"] == strips.figures()["image_auroc"] == 1.0


def test_a_defect_counts_as_larger_than_a_tile_where_it_is_both_higher_and_wider() -> None:
    mask_HW = np.zeros((64, 96), dtype=bool)
    mask_HW[0:30, 0:30] = True  # larger
    mask_HW[40:45, 0:60] = True  # wide only
    assert share_beyond_tile([mask_HW, np.zeros((8, 8), dtype=bool)], (16, 16)) == pytest.approx(900 / 1200)
    assert np.isnan(share_beyond_tile([], (16, 16)))
