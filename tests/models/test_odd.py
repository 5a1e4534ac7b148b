"""Odd nominal strips are named, and the thresholds without them computed."""

import numpy as np
import pytest
from numpy.typing import NDArray

from steelray.config import CalibrationConfig
from steelray.models.calibration import ALL_STRIPS, Calibration, calibrate
from steelray.models.odd import alternatives, calibration_warnings, threshold_setters

Scores = NDArray[np.float64]


def keys_of(scores: Scores) -> list[str]:
    return [f"line{number % 2}/{number:03d}.jpg" for number in range(len(scores))]


def calibrated(scores: Scores, **settings: object) -> Calibration:
    config = CalibrationConfig(**settings)  # type: ignore[arg-type]
    return calibrate(keys_of(scores), scores, scores, scores, config)


def normal(count: int, *odd: float, seed: int = 0) -> Scores:
    scores = 5 + np.random.default_rng(seed).standard_normal(count)
    scores[: len(odd)] = odd
    return scores


def named(scores: Scores, **settings: object) -> list[tuple[str, ...]]:
    return [
        setters.image_keys for setters in threshold_setters(calibrated(scores, **settings), keys_of(scores), scores)
    ]


@pytest.mark.parametrize("count", [8, 12, 30, 60])
def test_a_strip_that_alone_sets_the_threshold_is_named(count: int) -> None:
    scores = normal(count, 13.0)
    [setters] = threshold_setters(calibrated(scores), keys_of(scores), scores)
    assert setters.image_keys == ("line0/000.jpg",)
    assert setters.value == calibrated(scores).groups[ALL_STRIPS].review.value
    assert setters.value_without < 9


def test_two_odd_strips_do_not_hide_each_other() -> None:
    assert named(normal(60, 12.0, 13.0)) == [("line1/001.jpg", "line0/000.jpg")]


def test_an_odd_strip_that_sets_no_threshold_is_not_named() -> None:
    """Of 120 strips the highest two lie above the threshold anyway."""
    assert named(normal(120, 30.0)) == []


def test_strips_of_one_kind_are_rarely_named() -> None:
    assert sum(bool(named(normal(60, seed=seed))) for seed in range(100)) <= 8


@pytest.mark.parametrize("scores", [[3.0], [3.0, 9.0], [1.0, 2.0, 30.0], [2.0] * 40])
def test_too_few_strips_and_strips_all_alike_name_none(scores: list[float]) -> None:
    assert named(np.array(scores)) == []
    found = alternatives(calibrated(np.array(scores)), keys_of(np.array(scores)), np.array(scores))
    assert found[0].num_left_out == 0
    assert found[0].num_above == 0


def test_one_odd_strip_among_strips_all_alike_is_named() -> None:
    assert named(np.array([7.0, *[2.0] * 30])) == [("line0/000.jpg",)]


def test_scores_without_order_name_none() -> None:
    """If every strip is odd in its own way, none stands out."""
    assert named(np.geomspace(1, 2, 40)) == []


def test_a_group_is_judged_by_its_own_strips() -> None:
    scores = normal(120)
    scores[1::2] += 20
    scores[0] = 13.0  # odd in line 0, unremarkable among all
    pattern = r"^(line\d)/"
    assert named(scores, group_pattern=pattern) == [("line0/000.jpg",)]
    found = threshold_setters(calibrated(scores, group_pattern=pattern), keys_of(scores), scores)
    assert [setters.group for setters in found] == ["line0"]


def test_what_either_threshold_costs() -> None:
    scores = normal(60, 13.0)
    with_all, without, *_ = alternatives(calibrated(scores), keys_of(scores), scores)
    assert (with_all.num_left_out, with_all.num_above) == (0, 0)
    assert (without.num_left_out, without.num_strips) == (1, 60)
    assert without.review.value < with_all.review.value
    assert without.num_above == (scores > without.review.value).sum() >= 1
    share, low, high = without.share_above
    assert low < share == without.num_above / 60 < high


def test_the_warnings_say_what_to_do() -> None:
    scores = normal(60, 13.0)
    warnings = calibration_warnings(calibrated(scores), keys_of(scores), scores)
    assert warnings[0].startswith("line0/000.jpg alone sets the review threshold of all strips: 13 with it, ")
    assert warnings[1].endswith("no strip gets the verdict reject"), "the tail of the others ends below the odd strip"
    usual = normal(60)
    [warning] = calibration_warnings(calibrated(usual), keys_of(usual), usual)
    assert "the reject threshold is extrapolated from 60 strips to a false-alarm rate of 0.005" in warning
    few = normal(5)
    rates, reject = calibration_warnings(calibrated(few), keys_of(few), few)
    assert "support a false-alarm rate of 0.167 at best, 0.02 was asked for" in rates
    assert reject.endswith("no strip gets the verdict reject")
    many = normal(400)
    assert calibration_warnings(calibrated(many), keys_of(many), many) == []
