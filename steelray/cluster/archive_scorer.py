"""Score an archive on the cluster: decoding tasks and scoring actors write a score table, reconciled and published."""

import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import ray
from ray.data.checkpoint import CheckpointConfig
from ray.data.checkpoint.checkpoint_filter import CheckpointManager

from steelray.cluster.connect import connected
from steelray.cluster.driver import Report, expected_stops
from steelray.cluster.metrics import announce_run
from steelray.cluster.placement import plan_on_cluster
from steelray.cluster.plan import TASK_CPUS, ComputePlan, plan_compute
from steelray.cluster.scoring_actors import ScoringRequest, plan_model_bank, portable_model, scored_images
from steelray.config import Facts
from steelray.job import num_cores, show_plan, tag_lines
from steelray.models.calibration import Calibration, group_warnings, read_calibration
from steelray.models.model import Model, open_model
from steelray.patchcore.planner import BankPlan
from steelray.report.finish import ScoringRun, finish_run, publish_run
from steelray.runs.config import ScoreArchiveConfig
from steelray.runs.incremental import leave_out_scored
from steelray.runs.run import CHECKPOINT_DIR, SCORES_DIR, Run, read_published, run_id_of
from steelray.storage.listing import ImageSet, list_archive
from steelray.storage.location import Location

ROWS_PER_FILE = 4096
"""Rows of a Parquet file of the score table; fewer if the archive is small."""


class NoFilter(CheckpointManager):  # type: ignore[misc]
    """Ray Data's two-phase write without the filter actor, which takes a CPU: the manifest is filtered before."""

    def load_checkpoint(self, data_file_dir: str | None = None, data_file_filesystem: Any = None) -> tuple[None, int]:
        return None, 0


def score_archive(config: ScoreArchiveConfig, report: Report) -> dict[str, Any]:
    """Score an archive. A rerun continues where the last one stopped, or finds that nothing is left.

    Returns:
        The summary: run id, counts, locations, rates.

    Raises:
        ConfigError: something the user must correct, found before any work on the cluster.
        JobFailed: the run stopped and can be continued, rows are missing, or too many objects have no score.
    """
    started_at = datetime.now(UTC)
    Location(config.results_uri).check_access(create=not config.dry_run)
    Location(config.archive.uri).check_access()
    model = open_model(config.model_uri)

    calibration, version = read_calibration(config.model_uri, config.calibration)
    bank_plan = plan_model_bank(model, config.compute)
    manifest, already_scored = _list_work(config, model)
    if manifest.num_rows == 0:
        report(f"nothing new: all {already_scored} objects have been scored by earlier runs")
        current = read_published(config.results_uri).current
        return {"run_id": current, "counts": {"listed": 0}, "already_scored": already_scored, "already_complete": True}
    warnings = group_warnings(manifest.column("image_key").to_pylist(), calibration, "objects in the archive")
    for warning in warnings:
        report(f"warning: {warning}")
    run = Run(config.results_uri, run_id_of(manifest, **_identity(config, model, calibration)))
    tag_lines(run_id=run.run_id)
    facts = {
        "run_id": run.run_id,
        "model": {"uri": model.uri, "method": model.method, "model_id": model.model_id},
        "bank_id": model.bank_id,
        "calibration_version": version,
        "bank_plan": bank_plan and asdict(bank_plan),
        "objects": manifest.num_rows,
        "already_scored": already_scored,
        "group_warnings": warnings,
    }
    if config.dry_run:
        compute_plan = plan_compute(num_cores(), 0, config.compute, bank_plan.num_actors if bank_plan else 0)
        return show_plan(config, {**facts, "compute": asdict(compute_plan)})
    if (record := run.record()) is not None:
        report(f"run {run.run_id} is complete already: nothing to do")
        summary = replace(record.summary, already_complete=True)
        return asdict(publish_run(run, summary, config.max_quarantine_share))
    scoring = ScoringRun(config, run, model, calibration, version, started_at, already_scored)
    with expected_stops(f"run {run.run_id}", "run the same command to continue"):
        scored_now, scoring_s, planned = _score_rest(scoring, manifest, bank_plan, report)
        facts |= planned
        return asdict(finish_run(scoring, manifest, facts, num_scored_now=scored_now, scoring_s=scoring_s))


