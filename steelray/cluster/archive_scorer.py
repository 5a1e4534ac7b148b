"""The main job: an archive through decoding tasks, scoring actors and a writer into a reconciled, published table."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import ray
from ray.data.checkpoint import CheckpointConfig
from ray.data.checkpoint.checkpoint_filter import CheckpointManager
from ray.exceptions import RayError

from steelray.cluster.connect import TASK_CPUS, ComputePlan, cause_in_one_line, connected, plan_compute
from steelray.cluster.image_source import map_images
from steelray.cluster.metrics import announce_run
from steelray.cluster.placement import plan_on_cluster
from steelray.cluster.scoring_actors import ScoringActor, plan_model_bank, portable_model, running_bank
from steelray.config import JobFailed
from steelray.job import num_cores, tag_lines
from steelray.models.calibration import Calibration, read_calibration
from steelray.models.model import Model, check_agreement, open_model
from steelray.patchcore.index import BankUnavailable
from steelray.patchcore.planner import BankPlan
from steelray.patchcore.portable_embedder import PortableEmbedder
from steelray.report.finish import Night, finish_night, publish_night
from steelray.runs.batch import RunStamp
from steelray.runs.config import ScoreArchiveConfig
from steelray.runs.incremental import leave_out_scored
from steelray.runs.run import CHECKPOINT_DIR, SCORES_DIR, Run, read_published, run_id_of
from steelray.storage.listing import list_archive
from steelray.storage.location import Location, ObjectChanged

ROWS_PER_FILE = 4096
"""Rows of one parquet file of the score table, where the archive is large enough."""

Report = Callable[[str], None]


class NoFilter(CheckpointManager):  # type: ignore[misc]
    """Ray Data's two-phase write without its filter actor, which wants a CPU: the manifest is filtered beforehand."""

    def load_checkpoint(self, data_file_dir: str | None = None, data_file_filesystem: Any = None) -> tuple[None, int]:
        return None, 0


def score_archive(config: ScoreArchiveConfig, report: Report) -> dict[str, Any]:
    """Scores an archive; running it again continues, or finds that there is nothing to do.

    Returns:
        The summary: run id, counts, places, rates.

    Raises:
        ConfigError: something the user has to correct, before any cluster work.
        JobFailed: the run stopped and can be continued, rows are missing, or too many objects have no score.
    """
    started_at = datetime.now(UTC)
    Location(config.results_uri).check_access(create=not config.dry_run)
    Location(config.archive.uri).check_access()
    model = open_model(config.model_uri)
    check_agreement(model, config.embedder)
    calibration, version = read_calibration(config.model_uri, config.calibration)
    bank_plan = plan_model_bank(model, config.compute)
    manifest, already_scored = _list_work(config, model)
    if manifest.num_rows == 0:
        report(f"nothing new: all {already_scored} objects have been scored by earlier runs")
        current = read_published(config.results_uri).current
        return {"run_id": current, "counts": {"listed": 0}, "already_scored": already_scored, "already_complete": True}
    identity = {
        "archive": config.archive.uri,
        "model_id": model.model_id,
        "bank_id": model.bank_id,
        "calibration": calibration.to_dict(),
        "threshold": config.threshold,
        "decode": asdict(config.decode),
        "save_anomaly_maps": config.save_anomaly_maps,
    }
    run = Run(config.results_uri, run_id_of(manifest, **identity))
    tag_lines(run_id=run.run_id)
    facts = {
        "run_id": run.run_id,
        "model": {"uri": model.uri, "method": model.method, "model_id": model.model_id},
        "bank_id": identity["bank_id"],
        "calibration_version": version,
        "bank_plan": bank_plan and asdict(bank_plan),
        "objects": manifest.num_rows,
        "already_scored": already_scored,
    }
    if config.dry_run:
        compute_plan = plan_compute(num_cores(), 0, config.compute, _num_shards(bank_plan))
        return {"dry_run": True, "config": asdict(config), "plan": {**facts, "compute": compute_plan.to_dict()}}
    if (record := run.record()) is not None:
        report(f"run {run.run_id} is complete already: nothing to do")
        return publish_night(run, {**record["summary"], "already_complete": True}, config.max_quarantine_share)

    with _resumable(run):
        discarded = run.settle()
        remaining = run.remaining(manifest)
        if remaining.num_rows < manifest.num_rows or discarded:
            report(f"run {run.run_id} goes on: {remaining.num_rows} of {manifest.num_rows} objects are left")
        else:
            report(f"run {run.run_id}: {manifest.num_rows} objects in {config.archive.uri}")
        run.write_manifest(manifest)
        scoring_s = 0.0
        if remaining.num_rows:
            portable = portable_model(model, config.compute)
            with connected():
                uris = (config.archive.uri, config.model_uri, config.results_uri)
                compute_plan = plan_on_cluster(config.compute, _num_shards(bank_plan), uris, report)
                facts["compute_plan"] = compute_plan.to_dict()
                if bank_plan is not None:
                    plan_model_bank(model, config.compute, int(ray.cluster_resources().get("memory", 0)) or None)
                    report(f"memory bank {bank_plan.placement}: {bank_plan.reason}")
                start_s = time.perf_counter()
                _score(config, model, portable, calibration, run, remaining, compute_plan, bank_plan)
                scoring_s = time.perf_counter() - start_s
        night = Night(config, run, model, calibration, version, started_at, already_scored)
        return finish_night(night, manifest, facts, num_scored_now=remaining.num_rows, scoring_s=scoring_s)


@contextmanager
def _resumable(run: Run) -> Iterator[None]:
    """What fails in here has to be run again, and then goes on. Raises `JobFailed`, one line."""
    try:
        yield
    except (RayError, BankUnavailable, ObjectChanged, OSError, pa.ArrowInvalid) as error:
        cause = cause_in_one_line(error)
        raise JobFailed(f"run {run.run_id} stopped: {cause}; run the same command to continue") from error


def _list_work(config: ScoreArchiveConfig, model: Model) -> tuple[pa.Table, int]:
    """What is to be scored, and how many objects are left out because earlier runs have scored them."""
    if not config.incremental:
        return list_archive(config.archive), 0
    manifest = list_archive(replace(config.archive, limit=None))
    rest, num_scored = leave_out_scored(manifest, config, model)
    return rest.slice(0, config.archive.limit), num_scored


def _num_shards(plan: BankPlan | None) -> int:
    return plan.num_shards if plan is not None and plan.placement == "sharded" else 0


def _score(
    config: ScoreArchiveConfig,
    model: Model,
    portable: PortableEmbedder | None,
    calibration: Calibration,
    run: Run,
    remaining: pa.Table,
    plan: ComputePlan,
    bank_plan: BankPlan | None,
) -> None:
    with running_bank(model, bank_plan, plan.scorer_gpus) as servers:
        announce_run(run.run_id, remaining.num_rows, len(servers))
        stamp = RunStamp(run.run_id, model.model_id, model.bank_id, model.input_size_px)
        options = {
            "threshold": config.threshold,
            "pictures": run.location,
            "save_anomaly_maps": config.save_anomaly_maps,
        }
        arguments = (model, config.compute, plan, [ray.put(portable)], servers, stamp, calibration, options)
        rows = map_images(config.archive.uri, remaining, config.decode, config.compute, plan, ScoringActor, arguments)
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
            min_rows_per_file=max(1, min(ROWS_PER_FILE, remaining.num_rows // 4)),
            ray_remote_args={"num_cpus": TASK_CPUS},
            write_page_checksum=True,
        )
