"""Thresholds from scores of nominal strips, for stated false-alarm rates (conformal prediction), and their files.

Of n scores, a fresh nominal strip exceeds the k-th smallest, k = ceil((n + 1)(1 - rate)), with probability at
most `rate` (Vovk et al. 2005; exchangeable strips). Given these n strips, the true rate of the threshold is distributed
as Beta(n + 1 - k, k), which gives its confidence interval. If n is too small for the rate, the threshold is the largest
score, and the calibration says which rate that supports.

Calibrations are stored beside the model as calibrations/000001.json and so on, each with the score rows that it rests
on in a Parquet file. A newer one replaces an older one without rescoring.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.special import betaincinv

from steelray.config import CalibrationConfig, ConfigError, check_pattern, require
from steelray.description import dump, parse
from steelray.models import tail
from steelray.schema import SCORES
from steelray.storage.location import Location, ObjectMissing

ALL_STRIPS = ""
"""Name of the group of all strips, which small groups and unknown keys fall back to."""
CALIBRATIONS = "calibrations"
CONFIDENCE = 0.95
SHOWN = 3
"""Keys or groups that a message names."""
MIN_NOMINAL = 2


@dataclass(frozen=True)
class Threshold:
    """A limit on a score and its false-alarm rate.

    Attributes:
        value: a strip with a larger score is flagged.
        asked_rate: the requested false-alarm rate.
        rate: the guaranteed rate: `asked_rate`, or 1 / (n + 1) if there are too few strips for it.
        rate_low, rate_high: 95 % confidence interval of the true rate of this threshold.
        extrapolated: the rate is below 1 / (n + 1), and the value comes from a fitted tail.
    """

    value: float
    asked_rate: float
    rate: float
    rate_low: float
    rate_high: float
    extrapolated: bool = False


@dataclass(frozen=True)
class GroupThresholds:
    """The thresholds of one group of strips (a camera, a line, a grade).

    Attributes:
        group: its name; `ALL_STRIPS` for the one that holds every strip.
        num_strips: number of nominal strips that they rest on.
        review: a person looks at a strip that scores higher.
        reject: a strip that scores higher is not shipped without a review; see `has_reject`.
        pixel: a pixel with a larger anomaly_map value belongs to a defect; `pixel.rate` of nominal strips have one.
    """

    group: str
    num_strips: int
    review: Threshold
    reject: Threshold
    pixel: Threshold

    @property
    def has_reject(self) -> bool:
        """Return whether any strip is rejected: not if too few strips support a threshold above that of review."""
        return self.reject.value > self.review.value or self.reject.asked_rate == self.review.asked_rate


@dataclass(frozen=True)
class Calibration:
    """The thresholds that turn scores into verdicts, by group of strips.

    Attributes:
        group_pattern: regular expression over keys; its captures, joined by `/`, name a strip's group. None: one group.
        groups: thresholds by name of the group, `ALL_STRIPS` included.
        map_mean: median over nominal strips of their mean anomaly_map value, which is where a heatmap begins.
    """

    group_pattern: str | None
    groups: dict[str, GroupThresholds]
    map_mean: float

    def __post_init__(self) -> None:
        require(ALL_STRIPS in self.groups, f"groups has no thresholds of all strips ({ALL_STRIPS!r})")
        check_pattern(self.group_pattern)

    def group_of(self, image_key: str) -> str:
        """Return the group of a key."""
        return group_of(image_key, self.group_pattern)

    def thresholds_of(self, group: str) -> GroupThresholds:
        """Return a group's own thresholds, or those of all strips if the group is too small or unknown."""
        return self.groups.get(group) or self.groups[ALL_STRIPS]

    def heat_range(self, group: str) -> tuple[float, float]:
        """Return the anomaly map values of a heatmap's lowest and highest colour.

        The pixel threshold is in the middle between them.
        """
        pixel = self.thresholds_of(group).pixel.value
        return self.map_mean, max(2 * pixel - self.map_mean, self.map_mean + 1e-6)


@dataclass(frozen=True)
class CalibrationFile:
    """The head of a calibration's JSON file; the fields of `Calibration` follow."""

    version: int
    created_at: str
    source: str
    num_strips: int
    format_version: Literal[1] = 1


def group_of(image_key: str, group_pattern: str | None) -> str:
    """Return the captures of the pattern in a key, joined by `/`; the whole match if it has none; else `ALL_STRIPS`."""
    found = re.search(group_pattern, image_key) if group_pattern else None
    if found is None:
        return ALL_STRIPS
    return "/".join(part for part in found.groups() if part) if found.groups() else found.group()