def _identity(config: ScoreArchiveConfig, model: Model, calibration: Calibration) -> Facts:
    """Return everything but the manifest that the rows of a run depend on."""
    return {
        "archive": config.archive.uri,
        "model_id": model.model_id,
        "bank_id": model.bank_id,
        "calibration": asdict(calibration),
        "threshold": config.threshold,
        "decode": asdict(config.decode),
        "save_anomaly_maps": config.save_anomaly_maps,
    }


def _list_work(config: ScoreArchiveConfig, model: Model) -> tuple[pa.Table, int]:
    """Return the manifest to score, and the number of objects that earlier runs have scored."""
    if not config.incremental:
        return list_archive(config.archive), 0
    manifest = list_archive(replace(config.archive, limit=None))
    rest, num_scored = leave_out_scored(manifest, config, model)
    return rest.slice(0, config.archive.limit), num_scored


def _score_rest(
    scoring: ScoringRun, manifest: pa.Table, bank_plan: BankPlan | None, report: Report
) -> tuple[int, float, Facts]:
    """Score the objects that have no row in the run yet.

    Returns:
        The number of objects scored, the seconds this took, and the plan for run.json.
    """
    config, run, model = scoring.config, scoring.run, scoring.model
    discarded = run.settle()
    remaining = run.remaining(manifest)
    if remaining.num_rows < manifest.num_rows or discarded:
        report(f"run {run.run_id} continues: {remaining.num_rows} of {manifest.num_rows} objects are left")
    else:
        report(f"run {run.run_id}: {manifest.num_rows} objects in {config.archive.uri}")
    run.write_manifest(manifest)
    if not remaining.num_rows:
        return 0, 0.0, {}
    portable_model(model, config.compute)  # missing weights are reported before Ray starts
    with connected():
        num_shards = bank_plan.num_actors if bank_plan else 0
        uris = (config.archive.uri, config.model_uri, config.results_uri)
        plan = plan_on_cluster(config.compute, num_shards, uris, report)
        if bank_plan is not None:
            plan_model_bank(model, config.compute, int(ray.cluster_resources().get("memory", 0)) or None)
            report(f"memory bank {bank_plan.placement}: {bank_plan.reason}")
        start_s = time.perf_counter()
        announce_run(run.run_id, remaining.num_rows, num_shards)
        _write_rows(scoring, ImageSet(config.archive.uri, remaining, config.decode), plan, bank_plan)
        return remaining.num_rows, time.perf_counter() - start_s, {"compute_plan": asdict(plan)}


def _write_rows(scoring: ScoringRun, images: ImageSet, plan: ComputePlan, bank_plan: BankPlan | None) -> None:
    """Score images and write their rows in two phases, so that a stopped run keeps what it has."""
    config, run = scoring.config, scoring.run
    request = ScoringRequest(
        scoring.model,
        config.compute,
        run.run_id,
        scoring.calibration,
        threshold=config.threshold,
        pictures=run.location,
        save_anomaly_maps=config.save_anomaly_maps,
    )
    with scored_images(images, request, plan, bank_plan) as rows:
        filesystem, path = (run.location / CHECKPOINT_DIR).arrow()
        rows.context.checkpoint_config = CheckpointConfig(
            "image_key",
            path,
            override_filesystem=filesystem,
            delete_checkpoint_on_success=False,
            checkpoint_manager_cls=NoFilter,
        )
        filesystem, path = (run.location / SCORES_DIR).arrow()
        rows.write_parquet(
            path,
            filesystem=filesystem,
            min_rows_per_file=max(1, min(ROWS_PER_FILE, len(images) // 4)),
            ray_remote_args={"num_cpus": TASK_CPUS},
            write_page_checksum=True,
        )
