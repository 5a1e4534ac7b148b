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
from steelray.job import num_cores
from steelray.models.calibration import ALL_STRIPS, Calibration, read_calibration_rows
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
"""Earlier runs whose figures are read, for trends and the index page."""


@dataclass(frozen=True)
class Night:
    """A run, and what it is judged by."""

    config: ScoreArchiveConfig
    run: Run
    model: Model
    calibration: Calibration
    calibration_version: int
    started_at: datetime
    num_already_scored: int = 0
    """Objects that earlier runs have scored and this one therefore left out."""


@dataclass(frozen=True)
class Findings:
    """The night compared with the calibration strips and with the nights before it."""

    summary: RunSummary
    history: tuple[RunSummary, ...]
    reference: dict[str, drift.Sample]
    shifts: tuple[drift.Shift, ...]
    trends: tuple[drift.Trend, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line each."""
        return drift.warnings(self.shifts, self.trends)


def compare(night: Night, scores: pa.Table, finished_at: datetime) -> Findings:
    """Looks for drift: against the strips the thresholds rest on, and over the last published runs of its model."""
    summary = drift.summarize_run(night.run.run_id, finished_at.isoformat(timespec="seconds"), scores)
    reference = drift.samples_by_group(read_calibration_rows(night.model.uri, night.calibration_version))
    history = tuple(reversed(list(islice(_comparable(night), night.config.report.max_runs - 1))))
    shifts = drift.detect_shifts(reference, drift.samples_by_group(scores))
    trends = drift.detect_trends([*history, summary], reference, max_runs=night.config.report.max_runs)
    return Findings(summary, history, reference, shifts, trends)


def _comparable(night: Night) -> Iterator[RunSummary]:
    """Published runs of the same model, newest first."""
    for run, record in islice(published_runs(night.run.results_uri), MAX_HISTORY):
        if record.is_of(night.model) and run.run_id != night.run.run_id:
            yield record.night


def finish_night(
    night: Night, manifest: pa.Table, facts: Facts, *, num_scored_now: int, scoring_s: float
) -> JobSummary:
    """Reconciles, judges, reports and publishes a run whose rows are written.

    Args:
        facts: for run.json.
        num_scored_now: objects that this attempt has scored, the others having been scored before it.
        scoring_s: seconds that took.

    Returns:
        The summary.

    Raises:
        IncompleteRun: rows are missing; nothing is published.
        JobFailed: another run was published at the same time, or there are too many objects without a score.
    """
    config, run = night.config, night.run
    counts = run.reconcile(manifest)
    scores = run.scores()
    quarantine = quarantine_of(scores)
    write_quarantine(run.location, quarantine)
    finished_at = datetime.now(UTC)
    findings = compare(night, scores, finished_at)
    page = _report(night, manifest, scores, findings, finished_at, num_scored_now, scoring_s)
    run.location.write(REPORT_FILE, render_report(page).encode())
    calibrated = night.calibration.groups[ALL_STRIPS].review.value
    summary = JobSummary(
        run_id=run.run_id,
        counts=counts,
        already_scored=night.num_already_scored,
        quarantined=quarantine.num_rows,
        scored_now=num_scored_now,
        scoring_s=round(scoring_s, 2),
        images_per_s=round(num_scored_now / scoring_s, 2) if scoring_s else None,
        threshold=calibrated if config.threshold is None else config.threshold,
        drift_warnings=findings.warnings,
        scores_uri=f"{run.location}/{SCORES_DIR}",
        report_uri=f"{run.location}/{REPORT_FILE}",
        run_uri=str(run.location),
    )
    found = {
        "warnings": findings.warnings,
        "shifts": [asdict(shift) for shift in findings.shifts],
        "trends": [asdict(trend) for trend in findings.trends],
    }
    record = {**facts, "night": asdict(findings.summary), "drift": found, "summary": asdict(summary)}
    run.finish(run_record(config, night.started_at, **record))
    return publish_night(run, summary, config.max_quarantine_share)


def publish_night(run: Run, summary: JobSummary, max_quarantine_share: float | None) -> JobSummary:
    """Publishes a complete run, renews the index page, and only then complains of the quarantine: `JobFailed`."""
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
    night: Night,
    manifest: pa.Table,
    scores: pa.Table,
    findings: Findings,
    finished_at: datetime,
    num_scored_now: int,
    scoring_s: float,
) -> ReportData:
    config, model = night.config, night.model
    source = GallerySource(
        archive=Location(config.archive.uri),
        model=model,
        calibration=night.calibration,
        decode=config.decode,
        compute=config.compute,
        num_threads=num_cores(),
        object_url=config.report.object_url,
    )
    if num_scored_now:  # of a run in several attempts, as if the last one had scored all of it
        scoring_s *= scores.num_rows / num_scored_now
    else:
        times = pc.min_max(scores["scored_at"]).as_py()
        scoring_s = (times["max"] - times["min"]).total_seconds()
    versions = package_versions()
    details = {
        "Model": f"{model.method} {model.model_id} at {model.uri}",
        "Memory bank": f"{model.bank_id}, {model.bank.num_vectors} vectors" if model.bank is not None else "",
        "Members": "; ".join(f"{m.model_id} at {m.uri}" for m in model.ensemble.members) if model.ensemble else "",
        "Calibration": f"version {night.calibration_version}",
        "Scored in this attempt": f"{num_scored_now} of {scores.num_rows}",
        "Software": f"steelray {versions['steelray']} {git_commit() or ''}, ray {versions['ray']}".strip(),
    }
    return ReportData(
        run_id=night.run.run_id,
        archive_uri=config.archive.uri,
        started_at=night.started_at,
        finished_at=finished_at,
        scoring_s=scoring_s,
        num_listed=manifest.num_rows,
        scores=scores,
        thresholds=list(night.calibration.groups.values()),
        threshold_override=config.threshold,
        num_already_scored=night.num_already_scored,
        quarantine_limit=config.max_quarantine_share,
        shifts=findings.shifts,
        trends=findings.trends,
        reference=findings.reference,
        history=findings.history,
        gallery=make_gallery(source, scores, config.report.gallery),
        table_uri=f"{night.run.location}/{SCORES_DIR}",
        details={name: value for name, value in details.items() if value},
    )


def write_index(results_uri: str) -> str:
    """Renews the page over all runs; returns its URI."""
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
