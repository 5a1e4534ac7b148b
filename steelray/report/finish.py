"""Finish a run: reconcile, quarantine, check drift, report, publish.

Knows no Ray. Every step can be repeated: a run that is killed here goes on where it stopped.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from steelray.config import Facts, JobFailed
from steelray.evaluation.power import read_power
from steelray.job import num_cores
from steelray.models.calibration import ALL_STRIPS, Calibration, group_warnings, read_calibration_rows
from steelray.models.model import Model
from steelray.provenance import git_commit, package_versions, run_record
from steelray.report import drift
from steelray.report.data import IndexEntry, ReportData
from steelray.report.gallery import GallerySource, make_gallery
from steelray.report.page import render_index, render_report
from steelray.runs.config import ScoreArchiveConfig
from steelray.runs.quarantine import excess, quarantine_of, write_quarantine
from steelray.runs.record import JobSummary, RunSummary
from steelray.runs.run import REPORT_FILE, RUNS, SCORES_DIR, Run, publish, published_runs, read_published
from steelray.storage.location import Location, ObjectChanged

INDEX_FILE = "index.html"
MAX_HISTORY = 60
"""Earlier runs that are read for trends and the index page."""


@dataclass(frozen=True)
class ScoringRun:
    """A scoring run with its settings, its model and the thresholds that judge it."""

    config: ScoreArchiveConfig
    run: Run
    model: Model
    calibration: Calibration
    calibration_version: int
    started_at: datetime
    num_already_scored: int = 0
    """Objects that this run leaves out because earlier runs have scored them."""


@dataclass(frozen=True)
class Findings:
    """A run compared with the calibration strips and with earlier runs."""

    summary: RunSummary
    history: tuple[RunSummary, ...]
    reference: dict[str, drift.Sample]
    shifts: tuple[drift.Shift, ...]
    trends: tuple[drift.Trend, ...]
    group_warnings: tuple[str, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return one line per finding that an operator must know."""
        return drift.warnings(self.shifts, self.trends)


def compare(scoring: ScoringRun, scores: pa.Table, finished_at: datetime) -> Findings:
    """Look for drift from the calibration strips, and over the last published runs of the same model."""
    summary = drift.summarize_run(scoring.run.run_id, finished_at.isoformat(timespec="seconds"), scores)
    reference = drift.samples_by_group(read_calibration_rows(scoring.model.uri, scoring.calibration_version))
    history = tuple(reversed(list(islice(_comparable(scoring), scoring.config.report.max_runs - 1))))
    shifts = drift.detect_shifts(reference, drift.samples_by_group(scores))
    trends = drift.detect_trends([*history, summary], reference, max_runs=scoring.config.report.max_runs)
    ungrouped = group_warnings(scores["image_key"].to_pylist(), scoring.calibration, "objects in the archive")
    return Findings(summary, history, reference, shifts, trends, tuple(ungrouped))


def _comparable(scoring: ScoringRun) -> Iterator[RunSummary]:
    """Yield the summaries of published runs of the same model, newest first."""
    for run, record in islice(published_runs(scoring.run.results_uri), MAX_HISTORY):
        if record.is_of(scoring.model) and run.run_id != scoring.run.run_id:
            yield record.night


def finish_run(
    scoring: ScoringRun, manifest: pa.Table, facts: Facts, *, num_scored_now: int, scoring_s: float
) -> JobSummary:
    """Reconcile, judge, report and publish a run whose rows are written.

    Args:
        facts: entries for run.json.
        num_scored_now: objects that this attempt has scored; earlier attempts scored the others.
        scoring_s: seconds that scoring them took.

    Raises:
        IncompleteRun: rows are missing; nothing is published.
        JobFailed: another run was published at the same time, or there are too many objects without a score.
    """
    config, run = scoring.config, scoring.run
    counts = run.reconcile(manifest)
    scores = run.scores()
    quarantine = quarantine_of(scores)
    write_quarantine(run.location, quarantine)
    finished_at = datetime.now(UTC)
    findings = compare(scoring, scores, finished_at)
    page = _report(scoring, manifest, scores, findings, finished_at, num_scored_now, scoring_s)
    run.location.write(REPORT_FILE, render_report(page).encode())
    calibrated = scoring.calibration.groups[ALL_STRIPS].review.value
    summary = JobSummary(
        run_id=run.run_id,
        counts=counts,
        already_scored=scoring.num_already_scored,
        quarantined=quarantine.num_rows,
        scored_now=num_scored_now,
        scoring_s=round(scoring_s, 2),
        images_per_s=round(num_scored_now / scoring_s, 2) if scoring_s else None,
        threshold=calibrated if config.threshold is None else config.threshold,
        drift_warnings=findings.warnings,
        scores_uri=f"{run.location}/{SCORES_DIR}",
        report_uri=f"{run.location}/{REPORT_FILE}",
        run_uri=str(run.location),
        group_warnings=findings.group_warnings,
    )
    found = {
        "warnings": findings.warnings,
        "shifts": [asdict(shift) for shift in findings.shifts],
        "trends": [asdict(trend) for trend in findings.trends],
    }
    record = {**facts, "night": asdict(findings.summary), "drift": found, "summary": asdict(summary)}
    run.finish(run_record(config, scoring.started_at, **record))
    return publish_run(run, summary, config.max_quarantine_share)


