"""New thresholds from stored rows, and how often strips are flagged at them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from steelray.config import CalibrationConfig, ConfigError
from steelray.models.calibration import calibrate, read_calibration, read_calibration_rows
from steelray.models.config import CalibrateConfig
from steelray.runs.recalibration import recalibrate
from steelray.runs.run import Run
from tests.plant import Plant, fill_archive, strip


def test_the_stated_interval_holds_in_every_group() -> None:
    rng = np.random.default_rng(0)
    scale = {"line0": 1.0, "line1": 3.0}
    keys = [f"{line}/{index}" for line in scale for index in range(200)]
    inside = []
    for _ in range(150):
        scores_N = np.concatenate([factor * rng.gamma(4.0, size=200) for factor in scale.values()])
        config = CalibrationConfig(false_alarm_rate=0.05, group_pattern=r"^(line\d)/")
        calibration = calibrate(keys, scores_N, scores_N, scores_N, config)
        for line, factor in scale.items():
            review = calibration.thresholds_of(line).review
            inside.append(review.rate_low <= stats.gamma(4.0).sf(review.value / factor) <= review.rate_high)
    assert 0.92 <= np.mean(inside) <= 0.98


def test_fresh_nominal_strips_are_flagged_as_often_as_stated(plant: Plant) -> None:
    """Sixty generated strips set the threshold, 240 others are scored."""
    recalibrate(CalibrateConfig(plant.bank_uri, false_alarm_rate=0.1, reject_rate=0.05, group_pattern=""))
    calibration, _ = read_calibration(plant.bank_uri)
    for index in range(240):
        plant.place("archive").write(f"line{index % 2}/{index}.jpg", strip(index, seed=7))
    rows = plant.written_run()[0].scores()
    for level, flagged_N in (
        (calibration.groups[""].review, rows["is_anomalous"].to_numpy(zero_copy_only=False)),
        (calibration.groups[""].reject, np.array(rows["verdict"].to_pylist()) == "reject"),
    ):
        assert level.rate_low <= flagged_N.mean() <= level.rate_high


def test_new_rates_and_groups_come_without_scoring(plant: Plant) -> None:
    before, _ = read_calibration(plant.bank_uri)
    rows = read_calibration_rows(plant.bank_uri, 1)
    config = CalibrateConfig(plant.bank_uri, false_alarm_rate=0.2, reject_rate=0.1, group_pattern=r"(\d)\.")
    summary = recalibrate(config)
    assert summary["version"] == 2
    after, version = read_calibration(plant.bank_uri)
    assert version == 2
    assert (after.groups[""].review.asked_rate, after.groups[""].reject.asked_rate) == (0.2, 0.1)
    scores_N = np.sort(rows["anomaly_score"].to_numpy())
    assert after.groups[""].review.value == scores_N[int(np.ceil(61 * 0.8)) - 1]
    assert after.groups[""].review.value < before.groups[""].review.value
    assert after.group_of("line1/007.jpg") == "7"
    assert set(after.groups) == {"", *"0123456789"}
    assert set(read_calibration_rows(plant.bank_uri, 2)["group"].to_pylist()) == set("0123456789")
    assert read_calibration(plant.bank_uri, 1)[0] == before, "earlier versions stay"
    assert summary["groups"][""]["review_before"] == before.groups[""].review.value


def test_groups_without_thresholds_of_their_own_are_told(plant: Plant) -> None:
    with pytest.raises(ConfigError, match=r"matches none of 60 nominal keys, such as line0/000\.jpg, line0/"):
        recalibrate(CalibrateConfig(plant.bank_uri, group_pattern="^(cam.)/"))
    summary = recalibrate(CalibrateConfig(plant.bank_uri, group_pattern=r"(\d)\."))
    assert read_calibration(plant.bank_uri)[1] == 2, "the refused one is not stored"
    assert "10 of 10 groups of calibration strips have the thresholds of all strips: " in summary["warnings"][0]


def test_missing_settings_stay_and_a_dry_run_stores_nothing(plant: Plant) -> None:
    before, _ = read_calibration(plant.bank_uri)
    assert recalibrate(CalibrateConfig(plant.bank_uri, false_alarm_rate=0.5, dry_run=True))["dry_run"] is True
    assert recalibrate(CalibrateConfig(plant.bank_uri))["version"] == 2
    assert read_calibration(plant.bank_uri, 2)[0] == before
    assert read_calibration_rows(plant.bank_uri, 2).equals(read_calibration_rows(plant.bank_uri, 1))


class TestScoredRuns:
    def test_the_published_run_without_its_true_alarms(self, plant: Plant, tmp_path: Path) -> None:
        defects = fill_archive(plant, 60)
        plant.place("archive").write("line0/dead.jpg", b"")
        run = Run(plant.results_uri, plant.run(max_quarantine_share=None)["run_id"])
        lines = ["image_key,verdict", *(f"{key},true_alarm" for key in defects), "line0/strip 000.jpg,false_alarm"]
        lines += ["line0/dead.jpg,missed_defect", "elsewhere.jpg,true_alarm"]
        (tmp_path / "verdicts.csv").write_text("\n".join(lines))
        config = CalibrateConfig(
            plant.bank_uri, plant.results_uri, verdicts=str(tmp_path / "verdicts.csv"), false_alarm_rate=0.25
        )
        summary = recalibrate(config)
        assert summary["num_strips"] == 60 - len(defects)
        assert summary["true_alarms_left_out"] == len(defects)
        warning = summary["warnings"][0]
        assert f"1 of {len(lines) - 1} verdicts are on strips not in runs {run.run_id}" in warning
        nominal_N = np.sort(
            [
                row["anomaly_score"]
                for row in run.scores().to_pylist()
                if row["status"] == "ok" and row["image_key"] not in defects
            ]
        )
        review = read_calibration(plant.bank_uri)[0].groups[""].review
        assert review.value == nominal_N[int(np.ceil((len(nominal_N) + 1) * 0.75)) - 1]

    def test_several_runs_count_each_object_once(self, plant: Plant) -> None:
        fill_archive(plant, 30)
        first = plant.run()["run_id"]
        fill_archive(plant, 40, start=30)
        second = plant.run()["run_id"]
        config = CalibrateConfig(plant.bank_uri, plant.results_uri, run_ids=(second, first))
        assert recalibrate(config)["num_strips"] == 40
        assert recalibrate(replace(config, run_ids=(first,)))["num_strips"] == 30

    def test_rows_of_another_model_are_refused(self, plant: Plant) -> None:
        fill_archive(plant, 4)
        run = Run(plant.results_uri, plant.run()["run_id"])
        record = json.loads(run.location.read("run.json"))
        run.location.write("run.json", json.dumps({**record, "bank_id": "another"}).encode())
        with pytest.raises(ConfigError, match="was scored with another model"):
            recalibrate(CalibrateConfig(plant.bank_uri, plant.results_uri))

    @pytest.mark.parametrize(("run_ids", "message"), [((), "no run is published"), (("nope",), "no complete run nope")])
    def test_a_run_that_is_not_there(self, plant: Plant, run_ids: tuple[str, ...], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            recalibrate(CalibrateConfig(plant.bank_uri, plant.results_uri, run_ids=run_ids))


def test_no_strips_no_thresholds(plant: Plant, tmp_path: Path) -> None:
    keys = read_calibration_rows(plant.bank_uri, 1)["image_key"].to_pylist()
    (tmp_path / "verdicts.csv").write_text("\n".join(["key,verdict", *(f"{key},true" for key in keys)]))
    with pytest.raises(ConfigError, match="no threshold can be set on 0 held-out strips"):
        recalibrate(CalibrateConfig(plant.bank_uri, verdicts=str(tmp_path / "verdicts.csv")))


def test_verdicts_on_other_strips_store_nothing(plant: Plant, tmp_path: Path) -> None:
    (tmp_path / "verdicts.csv").write_text("key,verdict\nelsewhere.jpg,true_alarm\n")
    with pytest.raises(ConfigError, match=r"none of its 1 keys, such as elsewhere\.jpg, is in rows of calibration 1"):
        recalibrate(CalibrateConfig(plant.bank_uri, verdicts=str(tmp_path / "verdicts.csv")))
    assert read_calibration(plant.bank_uri)[1] == 1


def test_a_reject_threshold_without_support_rejects_no_strip(plant: Plant, tmp_path: Path) -> None:
    keys = read_calibration_rows(plant.bank_uri, 1)["image_key"].to_pylist()
    (tmp_path / "few.txt").write_text("\n".join(keys[6:]))
    summary = recalibrate(CalibrateConfig(plant.bank_uri, exclude=str(tmp_path / "few.txt"), group_pattern=""))
    assert summary["groups"][""]["reject"] is None
    assert any("no strip gets the verdict reject" in warning for warning in summary["warnings"])
    defects = fill_archive(plant, 24)
    verdicts = plant.written_run()[0].scores()["verdict"].to_pylist()
    assert verdicts.count("review") >= len(defects)
    assert set(verdicts) == {"normal", "review"}
