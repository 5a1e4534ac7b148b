"""Drift: tests whether a run's strips still resemble those that its thresholds rest on. Pure statistics on arrays.

Two comparisons per group, each in mean brightness, anomaly score and mean anomaly map value (for PatchCore the mean
patch distance):

* this run with the calibration strips: population stability index and two-sample Kolmogorov-Smirnov test;
* medians over the last runs: Kendall's tau and Theil-Sen slope.

A warning needs a significant test and a large effect. Tests alone would warn on every large archive, because the strips
of one run resemble each other more than a test assumes; effects alone would warn on every small group. All tests of a
run share its false-alarm rate (Bonferroni).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from steelray.models.calibration import ALL_STRIPS
from steelray.runs.record import GroupSummary, Measure, RunSummary
from steelray.schema import Status

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
FALSE_ALARM_RATE = 0.01
"""Share of runs over unchanged strips that may give any warning."""
MIN_STRIPS = 20
"""A group with fewer strips on either side is not judged."""
MIN_PSI = 0.2
"""Index above which a shift counts, as is usual: below 0.1 is steady, above 0.2 shifted."""
MIN_RUNS = 6
"""Fewer runs make no trend."""
MIN_TREND_CHANGE = 0.5
"""Change over the runs that is worth a warning, in interquartile ranges of the calibration strips."""

MEASURES: dict[Measure, str] = {"brightness": "mean_brightness", "score": "anomaly_score", "distance": "map_mean"}
"""Measures that are compared, and the columns of `SCORES` that hold them."""
State = Literal["steady", "drifted", "too_few", "absent"]


Sample = Mapping[Measure, NDArray[np.floating[Any]]]
"""The scored strips of one group: an array of finite values for each measure."""


@dataclass(frozen=True)
class Shift:
    """One group of a run beside its calibration strips, in one measure; `reason` says in plain words what to do.

    Quantiles are at `QUANTILES` (empty without strips); psi, ks and p_value are None if the group is not judged.
    """

    group: str
    measure: Measure
    num_reference: int
    num_current: int
    reference_quantiles: tuple[float, ...]
    current_quantiles: tuple[float, ...]
    psi: float | None
    ks: float | None
    p_value: float | None
    state: State
    reason: str


@dataclass(frozen=True)
class Trend:
    """One group's medians over the last runs; `change` is the Theil-Sen slope times the runs it covers."""

    group: str
    measure: Measure
    num_runs: int
    change: float | None
    p_value: float | None
    state: State
    reason: str


def samples_by_group(scores: pa.Table) -> dict[str, Sample]:
    """Return the scored strips of a table of schema `SCORES` by group, `ALL_STRIPS` first."""
    scored = scores.filter(pc.equal(scores["status"], Status.OK.value))
    columns = {measure: scored[name].to_numpy().astype(np.float64) for measure, name in MEASURES.items()}
    group_N = np.asarray(scored["group"].to_pylist(), dtype=object)
    members = {ALL_STRIPS: np.ones(len(group_N), dtype=bool)}
    members.update({group: group_N == group for group in sorted(_named_groups(scores))})
    return {
        group: {measure: values_N[own_N & np.isfinite(values_N)] for measure, values_N in columns.items()}
        for group, own_N in members.items()
    }


def _named_groups(scores: pa.Table) -> set[str]:
    return {group for group in scores["group"].unique().to_pylist() if group}


def summarize_run(run_id: str, finished_at: str, scores: pa.Table) -> RunSummary:
    """Return the numbers of a finished run that later runs are compared with."""
    flagged = scores.filter(scores["is_anomalous"])  # a row without a score has none
    flagged_in = Counter(flagged["group"].to_pylist())
    summaries = tuple(
        GroupSummary(
            group=group,
            num_scored=len(sample["score"]),
            num_flagged=flagged.num_rows if group == ALL_STRIPS else flagged_in[group],
            medians={measure: float(np.median(values_N)) for measure, values_N in sample.items() if len(values_N)},
        )
        for group, sample in samples_by_group(scores).items()
    )
    num_failed = scores.num_rows - summaries[0].num_scored
    return RunSummary(run_id, finished_at, scores.num_rows, num_failed, flagged.num_rows, summaries)


