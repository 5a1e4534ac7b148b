"""The oddest nominal strips: which of them set a threshold by themselves, and what either threshold costs.

A nominal strip with a defect, or of another steel, raises the threshold for all others. It cannot be told from a rare
good strip by its score alone, so the strips are named for a person to look at.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    return [
        *(setters_in_words(setters) for setters in threshold_setters(calibration, image_keys, scores_N)),
        *support_warnings(calibration.groups),
    ]


def setters_in_words(setters: Setters) -> str:
    """Say which strips set a threshold."""
    group, one = named_groups([setters.group]), len(setters.image_keys) == 1
    sets, them = ("alone sets", "it") if one else ("together set", "them")
    return (
        f"{' and '.join(setters.image_keys)} {sets} the review threshold of {group}: {setters.value:.4g} with {them}, "
        f"{setters.value_without:.4g} without; look at {them} on the bank page, and exclude {them} unless nominal"
    )


def support_warnings(groups: Mapping[str, GroupThresholds]) -> Iterator[str]:
    """Yield a line for the groups whose strips are too few for a rate, and one for extrapolated rates."""
    few = [limits for limits in groups.values() if limits.review.rate > limits.review.asked_rate]
    if few:
        least = min(few, key=lambda limits: limits.num_strips)
        yield (
            f"{named_groups([limits.group for limits in few])}: {least.num_strips} nominal strips support a "
            f"false-alarm rate of {least.review.rate:.3f} at best, {least.review.asked_rate} was asked for: "
            "add nominal strips"
        )
    for level in ("review", "reject"):
        own = [limits for limits in groups.values() if getattr(limits, level).extrapolated]
        own = [limits for limits in own if level == "review" or limits.has_reject]
        if own:
            least = min(own, key=lambda limits: limits.num_strips)
            threshold: Threshold = getattr(least, level)
            yield (
                f"{named_groups([limits.group for limits in own])}: the {level} threshold is extrapolated from "
                f"{least.num_strips} strips to a false-alarm rate of {threshold.rate}; the true rate lies between "
                f"{threshold.rate_low:.2g} and {threshold.rate_high:.2g}"
            )
    without = [limits for limits in groups.values() if not limits.has_reject]
    if without:
        least = min(without, key=lambda limits: limits.num_strips)
        yield (
            f"{named_groups([limits.group for limits in without])}: {least.num_strips} nominal strips support no "
            "reject threshold above that of review: no strip gets the verdict reject"
        )


def named_groups(groups: Sequence[str]) -> str:
    """Name groups, the first of them if there are many."""
    names = [name or "all strips" for name in groups]
    more = len(names) - NAMED_GROUPS
    return ", ".join(names[:NAMED_GROUPS]) + (f" and {more} more group{'s' if more > 1 else ''}" if more > 0 else "")
