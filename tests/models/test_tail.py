"""Extrapolated thresholds: their true rates lie in the stated intervals, measured by simulation."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from steelray.config import CalibrationConfig
from steelray.description import dump, parse
from steelray.models.calibration import ALL_STRIPS, Calibration, calibrate, conformal_threshold, set_threshold
from steelray.models.tail import MIN_STRIPS, extrapolated, fit_tail, interval

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
Rate = Callable[[float], float]


def odd(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    return rng.standard_normal(count) + 6 * (rng.random(count) < 0.02)


DISTRIBUTIONS: dict[str, tuple[Draw, Rate]] = {
    "normal": (lambda rng, count: rng.standard_normal(count), stats.norm.sf),
    "gamma": (lambda rng, count: rng.gamma(3.0, size=count), stats.gamma(3.0).sf),
    "odd strips": (odd, lambda t: float(0.98 * stats.norm.sf(t) + 0.02 * stats.norm.sf(t - 6))),
}


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize("count", [12, 40, 60, 150])
def test_the_true_rates_lie_in_their_intervals(kind: str, count: int) -> None:
    draw, rate_of = DISTRIBUTIONS[kind]
    rng = np.random.default_rng([count, len(kind)])
    inside = np.zeros((100, 2), dtype=bool)
    for trial in range(100):
        for level, rate in enumerate((0.02, 0.005)):
            threshold = set_threshold(draw(rng, count), rate)
            assert threshold.extrapolated == (rate < 1 / (count + 1))
            assert threshold.rate_low <= threshold.rate <= threshold.rate_high
            inside[trial, level] = threshold.rate_low <= rate_of(threshold.value) <= threshold.rate_high
    assert inside.sum(axis=0).min() >= 90


def test_the_tail_is_that_of_a_known_distribution() -> None:
    """Of 2000 exponential scores, exceeded at the stated rate: shape 0, scale 1."""
    scores = stats.expon.isf((np.arange(2000) + 0.5) / 2000)
    tail = fit_tail(scores)
    assert float(tail.shape) == pytest.approx(0, abs=0.05)
    assert float(tail.scale) == pytest.approx(1, abs=0.05)
    for rate in (0.02, 0.001):
        assert float(tail.value(rate)) == pytest.approx(-np.log(rate), rel=0.05)
        assert float(tail.rate(tail.value(rate))) == pytest.approx(rate)


def test_the_same_scores_give_the_same_interval() -> None:
    scores = np.random.default_rng(0).gamma(3.0, size=60)
    assert extrapolated(scores, 0.005) == extrapolated(scores, 0.005)
    low, high = interval(scores, float(scores.max()) + 1, 0.005)
    assert high == pytest.approx(1 - 0.025 ** (1 / 60)), "no score lies above: the bound that assumes no tail"
    assert 0 <= low <= 0.005


def test_a_rate_that_the_strips_support_stays_conformal() -> None:
    scores = np.random.default_rng(0).gamma(3.0, size=60)
    assert set_threshold(scores, 0.02) == conformal_threshold(scores, 0.02)
    assert set_threshold(scores, 1 / 61) == conformal_threshold(scores, 1 / 61)
    assert set_threshold(scores, 0.016).extrapolated


def calibrated(scores_N: NDArray[np.float64], **settings: float) -> Calibration:
    keys = [f"{number}.jpg" for number in range(len(scores_N))]
    return calibrate(keys, scores_N, scores_N, scores_N, CalibrationConfig(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, MIN_STRIPS - 1])
def test_too_few_strips_support_no_reject(count: int) -> None:
    limits = calibrated(np.arange(1.0, count + 1)).groups[ALL_STRIPS]
    assert (limits.review.value, limits.reject.value, limits.has_reject) == (count, count, False)
    assert limits.review.rate == limits.reject.rate == 1 / (count + 1)
    assert not limits.review.extrapolated


@pytest.mark.parametrize("count", [MIN_STRIPS, 60])
def test_strips_that_are_all_alike_support_no_reject(count: int) -> None:
    limits = calibrated(np.full(count, 2.5)).groups[ALL_STRIPS]
    assert (limits.review.value, limits.has_reject) == (2.5, False)
    assert limits.reject.rate_low <= limits.reject.rate <= limits.reject.rate_high


def test_ten_strips_have_a_reject_threshold_above_review() -> None:
    limits = calibrated(np.random.default_rng(0).gamma(3.0, size=MIN_STRIPS)).groups[ALL_STRIPS]
    assert limits.has_reject
    assert limits.review.extrapolated
    assert limits.reject.value > limits.review.value


def test_equal_rates_reject_every_flagged_strip() -> None:
    assert calibrated(np.arange(1.0, 5.0), false_alarm_rate=0.01, reject_rate=0.01).groups[ALL_STRIPS].has_reject


def test_reject_never_lies_below_review() -> None:
    """Of two strips far off, one sets the conformal review threshold."""
    rng = np.random.default_rng(0)
    scores = np.concatenate([1 + 0.1 * rng.standard_normal(118), [50.0, 51.0]])
    limits = calibrated(scores).groups[ALL_STRIPS]
    assert limits.reject.value >= limits.review.value == 50.0


def test_calibrations_of_earlier_versions_are_read() -> None:
    calibration = calibrated(np.arange(1.0, 400.0))
    body = dump(calibration).replace(b',\n        "extrapolated": false', b"")
    assert b"extrapolated" not in body
    assert parse(Calibration, body, "calibration", "none") == calibration