def check_groups(image_keys: Sequence[str], group_pattern: str | None) -> None:
    """Raise `ConfigError` if the pattern names no group in any of the keys of nominal strips."""
    if group_pattern and image_keys and not any(group_of(key, group_pattern) for key in image_keys):
        raise ConfigError(
            f"group_pattern {group_pattern!r} matches none of {len(image_keys)} nominal keys, such as "
            f"{', '.join(image_keys[:SHOWN])}: correct it, or leave it empty for one group"
        )


def group_warnings(image_keys: Sequence[str], calibration: Calibration, what: str) -> list[str]:
    """Say which strips are judged by the thresholds of all strips, although there is a pattern that names groups.

    Args:
        what: name of the strips in the plural.
    """
    if calibration.group_pattern is None:
        return []
    warnings, counts = [], Counter(map(calibration.group_of, image_keys))
    if unnamed := counts.pop(ALL_STRIPS, 0):
        others = [key for key in image_keys if not calibration.group_of(key)][:SHOWN]
        warnings.append(
            f"group_pattern {calibration.group_pattern!r} does not match {unnamed} of {len(image_keys)} {what}, such "
            f"as {', '.join(others)}: these have the thresholds of all strips"
        )
    if small := [f"{name} ({count})" for name, count in counts.most_common() if name not in calibration.groups]:
        needed = math.ceil(1 / calibration.groups[ALL_STRIPS].review.asked_rate) - 1
        shown = ", ".join([*small[:SHOWN], *(["…"] if len(small) > SHOWN else [])])
        warnings.append(
            f"{len(small)} of {len(counts)} groups of {what} have the thresholds of all strips: {shown}; a group needs "
            f"{needed} held-out nominal strips for its own"
        )
    return warnings


def conformal_threshold(values_N: NDArray[np.floating[Any]], rate: float) -> Threshold:
    """Return the threshold that a fresh exchangeable value exceeds with probability at most `rate`.

    Raises:
        ValueError: there are no values, or one is not finite.
    """
    count = len(values_N)
    if count == 0 or not np.isfinite(values_N).all():
        raise ValueError("a threshold needs at least one score, and finite ones only")
    rank = min(math.ceil((count + 1) * (1 - rate)), count)
    edge = (1 - CONFIDENCE) / 2
    low, high = (float(betaincinv(count + 1 - rank, rank, share)) for share in (edge, 1 - edge))
    value = float(np.sort(values_N)[rank - 1])
    return Threshold(value, rate, max(rate, 1 / (count + 1)), low, high)


def set_threshold(values_N: NDArray[np.floating[Any]], rate: float) -> Threshold:
    """Return the conformal threshold of a rate, or an extrapolated one if the values are too few for the rate.

    Raises:
        ValueError: there are no values, or one is not finite.
    """
    conformal = conformal_threshold(values_N, rate)
    if conformal.rate <= rate or len(values_N) < tail.MIN_STRIPS:
        return conformal
    value, low, high = tail.extrapolated(values_N, rate)
    return Threshold(value, rate, rate, low, high, extrapolated=True)


def threshold_value(values_N: NDArray[np.floating[Any]], rate: float) -> float:
    """Return the value of `set_threshold` without the cost of its interval."""
    conformal = conformal_threshold(values_N, rate)
    if conformal.rate <= rate or len(values_N) < tail.MIN_STRIPS:
        return conformal.value
    return float(tail.fit_tail(values_N).value(rate))


def set_levels(
    scores_N: NDArray[np.floating[Any]], false_alarm_rate: float, reject_rate: float
) -> tuple[Threshold, Threshold]:
    """Return the thresholds of review and reject; the second is never the lower one."""
    review, reject = (set_threshold(scores_N, rate) for rate in (false_alarm_rate, reject_rate))
    if reject.value <= review.value:
        reject = replace(review, asked_rate=reject.asked_rate)
    return review, reject


