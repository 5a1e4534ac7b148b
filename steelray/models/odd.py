"""The oddest nominal strips: which of them set a threshold by themselves, and what either threshold costs.

A nominal strip with a defect, or of another steel, raises the threshold for all others. It cannot be told from a rare
good strip by its score alone, so the strips are named for a person to look at.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from steelray.models.calibration import (
    ALL_STRIPS,
    CONFIDENCE,
    Calibration,
    GroupThresholds,
    Threshold,
    group_of,
    set_levels,
    threshold_value,
)

MAX_TOGETHER, STRIPS_EACH = 3, 8
"""Strips that are named together, at most, and strips of their group for each: fewer show no spread to compare with."""
LADDER = (1, 2, 3, 5, 10, 20)
"""Numbers of oddest strips without which thresholds are shown."""
NAMED_GROUPS = 3

Scores = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Setters:
    """The fewest strips that set the review threshold of a group by themselves, the oddest first."""

    group: str
    image_keys: tuple[str, ...]
    value: float
    value_without: float


@dataclass(frozen=True)
class Alternative:
    """The thresholds of a group without its oddest strips.

    Attributes:
        num_left_out: strips that are left out; 0 for the thresholds as they are.
        num_above: strips above the review threshold, those left out included.
        num_strips: all strips of the group.
    """

    group: str
    num_left_out: int
    review: Threshold
    reject: Threshold
    num_above: int
    num_strips: int

    @property
    def has_reject(self) -> bool:
        """Return whether any strip is rejected, as `GroupThresholds.has_reject`."""
        return self.reject.value > self.review.value or self.reject.asked_rate == self.review.asked_rate

    @property
    def share_above(self) -> tuple[float, float, float]:
        """Return the share above the threshold, with its 95 % interval: false alarms if all strips are nominal."""
        low, high = stats.binomtest(self.num_above, self.num_strips).proportion_ci(CONFIDENCE)
        return self.num_above / self.num_strips, float(low), float(high)


def scores_by_group(calibration: Calibration, image_keys: Sequence[str], scores_N: Scores) -> dict[str, NDArray[Any]]:
    """Return the indices of the strips behind the thresholds of each group, the oddest first."""
    members: dict[str, list[int]] = defaultdict(list)
    for row, key in enumerate(image_keys):
        members[group_of(key, calibration.group_pattern)].append(row)
    members[ALL_STRIPS] = list(range(len(image_keys)))
    order = {name: np.array(members[name], np.int64) for name in calibration.groups if members[name]}
    return {name: rows[np.argsort(-scores_N[rows], kind="stable")] for name, rows in order.items()}


def threshold_setters(calibration: Calibration, image_keys: Sequence[str], scores_N: Scores) -> list[Setters]:
    """Find the strips without which a review threshold falls by more than an interquartile range for each of them.

    The interquartile range of the scores is the yardstick because an odd strip does not change it. In simulations with
    30 to 200 strips it named a strip of normal scores in at most 3 of 100 cases, of skewed ones (gamma, lognormal) in
    up to 30 of 100, and a strip 6 standard deviations off that set the threshold in at least 90. Of several odd strips
    the first to fall below the others' threshold hides behind the next, so up to `MAX_TOGETHER` are left out at once.
    """
    found: dict[tuple[str, ...], Setters] = {}
    for name, rows in scores_by_group(calibration, image_keys, scores_N).items():
        rate, ordered = calibration.groups[name].review.asked_rate, scores_N[rows].astype(np.float64)
        value = threshold_value(ordered, rate)
        yardstick = float(np.subtract(*np.quantile(ordered, (0.75, 0.25))))
        for count in range(1, min(MAX_TOGETHER, len(rows) // STRIPS_EACH) + 1):
            without = threshold_value(ordered[count:], rate)
            if value - without > count * yardstick:
                keys = tuple(image_keys[row] for row in rows[:count])
                found.setdefault(keys, Setters(name, keys, value, without))
                break
    return list(found.values())


def alternatives(calibration: Calibration, image_keys: Sequence[str], scores_N: Scores) -> list[Alternative]:
    """Compute the thresholds of every group without its oddest strips, up to a quarter of them."""
    found = []
    for name, rows in scores_by_group(calibration, image_keys, scores_N).items():
        limits, ordered = calibration.groups[name], scores_N[rows].astype(np.float64)
        for count in (0, *(number for number in LADDER if number <= len(rows) // 4)):
            review, reject = limits.review, limits.reject
            if count:
                review, reject = set_levels(ordered[count:], review.asked_rate, reject.asked_rate)
            above = int((ordered > review.value).sum())
            found.append(Alternative(name, count, review, reject, above, len(rows)))
    return found


def calibration_warnings(calibration: Calibration, image_keys: Sequence[str], scores_N: Scores) -> list[str]:
    """Return what a person must know of a calibration, a line for each finding."""
    groups = calibration.groups
    support = (
        too_few(groups), extrapolation(groups, "review"), extrapolation(groups, "reject"), without_reject(groups)
    )  # fmt: skip
    setters = threshold_setters(calibration, image_keys, scores_N)
    return [*map(setters_in_words, setters), *filter(None, support)]


def setters_in_words(setters: Setters) -> str:
    """Say which strips set a threshold."""
    group, one = named_groups([setters.group]), len(setters.image_keys) == 1
    sets, them = ("alone sets", "it") if one else ("together set", "them")
    return (
        f"{' and '.join(setters.image_keys)} {sets} the review threshold of {group}: {setters.value:.4g} with {them}, "
        f"{setters.value_without:.4g} without; look at {them} on the bank page, and exclude {them} unless nominal"
    )


def too_few(groups: Mapping[str, GroupThresholds]) -> str | None:
    """Say which groups have too few strips for the rate that was asked for."""
    few = [limits for limits in groups.values() if limits.review.rate > limits.review.asked_rate]
    if not few:
        return None
    least = min(few, key=_num_strips)
    return (
        f"{_names(few)}: {least.num_strips} nominal strips support a false-alarm rate of {least.review.rate:.3f} at "
        f"best, {least.review.asked_rate} was asked for: add nominal strips"
    )


def extrapolation(groups: Mapping[str, GroupThresholds], level: Literal["review", "reject"]) -> str | None:
    """Say in which groups a threshold is extrapolated, and how far its true rate may be off."""
    own = [limits for limits in groups.values() if _level(limits, level).extrapolated]
    own = [limits for limits in own if level == "review" or limits.has_reject]
    if not own:
        return None
    least = min(own, key=_num_strips)
    threshold = _level(least, level)
    return (
        f"{_names(own)}: the {level} threshold is extrapolated from {least.num_strips} strips to a false-alarm rate of "
        f"{threshold.rate}; the true rate lies between {threshold.rate_low:.2g} and {threshold.rate_high:.2g}"
    )


def without_reject(groups: Mapping[str, GroupThresholds]) -> str | None:
    """Say in which groups no strip is rejected."""
    own = [limits for limits in groups.values() if not limits.has_reject]
    if not own:
        return None
    return (
        f"{_names(own)}: {min(map(_num_strips, own))} nominal strips support no reject threshold above that of review: "
        "no strip gets the verdict reject"
    )


def _level(limits: GroupThresholds, level: Literal["review", "reject"]) -> Threshold:
    return limits.review if level == "review" else limits.reject


def _num_strips(limits: GroupThresholds) -> int:
    return limits.num_strips


def _names(groups: Sequence[GroupThresholds]) -> str:
    return named_groups([limits.group for limits in groups])


def named_groups(groups: Sequence[str]) -> str:
    """Name groups, the first of them if there are many."""
    names = [name or "all strips" for name in groups]
    more = len(names) - NAMED_GROUPS
    return ", ".join(names[:NAMED_GROUPS]) + (f" and {more} more group{'s' if more > 1 else ''}" if more > 0 else "")
