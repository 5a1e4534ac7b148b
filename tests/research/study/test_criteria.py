"""Criteria C1 to C6: each holds where it should and fails where one thing is wrong."""

import math

import numpy as np
import pytest

from steelray.research.study import criteria

STEPS = [20, 40, 60, 80, 90, 100]


@pytest.mark.parametrize(
    ("losses", "floor", "holds"),
    [
        ([0.9, 0.5, 0.3, 0.200, 0.199, 0.198], 0.20, True),
        ([0.9, 0.5, 0.3, 0.200, 0.199, 0.198], 0.19, False),  # above the floor
        ([0.9, 0.5, 0.3, 0.200, 0.180, 0.170], 0.20, False),  # still falling
        ([0.9, 0.5, 0.3, 0.200, math.nan, 0.198], 0.20, False),
    ],
)
def test_c1_needs_the_floor_and_rest(losses: list[float], floor: float, holds: bool) -> None:
    assert criteria.reconstruction_converged(losses, STEPS, floor) is holds


@pytest.mark.parametrize(
    ("focal", "average_precision", "holds"), [(0.007, 0.85, True), (0.009, 0.85, False), (0.007, 0.79, False)]
)
def test_c2_needs_focal_and_average_precision(focal: float, average_precision: float, holds: bool) -> None:
    assert criteria.segmentation_converged(focal, 0.032, average_precision) is holds


def test_c3_looks_at_the_last_fifth_only() -> None:
    wild_then_calm = [5.0, 0.1] * 40 + [1.0] * 20
    assert criteria.stability(wild_then_calm, [1.0] * 100, 5).holds
    assert not criteria.stability(wild_then_calm[::-1], [1.0] * 100, 5).holds


def test_c3_averages_over_epochs_before_it_takes_the_spread() -> None:
    alternating = [0.5, 1.5] * 50
    assert criteria.stability(alternating, [1.0] * 100, 2).cv == 0
    assert criteria.stability(alternating, [1.0] * 100, 1).cv == pytest.approx(0.5)


@pytest.mark.parametrize(("total", "norm"), [(9.0, 1.0), (1.0, 200.0), (math.nan, 1.0)])
def test_c3_fails_on_one_spike_in_loss_or_gradient_and_on_nan(total: float, norm: float) -> None:
    totals, norms = ([1.0] * 90 + [spike] + [1.0] * 9 for spike in (total, norm))
    assert not criteria.stability(totals, norms, 5).holds


def test_c4_counts_a_gap_either_way() -> None:
    assert criteria.gap_closed(criteria.gap(1.0, 1.09))
    assert not criteria.gap_closed(criteria.gap(1.0, 1.11))
    assert not criteria.gap_closed(criteria.gap(1.0, 0.8))


def test_c5_counts_from_the_last_time_that_it_came_below() -> None:
    assert criteria.first_step_below([3, 1, 3, 1, 1], [1, 2, 3, 4, 5], 2) == 4
    assert criteria.first_step_below([3, 1, 3], [1, 2, 3], 2) is None
    assert [criteria.speed(step) for step in (1_500, 1_501, 20_001, None)] == ["soon", "eventually", "never", "never"]


def test_c6_claims_from_ten_seeds_on() -> None:
    assert criteria.share_of_seeds([True] * 9 + [False])["claimed"]
    assert not criteria.share_of_seeds([True] * 9)["claimed"]
    assert criteria.share_of_seeds([True] * 4 + [False])["screened"]
    assert not criteria.share_of_seeds([True] * 8 + [False] * 2)["claimed"]
    assert not criteria.share_of_seeds([])["screened"]


def test_the_thesis_judges_the_smoothed_raw_total_by_epoch_50() -> None:
    falling = np.linspace(1.0, 0.05, 1000).tolist()
    assert criteria.thesis_converged(falling, 28)
    assert not criteria.thesis_converged([1.0] * 1500 + falling, 28)
    assert not criteria.thesis_converged([1.0, 0.05] * 500, 28)
