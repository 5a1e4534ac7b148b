"""The bank page's first screen, and what it says of its strips. Pure functions of `BankData`."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import stats

from steelray.models.calibration import Calibration
from steelray.models.odd import Setters, named_groups, setters_in_words, threshold_setters
from steelray.report.checks import Check, Level, support_checks
from steelray.report.data import BankData
from steelray.report.power_section import CANNOT_DECIDE, power_checks
from steelray.report.words import number, percent

MIN_SEQUENCE = 20
"""Fewer strips show no drift over their order."""
SIGNIFICANT = 0.001
MIN_CHANGE = 0.5
"""A drift counts from this share of the interquartile range on."""
NUM_NAMED = 3


@dataclass(frozen=True)
class BrightnessDrift:
    """Median brightness of the first and of the last fifth of a group's strips, in the order of their keys."""

    group: str
    first: float
    last: float
    drifted: bool


def brightness_in_order(rows: pa.Table, calibration: Calibration) -> dict[str, NDArray[np.float64]]:
    """Return the brightness of each group's strips in the order of their keys, which often follow the time."""
    found: dict[str, list[float]] = {}
    ordered = rows.select(["image_key", "mean_brightness"]).sort_by("image_key").to_pylist()
    for row in ordered:
        if row["mean_brightness"] is not None and np.isfinite(row["mean_brightness"]):
            found.setdefault(calibration.group_of(row["image_key"]), []).append(row["mean_brightness"])
    return {group: np.array(values) for group, values in found.items()}


def brightness_drifts(rows: pa.Table, calibration: Calibration) -> list[BrightnessDrift]:
    """Look for a drift of brightness over the keys' order, in every group with enough strips."""
    found = []
    for group, values_N in brightness_in_order(rows, calibration).items():
        if len(values_N) < MIN_SEQUENCE:
            continue
        fifth = len(values_N) // 5
        first, last = float(np.median(values_N[:fifth])), float(np.median(values_N[-fifth:]))
        spread = float(np.subtract(*np.quantile(values_N, (0.75, 0.25))))
        moved = abs(last - first) > MIN_CHANGE * spread
        drifted = moved and float(stats.spearmanr(np.arange(len(values_N)), values_N).pvalue) < SIGNIFICANT
        found.append(BrightnessDrift(group, first, last, drifted))
    return found


def oddest_rows(rows: pa.Table, calibration: Calibration) -> NDArray[np.int64]:
    """Return the indices of the rows by falling score, each measured in review thresholds of its group."""
    scores_N = rows["anomaly_score"].to_numpy().astype(np.float64)
    groups = [calibration.group_of(key) for key in rows["image_key"].to_pylist()]
    limits_N = np.array([calibration.thresholds_of(group).review.value for group in groups])
    times_N = scores_N / limits_N if (limits_N > 0).all() else scores_N
    return np.lexsort((np.arange(len(scores_N)), -times_N))


def setters_of(data: BankData) -> list[Setters]:
    """Return the strips that set a threshold by themselves."""
    scores_N = data.rows["anomaly_score"].to_numpy()
    return threshold_setters(data.calibration, data.rows["image_key"].to_pylist(), scores_N)


def image_sizes(rows: pa.Table) -> list[tuple[tuple[int, int], int]]:
    """Count the strips by height and width in pixels, the most frequent size first."""
    sizes = zip(rows["height_px"].to_pylist(), rows["width_px"].to_pylist(), strict=True)
    return Counter(sizes).most_common()


def bank_checks(data: BankData) -> list[Check]:
    """Check what a person must know before the bank is used, most important first."""
    return [
        *(power_checks(data.findings.power) if data.findings.power is not None else ()),
        *_setters(data),
        *support_checks(data.calibration.groups),
        *_suspects(data),
        *_strips(data),
        _coverage(data),
    ]


def _setters(data: BankData) -> Iterator[Check]:
    setters = setters_of(data)
    for found in setters:
        several = len(found.image_keys) > 1
        title = f"{'Some strips set' if several else 'One strip alone sets'} a threshold"
        yield Check(Level.LOOK, title, setters_in_words(found), "oddest")
    if not setters:
        yield Check(Level.OK, "No strip alone sets a threshold", "the oddest strips are not far off", "oddest")


def _suspects(data: BankData) -> Iterator[Check]:
    suspects = data.findings.suspects
    if suspects:
        strips = len({suspect.image_key for suspect in suspects})
        detail = f"{number(len(suspects))} in {number(strips)} strips: look whether they are defects"
        yield Check(Level.LOOK, "Suspicious patches in nominal strips", detail, "suspects")


def _strips(data: BankData) -> Iterator[Check]:
    sizes = image_sizes(data.rows)
    if len(sizes) > 1:
        (height_px, width_px), count = sizes[0]
        detail = (
            f"{len(sizes)} sizes; {percent(count / data.rows.num_rows)} of the strips are {width_px}×{height_px} px"
        )
        yield Check(Level.NOTE, "Strips differ in size", detail, "strips")
    if data.skipped:
        reasons = ", ".join(f"{number(count)} {status}" for status, count in data.skipped.items())
        yield Check(Level.LOOK, "Nominal images were skipped", reasons, "strips")
    drifts = brightness_drifts(data.rows, data.calibration)
    if not drifts:
        few = f"every group has fewer strips than the {MIN_SEQUENCE} that are needed"
        yield Check(Level.NOTE, "Drift of brightness not judged", few, "strips")
        return
    drifted = [drift for drift in drifts if drift.drifted]
    shown = max(drifted or drifts, key=lambda drift: abs(drift.last - drift.first))
    detail = (
        f"{named_groups([shown.group])}: median {shown.first:.3g} in the first fifth of the keys, {shown.last:.3g} in "
        "the last"
    )
    if drifted:
        yield Check(Level.LOOK, "Brightness drifts over the keys", f"{detail}: lamp or exposure has moved", "strips")
    else:
        yield Check(Level.OK, "Brightness is steady", detail, "strips")


def _coverage(data: BankData) -> Check:
    info = data.info
    share = info.num_vectors / max(1, info.coreset.num_candidates)
    detail = (
        f"{number(info.num_vectors)} of {number(info.coreset.num_candidates)} patches ({percent(share)}); every other "
        f"lies within {info.coreset.cover_radius:.3g} of one of them"
    )
    return Check(Level.NOTE, "Coverage of the bank", detail, "bank")


def bank_headline(data: BankData, checks: list[Check]) -> tuple[Level, str]:
    """Return the level and the sentence at the top of the page."""
    power = data.findings.power
    if power is not None and not power.can_decide:
        like = strips_to_add(data)
        return Level.PROBLEM, f"{CANNOT_DECIDE}; add strips like {like}"
    looks = sum(check.level == Level.LOOK for check in checks)
    if looks:
        return Level.LOOK, f"The bank is built; {'one thing needs' if looks == 1 else f'{looks} things need'} a look"
    return Level.OK, "The bank is built and sound"


def strips_to_add(data: BankData) -> str:
    """Name the strips that have no like among the others: more of their kind would lower the thresholds."""
    found = setters_of(data)
    keys = list(found[0].image_keys) if found else []
    if not keys:
        keys = data.rows["image_key"].take(oddest_rows(data.rows, data.calibration)[:NUM_NAMED]).to_pylist()
    return ", ".join(keys)
