"""Trials: the plan, their logs, the probe that never changes, resuming, and refusals."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from steelray.config import ConfigError
from steelray.evaluation.datasets import Dataset, Sample
from steelray.reconstruction.build import build_model
from steelray.reconstruction.config import OptimizerConfig
from steelray.reconstruction.draem import Draem
from steelray.research.study.config import Arm
from steelray.research.study.data import StudyImages, generated_strip, parted_test
from steelray.research.study.plan import Trial, plan_trials, study_digest
from steelray.research.study.probe import average_precision, make_probe, measure, untrained_aps
from steelray.research.study.results import TRIALS_FILE, StudyResults, read_trials
from steelray.research.study.runner import run_plan
from steelray.research.study.trial import run_trial
from tests.research.study.study import TRAIN, small_study


def test_the_probe_is_the_same_for_every_seed_and_setting(tmp_path: Path) -> None:
    images = StudyImages(small_study(tmp_path)).condition("steel")
    first = make_probe(images.held_out, TRAIN, None)
    second = make_probe(images.held_out, replace(TRAIN, seed=5), None)
    assert len(first) == 64
    assert torch.equal(first.images_NCHW, second.images_NCHW)
    assert torch.equal(first.masks_NHW, second.masks_NHW)
    changed_NHW = (first.images_NCHW != first.clean_NCHW).any(dim=1)
    assert not (changed_NHW & ~first.masks_NHW).any()
    assert 0 < first.masks_NHW.float().mean() < 0.3


def test_the_ap_without_training_falls_with_the_smoothing(tmp_path: Path) -> None:
    probe = make_probe(StudyImages(small_study(tmp_path)).condition("steel").held_out, TRAIN, None)
    found = untrained_aps(probe)
    assert found["smoothed_0"] > 0.99
    assert found["smoothed_0"] > found["smoothed_1"] > found["smoothed_4"] > float(probe.masks_NHW.float().mean())
    assert 0 < found["chroma"] < 1


def test_a_perfect_network_scores_perfectly_on_the_probe(tmp_path: Path) -> None:
    probe = make_probe(StudyImages(small_study(tmp_path)).condition("steel").held_out, TRAIN, None)

    class Oracle(Draem):
        def forward(
            self, images_BCHW: torch.Tensor, detach_reconstruction: bool = False
        ) -> tuple[torch.Tensor, torch.Tensor]:
            start = next(i for i in range(0, 64, 8) if torch.equal(probe.images_NCHW[i : i + 8], images_BCHW))
            sign_BHW = probe.masks_NHW[start : start + 8].float() * 40 - 20
            return probe.clean_NCHW[start : start + 8], torch.stack((-sign_BHW, sign_BHW), dim=1)

    figures, tile_losses_N = measure(Oracle(TRAIN.draem), probe)
    assert figures["reconstruction_loss"] == pytest.approx(0, abs=1e-5)
    assert figures["focal"] == pytest.approx(0, abs=1e-6)
    assert figures["pixel_ap"] == 1.0
    assert tile_losses_N == pytest.approx(np.zeros(64), abs=1e-5)
    untrained, _ = measure(build_model(TRAIN.draem), probe)
    assert untrained["reconstruction_loss"] > probe.floor_loss


def test_average_precision_of_no_positive_or_of_a_score_that_is_not_finite_is_nan() -> None:
    labels, scores = torch.tensor([True, False]), torch.tensor([0.9, 0.1])
    assert average_precision(labels, scores) == 1
    assert np.isnan([average_precision(~labels & labels, scores), average_precision(labels, scores / 0)]).all()


def test_a_trial_logs_what_the_verdicts_need_and_repeats_exactly(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    images = StudyImages(study)
    trial = Trial("baseline", 1)
    row = run_trial(trial, study, images.condition(trial.condition), None)
    assert row["status"] == "ok"
    assert [probed["step"] for probed in row["curves"]["probe"]] == [1, 2, 3, 4, 5]
    assert len(row["curves"]["tile_floor"]) == len(row["curves"]["tile_ssim_loss"]) == 64
    assert {"norm_ssim", "norm_focal", "cosine_l2_ssim"} <= set(row["curves"]["gradients"][0])
    wanted = {
        "ssim_loss_unmasked", "ssim_loss_masked", "ssim_loss_black", "train_eval_gap", "share_unchanged",
        "share_below_grain", "pixel_ap_desaturated", "turned_over_unturned", "unseen_pixel_ap",
        "floor_rank_correlation",
    }  # fmt: skip
    assert wanted <= set(row["figures"])
    assert {"c1", "c2", "c3", "c4", "c5", "converged", "thesis"} <= set(row["criteria"])
    again = run_trial(trial, study, images.condition(trial.condition), None)
    assert again["figures"] == pytest.approx(row["figures"], nan_ok=True)


def test_a_trial_that_goes_nan_is_recorded_and_the_next_one_runs(tmp_path: Path) -> None:
    broken = replace(TRAIN, optimizer=OptimizerConfig(lr=1e30))
    study = small_study(tmp_path, train=broken, confirm_seeds=(0, 1), fix={})
    assert run_plan(study, plan_trials(study), lambda line: None)["ran"] == 2
    rows = read_trials(str(tmp_path))
    assert [row["status"] for row in rows] == ["nan", "nan"]
    assert rows[0]["failure"]["step"] >= 1
    assert not rows[0]["criteria"]["converged"]


def test_a_stopped_study_goes_on_with_what_is_left(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    trials = plan_trials(study)
    run_plan(study, trials[:1], lambda line: None)
    first = (tmp_path / TRIALS_FILE).read_text()
    assert run_plan(study, trials, lambda line: None) == {"planned": 2, "ran": 1, "skipped": 1}
    text = (tmp_path / TRIALS_FILE).read_text()
    assert text.startswith(first)
    assert "NaN" not in text
    assert [row["trial_id"] for row in read_trials(str(tmp_path))] == [trial.trial_id for trial in trials]


def test_two_drivers_on_the_same_results_lose_no_row(tmp_path: Path) -> None:
    results = StudyResults(str(tmp_path), small_study(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: results.append({"trial_id": f"{number}"}), range(40)))
    assert {row["trial_id"] for row in read_trials(str(tmp_path))} == {f"{number}" for number in range(40)}


def test_results_of_another_study_are_refused_and_paths_make_no_difference(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    moved = replace(study, train=replace(TRAIN, output_uri="elsewhere"), results_dir="elsewhere")
    assert study_digest(study) == study_digest(moved)
    StudyResults(str(tmp_path), study)
    with pytest.raises(ConfigError, match="another baseline"):
        StudyResults(str(tmp_path), small_study(tmp_path, train=replace(TRAIN, num_steps=6)))
    stored = json.loads((tmp_path / "study.json").read_text())
    (tmp_path / "study.json").write_text(json.dumps({**stored, "study_version": 0}))
    with pytest.raises(ConfigError, match="study version 0"):
        StudyResults(str(tmp_path), small_study(tmp_path))


def test_the_plan_runs_shared_trials_once_and_the_telling_ones_first(tmp_path: Path) -> None:
    arms = (Arm("denoised", condition="steel+denoise=2"), Arm("clipped", {"optimizer.clip": 1.0}))
    study = small_study(tmp_path, arms=arms, mode="all", seeds=(0, 1, 2), confirm_seeds=tuple(range(10)))
    trials = plan_trials(study)
    assert [trial.arm for trial in trials[:6]] == ["baseline", "fix"] * 3
    assert [trial.arm for trial in trials[6:12]] == ["denoised"] * 3 + ["clipped"] * 3
    assert len(trials) == len({trial.trial_id for trial in trials}) == 26
    factors = plan_trials(replace(study, mode="one_factor"))
    assert {trial.arm for trial in factors} == {"baseline", "fix", "clipped"}
    with pytest.raises(ConfigError, match="26 trials, max_trials is 25"):
        plan_trials(replace(study, max_trials=25))


@pytest.mark.parametrize(
    ("condition", "message"),
    [("zinc", "'zinc' is not known"), ("steel+rust=3", "'rust' is not known"), ("steel+grain", "has no amount")],
)
def test_unknown_conditions_are_refused(condition: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Arm("any", condition=condition)


def test_a_control_that_is_not_set_and_a_probe_without_nominal_tiles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="control is not set"):
        StudyImages(small_study(tmp_path)).condition("control")
    with pytest.raises(ConfigError, match="no nominal tiles"):
        make_probe([], TRAIN, None)
    with pytest.raises(ConfigError, match="0 of 64 nominal tiles"):
        make_probe([np.zeros((64, 64, 1), dtype=np.uint8)], TRAIN, None)


def test_no_strip_is_for_choosing_and_for_testing() -> None:
    clean = [Sample(Path(f"clean-{number}")) for number in range(3)]
    defective = [Sample(Path(f"defective-{number}"), "1") for number in range(7)]
    validation, test = parted_test(Dataset([], [*defective, *clean]))
    assert [sample.path.name for sample in validation] == ["defective-0", "defective-3", "defective-6"]
    assert sorted(sample.path.name for sample in test) == [
        "clean-0", "clean-1", "clean-2", "defective-1", "defective-2", "defective-4", "defective-5",
    ]  # fmt: skip


def test_generated_strips_obey_their_knobs() -> None:
    smooth, grainy = (generated_strip(0, 1, {"grain": sd}).astype(float) for sd in (1.0, 9.0))
    assert np.diff(grainy, axis=0).std() > 4 * np.diff(smooth, axis=0).std()
    assert (generated_strip(0, 1, {"black": 0.5}) < 8).mean() > 0.45
    assert generated_strip(0, 1, {"chroma": 30.0}).shape[2] == 3
    with pytest.raises(ConfigError, match="no knob 'rust'"):
        generated_strip(0, 1, {"rust": 1.0})
