"""The charts of the report page and the index page, drawn from their data."""

from collections.abc import Mapping, Sequence
from datetime import datetime

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from steelray.models.calibration import ALL_STRIPS, GroupThresholds
from steelray.report import charts
from steelray.report.checks import GroupFlags
from steelray.report.data import BankData, ReportData
from steelray.report.drift import Sample, samples_by_group, summarize_run
from steelray.report.words import group_name, measure_title
from steelray.runs.record import Measure, RunSummary

MAX_CHARTS = 6
"""Charts of one kind; the tables hold the rest."""
MAX_RUNS = 30

Titled = tuple[str, Markup]


def score_charts(data: ReportData, flags: Sequence[GroupFlags]) -> list[Titled]:
    """Draw a histogram of every group's scores, those with most flags first."""
    samples = samples_by_group(data.scores)
    alone = len(flags) == 1
    chosen = sorted((flag for flag in flags if flag.num_scored), key=lambda flag: -flag.num_flagged)[:MAX_CHARTS]
    found = []
    for place, flag in enumerate(chosen):
        marks = [(data.threshold_override, "by hand", charts.REVIEW)] if data.threshold_override is not None else []
        if flag.limits is not None:
            marks = threshold_marks(flag.limits)
        # beside groups, strips without one have no histogram of their own
        sample = samples[ALL_STRIPS] if alone else samples.get(flag.group, {})
        if not alone and flag.group == ALL_STRIPS:
            continue
        reference = data.reference.get(ALL_STRIPS if alone and flag.group not in data.reference else flag.group, {})
        title = group_name(flag.group, alone=alone)
        found.append((title, _histogram("score", title, sample, reference, marks, f"score{place}")))
    return found


def threshold_marks(limits: GroupThresholds) -> list[charts.Mark]:
    """Return a group's thresholds as lines of a chart."""
    marks = [(limits.review.value, "review", charts.REVIEW)]
    return [*marks, (limits.reject.value, "reject", charts.REJECT)] if limits.has_reject else marks


def bank_charts(data: BankData, brightness: Mapping[str, NDArray[np.float64]]) -> dict[str, list[Titled]]:
    """Draw the nominal strips' scores by group of thresholds, and their brightness in the order of the keys."""
    samples, scores = samples_by_group(data.rows), []
    alone = len(data.calibration.groups) == 1
    for place, (group, limits) in enumerate(list(data.calibration.groups.items())[:MAX_CHARTS]):
        score_N = np.asarray(samples.get(group, {}).get("score", ()))
        if not len(score_N):
            continue
        title = "all strips" if group == ALL_STRIPS else group_name(group, alone=alone)
        marks = threshold_marks(limits)
        parts = [f"Histogram of {title}: scores of {len(score_N)} nominal strips, median {np.median(score_N):.3g}"]
        parts += [f"{text} threshold {value:.4g}" for value, text, _ in marks]
        labelled = [(value, f"{text} {value:.3g}", color) for value, text, color in marks]
        chart = charts.histogram(score_N, [], labelled, measure_title("score"), ", ".join(parts), f"score{place}")
        scores.append((title, chart))
    found: dict[str, list[Titled]] = {"scores": scores, "brightness": []}
    for place, (group, values_N) in enumerate(list(brightness.items())[:MAX_CHARTS]):
        title = group_name(group, alone=len(brightness) == 1)
        said = f"Brightness of {len(values_N)} nominal strips of {title} in the order of their keys, median"
        said = f"{said} {np.median(values_N):.3g}"
        chart = charts.sequence(values_N, "mean grey level", "place in the order of keys", said, f"order{place}")
        found["brightness"].append((title, chart))
    return found


def drift_charts(data: ReportData) -> list[Titled]:
    """Draw this run over the calibration strips, for every shift that counts."""
    samples = samples_by_group(data.scores)
    drifted = [shift for shift in data.shifts if shift.state == "drifted"][:MAX_CHARTS]
    found = []
    for place, shift in enumerate(drifted):
        title = f"{group_name(shift.group, alone=True)}: {measure_title(shift.measure).lower()}"
        sample, reference = samples.get(shift.group, {}), data.reference.get(shift.group, {})
        found.append((title, _histogram(shift.measure, title, sample, reference, [], f"drift{place}")))
    return found


def _histogram(
    measure: Measure, title: str, current: Sample, reference: Sample, marks: Sequence[charts.Mark], chart_id: str
) -> Markup:
    current_N, reference_N = (np.asarray(sample.get(measure, ())) for sample in (current, reference))
    parts = [f"Histogram of {title}: {measure_title(measure).lower()} of {len(current_N)} strips of this run"]
    if len(current_N):
        parts.append(f"median {np.median(current_N):.3g}")
    if len(reference_N):
        parts.append(f"against {len(reference_N)} calibration strips with median {np.median(reference_N):.3g}")
    parts += [f"{text} threshold {value:.4g}" for value, text, _ in marks]
    labelled = [(value, f"{text} {value:.3g}", color) for value, text, color in marks]
    return charts.histogram(current_N, reference_N, labelled, measure_title(measure), ", ".join(parts), chart_id)


def trend_charts(data: ReportData) -> list[Titled]:
    """Draw flag rate and medians over the last runs, this one last: all strips first, then groups with a trend."""
    if not data.history:
        return []
    this_run = summarize_run(data.run_id, data.finished_at.isoformat(), data.scores)
    runs = [*data.history, this_run][-MAX_RUNS:]
    found = _run_charts(runs, "trend")
    moving = [trend for trend in data.trends if trend.state == "drifted" and trend.group != ALL_STRIPS]
    for place, trend in enumerate(moving[:MAX_CHARTS]):
        title = f"{trend.group}: {measure_title(trend.measure).lower()}, median"
        values = [_median(run, trend.group, trend.measure) for run in runs]
        found.append((title, _line(values, runs, title, f"moving{place}", from_zero=False)))
    return found


def index_charts(runs: Sequence[RunSummary]) -> list[Titled]:
    """Draw flag rate and medians over the runs of the index page, oldest first."""
    return _run_charts(runs[-MAX_RUNS:], "index") if len(runs) > 1 else []


def _run_charts(runs: Sequence[RunSummary], name: str) -> list[Titled]:
    shares = [100 * run.num_flagged / max(1, run.num_rows - run.num_failed) for run in runs]
    series: list[tuple[str, list[float]]] = [("Flagged, % of scored strips", shares)]
    measures: tuple[Measure, ...] = ("score", "brightness")
    for measure in measures:
        series.append(
            (f"{measure_title(measure)}, median of all strips", [_median(r, ALL_STRIPS, measure) for r in runs])
        )
    failed = [100 * run.num_failed / max(1, run.num_rows) for run in runs]
    series.append(("Without a score, % of objects", failed))
    return [
        (title, _line(values, runs, title, f"{name}{place}", from_zero="%" in title))
        for place, (title, values) in enumerate(series)
        if np.isfinite(values).any()
    ]


def _median(run: RunSummary, group: str, measure: Measure) -> float:
    return next((float(s.medians[measure]) for s in run.groups if s.group == group and measure in s.medians), np.nan)


def _line(values: Sequence[float], runs: Sequence[RunSummary], title: str, chart_id: str, *, from_zero: bool) -> Markup:
    days = [datetime.fromisoformat(run.finished_at).strftime("%-d %b") for run in runs]
    finite = [value for value in values if np.isfinite(value)]
    description = f"{title}: {len(runs)} runs, now {values[-1]:.3g}, between {min(finite):.3g} and {max(finite):.3g}"
    return charts.trend(values, days, description, chart_id, from_zero=from_zero)
