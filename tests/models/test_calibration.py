"""Thresholds keep their rate, measured by simulation; large enough groups have their own."""

import numpy as np
import pytest
from numpy.typing import NDArray

from steelray.config import CalibrationConfig, ConfigError
from steelray.models.calibration import (
    ALL_STRIPS,
    Calibration,
    calibrate,
    conformal_threshold,
    group_of,
    group_warnings,
)


def calibrated(scores: NDArray[np.float64], keys: list[str] | None = None, **settings: object) -> Calibration:
    config = CalibrationConfig(**settings)  # type: ignore[arg-type]
    keys = keys or [f"{number}.jpg" for number in range(len(scores))]
    return calibrate(keys, scores, scores * 2, scores / 2, config)


@pytest.mark.parametrize(("count", "rate"), [(20, 0.1), (49, 0.02), (100, 0.05), (9, 0.3), (200, 0.02)])
def test_a_fresh_strip_is_flagged_no_more_often_than_promised(count: int, rate: float) -> None:
    rng = np.random.default_rng(0)
    trials = 4000
    flagged = np.mean(
        [rng.gamma(3.0) > conformal_threshold(rng.gamma(3.0, size=count), rate).value for _ in range(trials)]
    )
    noise = 4 * np.sqrt(rate / trials)
    assert flagged <= rate + noise
    assert flagged >= rate - 1 / (count + 1) - noise  # and is not needlessly careful


@pytest.mark.parametrize(("count", "rate"), [(30, 0.1), (200, 0.02)])
def test_the_interval_holds_the_rate_of_its_own_threshold(count: int, rate: float) -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(2000):
        threshold = conformal_threshold(rng.random(count), rate)
        held += threshold.rate_low <= 1 - threshold.value <= threshold.rate_high
    assert 0.935 <= held / 2000 <= 0.965


def test_too_few_strips_support_their_largest_score_and_say_so() -> None:
    scores = np.array([3.0, 1.0, 2.0])
    threshold = conformal_threshold(scores, 0.02)
    assert (threshold.value, threshold.asked_rate, threshold.rate) == (3.0, 0.02, 0.25)
    assert threshold.rate_high > 0.5
    assert conformal_threshold(scores, 0.5).rate == 0.5
    assert conformal_threshold(np.array([7.0]), 0.02).value == 7.0


def test_the_threshold_is_the_score_of_the_stated_rank() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 100.0))
    assert conformal_threshold(scores, 0.02).value == 98.0
    assert conformal_threshold(scores, 0.05).value == 95.0
    assert conformal_threshold(scores, 0.5).value == 50.0


@pytest.mark.parametrize("scores", [[], [1.0, np.nan], [np.inf, 1.0]])
def test_scores_that_set_no_threshold_are_refused(scores: list[float]) -> None:
    with pytest.raises(ConfigError, match=f"no threshold can be set on {len(scores)} held-out strips"):
        calibrated(np.array(scores))


def test_levels_of_a_calibration() -> None:
    scores = np.arange(1.0, 400.0)
    calibration = calibrated(scores, false_alarm_rate=0.05, reject_rate=0.01)
    every = calibration.thresholds_of(ALL_STRIPS)
    assert every.num_strips == 399
    assert every.review.value == 380.0
    assert every.reject.value == 396.0
    assert every.pixel.value == 760.0
    assert calibration.map_mean == 100.0
    assert set(calibration.groups) == {ALL_STRIPS}


def test_a_group_has_its_own_thresholds_where_it_is_large_enough() -> None:
    rng = np.random.default_rng(0)
    keys = (
        [f"line1/{number}" for number in range(60)] + [f"line2/{number}" for number in range(60)] + ["line3/1", "odd"]
    )
    scores = np.concatenate([rng.random(60), 5 + rng.random(60), [20.0, 1.0]])
    calibration = calibrated(scores, keys, group_pattern=r"^(line\d+)/", false_alarm_rate=0.02)
    assert set(calibration.groups) == {ALL_STRIPS, "line1", "line2"}
    assert calibration.thresholds_of("line1").review.value < 1
    assert 5 < calibration.thresholds_of("line2").review.value < 6
    for unknown in ("line3", "line9", ALL_STRIPS):
        assert calibration.thresholds_of(unknown) is calibration.groups[ALL_STRIPS]
    assert calibration.groups[ALL_STRIPS].num_strips == 122
    assert calibration.group_of("line1/x.jpg") == "line1"


def test_strips_without_thresholds_of_their_group_are_told() -> None:
    keys = [*(f"line1/{number}" for number in range(30)), "line2/a", "line2/b", "odd"]
    calibration = calibrated(np.arange(33.0), keys, group_pattern=r"^(line\d+)/", false_alarm_rate=0.04)
    unnamed, small = group_warnings(keys, calibration, "strips")
    assert "does not match 1 of 33 strips, such as odd:" in unnamed
    assert "1 of 2 groups of strips have the thresholds of all strips: line2 (2); a group needs 24 held-out" in small
    assert group_warnings(keys[:30], calibration, "strips") == []
    assert group_warnings(keys, calibrated(np.arange(33.0), keys), "strips") == []
    [none] = group_warnings(["a", "b"], calibration, "strips")
    assert "does not match 2 of 2 strips, such as a, b:" in none


def test_a_pattern_that_matches_no_nominal_key_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'cam\(.\)' matches none of 5 nominal keys, such as 0, 1, 2: correct it"):
        calibrated(np.arange(5.0), list("01234"), group_pattern="cam(.)")


@pytest.mark.parametrize(
    ("pattern", "key", "group"),
    [
        (None, "line1/a.jpg", ALL_STRIPS),
        (r"^(line\d+)/", "line1/a.jpg", "line1"),
        (r"^(line\d+)/", "a.jpg", ALL_STRIPS),
        (r"^(line\d+)/cam(\d)", "line1/cam2/a.jpg", "line1/2"),
        (r"^line\d+", "line12/a.jpg", "line12"),
        (r"^(a)|^(b)", "b.jpg", "b"),
    ],
)
def test_the_group_of_a_key(pattern: str | None, key: str, group: str) -> None:
    assert group_of(key, pattern) == group