def publish_run(run: Run, summary: JobSummary, max_quarantine_share: float | None) -> JobSummary:
    """Publish a complete run, renew the index page, and only then raise `JobFailed` if the quarantine is too large."""
    try:
        if publish(run):
            write_index(run.results_uri)
    except ObjectChanged:
        raise JobFailed(
            f"run {run.run_id} is complete, but another was published at this moment: run the same command again",
            asdict(summary),
        ) from None
    if (complaint := excess(summary.counts, max_quarantine_share)) is not None:
        raise JobFailed(f"run {run.run_id} is complete and published, but {complaint}", asdict(summary))
    return summary


def _report(
    scoring: ScoringRun,
    manifest: pa.Table,
    scores: pa.Table,
    findings: Findings,
    finished_at: datetime,
    num_scored_now: int,
    scoring_s: float,
) -> ReportData:
    config, model = scoring.config, scoring.model
    source = GallerySource(
        archive=Location(config.archive.uri),
        model=model,
        calibration=scoring.calibration,
        decode=config.decode,
        compute=config.compute,
        num_threads=num_cores(),
        object_url=config.report.object_url,
    )
    if num_scored_now:  # if there were several attempts, take this one's rate for the whole run
        scoring_s *= scores.num_rows / num_scored_now
    else:
        times = pc.min_max(scores["scored_at"]).as_py()
        scoring_s = (times["max"] - times["min"]).total_seconds()
    versions = package_versions()
    details = {
        "Model": f"{model.method} {model.model_id} at {model.uri}",
        "Memory bank": f"{model.bank_id}, {model.bank.num_vectors} vectors" if model.bank is not None else "",
        "Members": "; ".join(f"{m.model_id} at {m.uri}" for m in model.ensemble.members) if model.ensemble else "",
        "Calibration": f"version {scoring.calibration_version}",
        "Scored in this attempt": f"{num_scored_now} of {scores.num_rows}",
        "Software": f"steelray {versions['steelray']} {git_commit() or ''}, ray {versions['ray']}".strip(),
    }
    return ReportData(
        run_id=scoring.run.run_id,
        archive_uri=config.archive.uri,
        started_at=scoring.started_at,
        finished_at=finished_at,
        scoring_s=scoring_s,
        num_listed=manifest.num_rows,
        scores=scores,
        thresholds=list(scoring.calibration.groups.values()),
        threshold_override=config.threshold,
        num_already_scored=scoring.num_already_scored,
        quarantine_limit=config.max_quarantine_share,
        shifts=findings.shifts,
        trends=findings.trends,
        reference=findings.reference,
        group_warnings=findings.group_warnings,
        history=findings.history,
        gallery=make_gallery(source, scores, config.report.gallery),
        table_uri=f"{scoring.run.location}/{SCORES_DIR}",
        power=read_power(model.uri, scoring.calibration),
        details={name: value for name, value in details.items() if value},
    )


def write_index(results_uri: str) -> str:
    """Renew the page over all runs and return its URI."""
    published = read_published(results_uri).run_ids
    others = [name for name in (Location(results_uri) / RUNS).folders() if name not in published]
    entries = []
    for run_id in [*published[:MAX_HISTORY], *others]:
        run = Run(results_uri, run_id)
        if (record := run.record()) is None:
            continue
        state = "published" if run_id in published else "not published"
        entries.append(
            IndexEntry(
                summary=record.night,
                report_href=f"{RUNS}/{run_id}/{REPORT_FILE}",
                state="current" if run_id == published[0] else state,
                num_warnings=len(record.drift.warnings),
            )
        )
    Location(results_uri).write(INDEX_FILE, render_index(entries).encode())
    return f"{Location(results_uri)}/{INDEX_FILE}"
