"""`render_report` and `render_index`: one self-contained HTML file each, without a network and without trust in names.

Everything that comes from a run is text: templates escape it, the table travels as JSON in which nothing is markup, and
the page's own policy (CSP) lets no other script run than the two that it came with, by their digests.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import cache, partial
from typing import Any

import jinja2
import pyarrow.compute as pc
from markupsafe import Markup

from steelray.report import drift, words
from steelray.report.checks import flags_by_group, headline, run_checks
from steelray.report.data import GalleryItem, IndexEntry, ReportData, safe_url
from steelray.report.figures import drift_charts, index_charts, score_charts, trend_charts
from steelray.report.rows import Counts, fitting_rows
from steelray.schema import Verdict

MAX_ROWS_BYTES = 3_000_000
"""What the table may weigh; of a larger one the less telling rows are left out."""
MAX_DATA_BYTES = 7_500_000
"""Table and pictures together; strips of the gallery beyond it are left to the table."""
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
    """A style sheet or script of this package, as it stands."""
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
    """The page of one run, as HTML. However large the run, it weighs less than 8 MB."""
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
        items=_gallery(data, MAX_DATA_BYTES - len(rows_json)),
        flags=[{**vars(flag), **_derived(flag)} for flag in flags],
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


def _derived(flag: Any) -> dict[str, Any]:
    return {
        "num_flagged": flag.num_flagged,
        "reading": flag.reading,
        "share": flag.num_flagged / max(1, flag.num_scored),
    }


def _gallery(data: ReportData, max_bytes: int) -> list[dict[str, Any]]:
    """The items that fit, worst first, with what the template derives from them."""
    review = {limits.group: limits.review.value for limits in data.thresholds}
    cards: list[dict[str, Any]] = []
    spent = 0
    for item in data.gallery:
        spent += sum(-(-len(picture) // 3) * 4 for picture in _pictures(item))
        if spent > max_bytes:
            break
        limit = data.threshold_override or review.get(item.group, review.get(drift.ALL_STRIPS))
        times = f"{item.score / limit:.2f}" if limit and limit > 0 else None
        cards.append({**vars(item), "url": safe_url(item.object_url), "times": times})
    return cards


def _pictures(item: GalleryItem) -> Iterable[bytes]:
    pictures = (item.strip_jpeg, item.overlay_png, item.worst_patch_jpeg, item.nominal_patch_jpeg)
    return (picture for picture in pictures if picture is not None)


def _failures(data: ReportData, counts: Counts) -> list[dict[str, Any]]:
    failures = []
    for status, count in counts.failures.items():
        title, advice = words.FAILURES.get(status, (status, ""))  # type: ignore[call-overload]
        rows = data.scores.filter(pc.equal(data.scores["status"], status)).slice(0, NUM_EXAMPLES)
        examples = zip(rows["image_key"].to_pylist(), rows["error"].to_pylist(), strict=True)
        failures.append(
            {"status": status, "title": title, "advice": advice, "count": count, "examples": list(examples)}
        )
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
    """The page over all runs, as HTML; in whatever order they come, the newest is shown first."""
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
    return _page("index.html.j2", (), run_id="", lines=lines, charts=charts, num_runs=min(len(runs), 30))
