"""`render_report` and `render_index`: self-contained HTML pages that load nothing and trust no name.

Everything that comes from a run stays text: templates escape it, the table travels as JSON without markup, and the
page's own policy (CSP) runs no script but its own two, which it knows by their digests.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache, partial
from typing import Any

import jinja2
import pyarrow.compute as pc
from markupsafe import Markup

from steelray.models.calibration import ALL_STRIPS
from steelray.report import drift, words
from steelray.report.checks import flags_by_group, headline, run_checks
from steelray.report.data import GalleryItem, IndexEntry, ReportData, safe_url
from steelray.report.figures import MAX_RUNS, drift_charts, index_charts, score_charts, trend_charts
from steelray.report.rows import Counts, fitting_rows
from steelray.schema import Verdict

MAX_ROWS_BYTES = 3_000_000
"""Size limit of the table in the page; rows that tell less are left out."""
MAX_DATA_BYTES = 7_500_000
"""Size limit of table and pictures together; the gallery leaves out the strips beyond it."""
NUM_EXAMPLES = 3
SCRIPTS = ("gallery.js", "table.js")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("steelray.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=words.number,
        percent=words.percent,
        moment=words.moment,
        status_title=words.status_title,
        measure=words.measure_title,
        score=words.score,
        data_uri=_data_uri,
    )
    return environment


def _data_uri(picture: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _own(name: str) -> Markup:
    """Return a style sheet or script of this package, unescaped."""
    loader = _environment().loader
    assert loader is not None
    return Markup(loader.get_source(_environment(), name)[0])  # noqa: S704 (our own file)


def _page(template: str, scripts: Sequence[str], **values: Any) -> str:
    sources = [_own(name) for name in scripts]
    digests = (base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in sources)
    hashes = Markup(" ").join(Markup("'sha256-{}'").format(digest) for digest in digests)
    return (
        _environment()
        .get_template(template)
        .render(style=_own("style.css"), scripts=sources, script_hashes=hashes, **values)
    )


def render_report(data: ReportData) -> str:
    """Render the page of one run as HTML; however large the run, it stays below 8 MB."""
    counts = Counts(data.scores)
    checks = run_checks(data, counts)
    level, sentence = headline(checks)
    rows_json, num_embedded = fitting_rows(data.scores, MAX_ROWS_BYTES)
    flags = flags_by_group(data, counts)
    return _page(
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
        cards=_cards(data, MAX_DATA_BYTES - len(rows_json)),
        flags=flags,
        score_charts=score_charts(data, flags),
        warnings=drift.warnings(data.shifts, data.trends),
        num_judged=sum(shift.state in ("steady", "drifted") for shift in data.shifts),
        drift_charts=drift_charts(data),
        trend_charts=trend_charts(data),
        num_runs=len(data.history) + 1,
        failures=_failures(data, counts),
        failed_share=counts.num_failed / max(1, counts.num_rows),
        num_embedded=num_embedded,
        rows_json=Markup(rows_json),  # noqa: S704 (holds no <, > or &)
        details=_details(data, counts),
    )


@dataclass(frozen=True)
class _Card:
    """A strip of the gallery; `times` is its score in review thresholds."""

    item: GalleryItem
    url: str | None
    times: str | None


def _cards(data: ReportData, max_bytes: int) -> list[_Card]:
    """Return the strips whose pictures fit, worst first."""
    review = {limits.group: limits.review.value for limits in data.thresholds}
    cards: list[_Card] = []
    spent = 0
    for item in data.gallery:
        spent += sum(-(-len(picture) // 3) * 4 for picture in _pictures(item))
        if spent > max_bytes:
            break
        limit = data.threshold_override
        if limit is None:
            limit = review.get(item.group, review.get(ALL_STRIPS))
        times = f"{item.score / limit:.2f}" if limit is not None and limit > 0 else None
        cards.append(_Card(item, safe_url(item.object_url), times))
    return cards


def _pictures(item: GalleryItem) -> Iterable[bytes]:
    pictures = (item.strip_jpeg, item.overlay_png, item.worst_patch_jpeg, item.nominal_patch_jpeg)
    return (picture for picture in pictures if picture is not None)


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
    return _page("index.html.j2", (), run_id="", lines=lines, charts=charts, num_runs=min(len(runs), MAX_RUNS))