def calibrate(
    image_keys: Sequence[str],
    scores_N: NDArray[np.floating[Any]],
    map_peaks_N: NDArray[np.floating[Any]],
    map_means_N: NDArray[np.floating[Any]],
    config: CalibrationConfig,
) -> Calibration:
    """Set all thresholds on nominal strips.

    Args:
        map_peaks_N, map_means_N: the largest and the mean anomaly_map value of each strip.

    Raises:
        ConfigError: there are no strips, their scores are not finite, or the pattern names no group of them.
    """
    check_groups(image_keys, config.group_pattern)
    members: dict[str, list[int]] = defaultdict(list)
    for row, key in enumerate(image_keys):
        members[group_of(key, config.group_pattern)].append(row)
    groups: dict[str, GroupThresholds] = {}
    try:
        for name, rows in [(ALL_STRIPS, list(range(len(image_keys)))), *sorted(members.items())]:
            # thresholds of its own need as many strips as the rate takes; ALL_STRIPS is also the group of other keys
            if name in groups or (groups and len(rows) + 1 < 1 / config.false_alarm_rate):
                continue
            review, reject = set_levels(scores_N[rows], config.false_alarm_rate, config.reject_rate)
            pixel = set_threshold(map_peaks_N[rows], config.false_alarm_rate)
            groups[name] = GroupThresholds(name, len(rows), review, reject, pixel)
    except ValueError as error:
        raise ConfigError(f"no threshold can be set on {len(scores_N)} held-out strips: {error}") from None
    return Calibration(config.group_pattern, groups, float(np.median(map_means_N)))


def split_nominal(strips: Sequence[str], config: CalibrationConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split nominal images into those to fit on and those to calibrate on; with a fraction of 0 both are all of them.

    Args:
        strips: the strip that each image shows or is a part of; the parts of a strip stay together.

    Returns:
        Rows to fit on and rows held out, each in ascending order.

    Raises:
        ConfigError: fewer than two strips.
    """
    names = sorted(set(strips))
    if (count := len(names)) < MIN_NOMINAL:
        raise ConfigError(f"{count} nominal image(s): at least {MIN_NOMINAL} are needed, to compare one with the other")
    if config.held_out_fraction == 0:
        return np.arange(len(strips)), np.arange(len(strips))
    num_held_out = min(count - 1, max(1, round(config.held_out_fraction * count)))
    order = np.random.default_rng(config.seed).permutation(count)
    held_out = {names[place] for place in order[:num_held_out]}
    is_held_out = np.array([strip in held_out for strip in strips])
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def read_calibration(uri: str, version: int | None = None) -> tuple[Calibration, int]:
    """Return a model's calibration, the newest by default, and its version.

    Raises:
        ConfigError: there is none, or its file is damaged.
    """
    location = Location(uri)
    versions = _versions(location)
    if not versions or (version is not None and version not in versions):
        raise ConfigError(f"{uri}: no calibration {version or ''} (there are {versions}): run jobs/calibrate.py")
    version = versions[-1] if version is None else version
    name, remedy = f"{CALIBRATIONS}/{version:06d}.json", "run jobs/calibrate.py"
    body, file = location.read(name), f"{location}/{name}"
    parse(CalibrationFile, body, file, remedy)
    return parse(Calibration, body, file, remedy), version


def read_calibration_rows(uri: str, version: int) -> pa.Table:
    """Return the score rows that a calibration rests on; an empty table if they were not kept."""
    try:
        body = Location(uri).read(f"{CALIBRATIONS}/{version:06d}.parquet")
    except ObjectMissing:
        return SCORES.empty_table()
    return pq.read_table(pa.BufferReader(body))


def write_calibration(uri: str, calibration: Calibration, rows: pa.Table, source: str) -> int:
    """Store a calibration as the newest version and return its number.

    Args:
        rows: score rows (schema `SCORES`) of the nominal strips that it rests on.
        source: origin of the rows, in words.

    Raises:
        ObjectChanged: another calibration was added at the same time.
    """
    location = Location(uri)
    version = (_versions(location) or [0])[-1] + 1
    groups = [calibration.group_of(key) for key in rows.column("image_key").to_pylist()]
    rows = rows.set_column(rows.schema.get_field_index("group"), SCORES.field("group"), pa.array(groups, pa.string()))
    body = pa.BufferOutputStream()
    pq.write_table(rows, body)
    head = CalibrationFile(version, datetime.now(UTC).isoformat(timespec="seconds"), source, rows.num_rows)
    location.write(f"{CALIBRATIONS}/{version:06d}.parquet", body.getvalue().to_pybytes())
    location.write_if(f"{CALIBRATIONS}/{version:06d}.json", dump(calibration, **asdict(head)), None)
    return version


def _versions(location: Location) -> list[int]:
    names = [stored.key for stored in (location / CALIBRATIONS).list()]
    return sorted(int(name.removesuffix(".json")) for name in names if name.endswith(".json"))
