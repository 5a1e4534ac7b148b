"""`render_report` and `render_index`: the pages of a run and of all runs.

Everything that comes from a run stays text, see steelray.report.html; the table travels as JSON without markup.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial

import pyarrow.compute as pc
from markupsafe import Markup

from steelray.models.calibration import ALL_STRIPS
from steelray.report import drift, words
from steelray.report.cards import fitting_cards
from steelray.report.checks import flags_by_group, headline, run_checks
from steelray.report.data import IndexEntry, ReportData, safe_url
from steelray.report.figures import MAX_RUNS, drift_charts, index_charts, score_charts, trend_charts
from steelray.report.html import render_page
from steelray.report.power_section import CANNOT_DECIDE, power_checks, power_section
from steelray.report.rows import Counts, fitting_rows
from steelray.schema import Verdict

MAX_ROWS_BYTES = 3_000_000
"""Size limit of the table in the page; rows that tell less are left out."""
MAX_DATA_BYTES = 7_500_000
"""Size limit of table and pictures together; the gallery leaves out the strips beyond it."""
NUM_EXAMPLES = 3
SCRIPTS = ("gallery.js", "table.js")
SAYS = (("true_alarm", "True alarm"), ("false_alarm", "False alarm"))
"""Verdicts on a strip, as jobs/review.py reads them, and their buttons."""


def render_report(data: ReportData) -> str:
    """Render the page of one run as HTML; however large the run, it stays below 8 MB."""
    counts = Counts(data.scores)
    checks = [*run_checks(data, counts), *power_checks(data.power)]
    level, sentence = headline(checks)
    if data.power is not None and not data.power.can_decide:
        sentence = f"{CANNOT_DECIDE}, so a strip that is not flagged may still be defective"
    rows_json, num_embedded = fitting_rows(data.scores, MAX_ROWS_BYTES)
    flags = flags_by_group(data, counts)
    return render_page(
        "report.html.j2",
        SCRIPTS,
        data=data,
        run_id=data.run_id,
        finished=data.finished_at,
        counts=counts,
        level=level,
        headline=sentence,
        checks=sorted(checks, key=lambda check: -check.level.urgency),
        groups=counts.groups,
        group_title=partial(words.group_name, alone=len(counts.groups) == 1),
        verdicts=[(verdict, words.VERDICTS[verdict]) for verdict in (Verdict.REJECT, Verdict.REVIEW, Verdict.NORMAL)],
        num_reject=counts.of(None, Verdict.REJECT),
        num_review=counts.of(None, Verdict.REVIEW),
        throughput=words.number(counts.num_rows / max(data.scoring_s, 1e-9), 1),
        took=words.duration((data.finished_at - data.started_at).total_seconds()),
        cards=fitting_cards(data.gallery, _limit_of(data), MAX_DATA_BYTES - len(rows_json)),
        says=SAYS,
        has_reject=_has_reject(data, counts),
        flags=flags,
        score_charts=score_charts(data, flags),
        warnings=drift.warnings(data.shifts, data.trends),
        num_judged=sum(shift.state in ("steady", "drifted") for shift in data.shifts),
        drift_charts=drift_charts(data),
        trend_charts=trend_charts(data),
        num_runs=len(data.history) + 1,
        power=power_section(data.power),
        failures=_failures(data, counts),
        failed_share=counts.num_failed / max(1, counts.num_rows),
        num_embedded=num_embedded,
        rows_json=Markup(rows_json),  # noqa: S704 (holds no <, > or &)
        details=_details(data, counts),
    )


def _limit_of(data: ReportData) -> Callable[[str], float | None]:
    """Return what gives the review threshold of a group."""
    review = {limits.group: limits.review.value for limits in data.thresholds}
    if data.threshold_override is not None:
        return lambda _: data.threshold_override
    return lambda group: review.get(group, review.get(ALL_STRIPS))


def _has_reject(data: ReportData, counts: Counts) -> bool:
    """Return whether any strip could have been rejected."""
    used = [flag.limits for flag in flags_by_group(data, counts) if flag.limits is not None]
    return any(limits.has_reject for limits in used) or counts.of(None, Verdict.REJECT) > 0


@dataclass(frozen=True)
class _Failure:
    """The objects without a score for one reason; `examples` are keys with their error."""

    status: str
    title: str
    advice: str
    count: int
    examples: list[tuple[str, str | None]]


def _failures(data: ReportData, counts: Counts) -> list[_Failure]:
    failures = []
    for status, count in counts.failures.items():
        title, advice = words.FAILURES.get(status, (status, ""))  # type: ignore[call-overload]
        rows = data.scores.filter(pc.equal(data.scores["status"], status)).slice(0, NUM_EXAMPLES)
        examples = zip(rows["image_key"].to_pylist(), rows["error"].to_pylist(), strict=True)
        failures.append(_Failure(status, title, advice, count, list(examples)))
    return failures


def _details(data: ReportData, counts: Counts) -> list[tuple[str, str]]:
    num_bytes = pc.sum(data.scores["size_bytes"]).as_py() or 0
    seconds = max(data.scoring_s, 1e-9)
    sums = ", ".join(
        f"{words.number(n)} {status}" for status, n in [("ok", counts.num_scored), *counts.failures.items()]
    )
    own = {
        "Run": data.run_id,
        "Archive": data.archive_uri,
        "Started": words.moment(data.started_at),
        "Finished": words.moment(data.finished_at),
        "Objects listed": words.number(data.num_listed),
        "Rows by status": f"{sums} = {words.number(counts.num_rows)}",
        "Scored by earlier runs": words.number(data.num_already_scored),
        "Scoring took": words.duration(data.scoring_s),
        "Throughput": f"{words.number(counts.num_rows / seconds, 1)} strips/s, {words.size(num_bytes / seconds)}/s",
        "Score table": data.table_uri or "",
    }
    return [(name, value) for name, value in {**own, **data.details}.items() if value]


def render_index(runs: Sequence[IndexEntry]) -> str:
    """Render the page over all runs, which may come in any order, as HTML with the newest first."""
    ordered = sorted(runs, key=lambda entry: entry.summary.finished_at, reverse=True)
    lines = [
        {
            **{name: value for name, value in vars(entry).items() if name != "summary"},
            "run": asdict(entry.summary),
            "href": safe_url(entry.report_href),
            "finished": words.moment(datetime.fromisoformat(entry.summary.finished_at)),
            "flagged_share": entry.summary.num_flagged / max(1, entry.summary.num_rows - entry.summary.num_failed),
            "failed_share": entry.summary.num_failed / max(1, entry.summary.num_rows),
        }
        for entry in ordered
    ]
    charts = index_charts([entry.summary for entry in reversed(ordered)])
    return render_page("index.html.j2", (), run_id="", lines=lines, charts=charts, num_runs=min(len(runs), MAX_RUNS))