def population_stability_index(reference_N: ArrayLike, current_N: ArrayLike, num_bins: int = 10) -> float:
    """Return PSI, the sum over bins of (q - p) ln(q / p), with bins at the reference's quantiles.

    Every bin gets half a strip more, so that an empty bin weighs much, but not infinitely. Equal values share a bin.
    """
    reference_N, current_N = np.asarray(reference_N, np.float64), np.asarray(current_N, np.float64)
    edges = np.unique(np.quantile(reference_N, np.arange(1, num_bins) / num_bins))
    counts_2B = [
        np.bincount(np.searchsorted(edges, values_N), minlength=len(edges) + 1) + 0.5
        for values_N in (reference_N, current_N)
    ]
    p_B, q_B = (counts_B / counts_B.sum() for counts_B in counts_2B)
    return float(((q_B - p_B) * np.log(q_B / p_B)).sum())


def detect_shifts(
    reference: Mapping[str, Sample], current: Mapping[str, Sample], false_alarm_rate: float = FALSE_ALARM_RATE
) -> tuple[Shift, ...]:
    """Compare a run with the held-out nominal strips, for every group and measure; drifted ones come first.

    At most `false_alarm_rate` of the runs over unchanged strips give any warning.
    """
    groups = _judged([*current, *(group for group in reference if group not in current)])
    alpha = false_alarm_rate / max(1, len(groups) * len(MEASURES))
    shifts = [
        _shift(group, measure, reference.get(group, {}), current.get(group, {}), alpha)
        for group in groups
        for measure in MEASURES
    ]
    return tuple(sorted(shifts, key=lambda shift: (shift.state != "drifted", -(shift.psi or 0.0))))


def _judged(groups: list[str]) -> list[str]:
    """Leave out all strips together if there are groups: a different mix of groups would look like drift."""
    return [group for group in groups if group != ALL_STRIPS] or groups


def _quantiles(values_N: NDArray[np.floating[Any]]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.quantile(values_N, QUANTILES)) if len(values_N) else ()


def _shift(group: str, measure: Measure, reference: Sample, current: Sample, alpha: float) -> Shift:
    before_N, now_N = (np.asarray(sample.get(measure, ())) for sample in (reference, current))
    before, now = _quantiles(before_N), _quantiles(now_N)
    psi = ks = p_value = None
    state: State
    if len(now_N) == 0 and len(before_N) >= MIN_STRIPS:
        state, reason = "absent", "no strip of this group arrived, although the calibration has some"
    elif (smaller := min(len(before_N), len(now_N))) < MIN_STRIPS:
        side = "calibration strips" if len(before_N) <= len(now_N) else "strips of this run"
        state, reason = "too_few", f"{smaller} {side} are too few to judge; {MIN_STRIPS} are needed"
    else:
        num_bins = min(10, smaller // 5)
        psi = population_stability_index(before_N, now_N, num_bins)
        test: Any = stats.ks_2samp(before_N, now_N, method="asymp")
        ks, p_value = float(test.statistic), float(test.pvalue)
        # on unchanged strips the index is close to chi-square / (nm / (n + m)), which gives what chance alone reaches
        chance = stats.chi2.isf(alpha, num_bins - 1) * (1 / len(before_N) + 1 / len(now_N))
        drifted = p_value < alpha and psi > max(MIN_PSI, float(chance))
        state = "drifted" if drifted else "steady"
        reason = _shift_reason(measure, before, now, psi) if drifted else "as at calibration"
    return Shift(group, measure, len(before_N), len(now_N), before, now, psi, ks, p_value, state, reason)


def _shift_reason(measure: Measure, before: tuple[float, ...], now: tuple[float, ...], psi: float) -> str:
    """Name the median if it moved, else the 95 % quantile if that moved, else the spread."""
    noticeable = 0.25 * (before[3] - before[1])
    for name, index in (("median", 2), ("95 % quantile", 4)):
        numbers = f"{name} {before[index]:.3g} → {now[index]:.3g}, PSI {psi:.2f}"
        if abs(now[index] - before[index]) > noticeable:
            return _advice(measure, now[index] > before[index], "than at calibration", numbers)
    return f"{_PLURAL[measure]} spread differently than at calibration ({numbers}): compare the two histograms"


_PLURAL: dict[Measure, str] = {"brightness": "brightness values", "score": "scores", "distance": "patch distances"}


def _advice(measure: Measure, rising: bool, compared: str, numbers: str) -> str:
    if measure == "brightness":
        word = "brighter" if rising else "darker"
        return f"strips are {word} {compared} ({numbers}): check lamps, exposure and lens, then recalibrate"
    if rising:
        remedy = "expect more false alarms; if the strips are good, recalibrate"
        return f"{_PLURAL[measure]} run higher {compared} ({numbers}): {remedy}"
    return f"{_PLURAL[measure]} run lower {compared} ({numbers}): defects may be missed; check focus and exposure"


def detect_trends(
    runs: Sequence[RunSummary],
    reference: Mapping[str, Sample],
    max_runs: int = 14,
    false_alarm_rate: float = FALSE_ALARM_RATE,
) -> tuple[Trend, ...]:
    """Find medians that move one way over the last `max_runs`, for every group; drifted ones come first.

    `runs` are oldest first, this one last. The yardstick is the interquartile range of the calibration strips.
    """
    if not runs:
        return ()
    runs = runs[-max_runs:]
    groups = _judged([summary.group for summary in runs[-1].groups])
    alpha = false_alarm_rate / max(1, len(groups) * len(MEASURES))
    trends = [_trend(group, measure, runs, reference.get(group, {}), alpha) for group in groups for measure in MEASURES]
    return tuple(sorted(trends, key=lambda trend: trend.state != "drifted"))


def _trend(group: str, measure: Measure, runs: Iterable[RunSummary], reference: Sample, alpha: float) -> Trend:
    own = [summary for run in runs for summary in run.groups if summary.group == group]
    medians = np.array([s.medians[measure] for s in own if s.num_scored >= MIN_STRIPS and measure in s.medians])
    yardstick_N = np.asarray(reference.get(measure, ()))
    if len(medians) < MIN_RUNS or len(yardstick_N) < MIN_STRIPS:
        few_runs = f"{len(medians)} runs are too few to see a trend; {MIN_RUNS} are needed"
        few_strips = f"{len(yardstick_N)} calibration strips are too few to judge; {MIN_STRIPS} are needed"
        reason = few_runs if len(medians) < MIN_RUNS else few_strips
        return Trend(group, measure, len(medians), None, None, "too_few", reason)
    change = float(stats.theilslopes(medians)[0]) * (len(medians) - 1)
    constant = bool((medians == medians[0]).all())
    p_value = 1.0 if constant else float(stats.kendalltau(np.arange(len(medians)), medians).pvalue)
    spread = float(np.subtract(*np.quantile(yardstick_N, (0.75, 0.25))))
    drifted = p_value < alpha and abs(change) > MIN_TREND_CHANGE * spread
    numbers = f"median {medians[0]:.3g} → {medians[-1]:.3g} in {len(medians)} runs"
    reason = _advice(measure, change > 0, "from run to run", numbers) if drifted else "no steady movement"
    return Trend(group, measure, len(medians), change, p_value, "drifted" if drifted else "steady", reason)


def warnings(shifts: Iterable[Shift], trends: Iterable[Trend]) -> tuple[str, ...]:
    """Return one line per finding that an operator must know, for the report and the job's summary."""
    findings: list[Shift | Trend] = [*shifts, *trends]
    found = [finding for finding in findings if finding.state == "drifted"]
    return tuple(f"{'all strips' if f.group == ALL_STRIPS else f.group}: {f.reason}" for f in found)
