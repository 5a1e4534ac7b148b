"""Train a model on the cluster: decode nominal images, train on Ray Train, calibrate on held-out images."""

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from ray.exceptions import RayError
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from steelray.cluster.connect import cause_in_one_line, connected
from steelray.cluster.driver import Report, expected_stops
from steelray.cluster.placement import alive_nodes
from steelray.cluster.plan import Node
from steelray.cluster.power_check import calibrate_and_check
from steelray.cluster.train_worker import WorkerSettings, train
from steelray.cluster.training_images import NominalImages, StoredImages, list_nominal, store_images
from steelray.config import ComputeConfig, ConfigError, Facts, JobFailed
from steelray.job import num_cores, show_plan
from steelray.provenance import run_record
from steelray.reconstruction.config import TrainConfig
from steelray.reconstruction.run import RECORD_FILE, TrainRun
from steelray.reconstruction.synthesis import SampleMaker
from steelray.storage.location import Location

RAY_FOLDER = "ray"
"""Folder of Ray Train's own state during a run."""
MAX_FAILURES = 3
"""Number of times that a lost worker is replaced before the run fails."""


def train_model(config: TrainConfig, report: Report) -> dict[str, Any]:
    """Train a model, calibrate it and write it to `output_uri/run_name`. A rerun continues from the newest checkpoint.

    Returns:
        The summary: model id, steps, last losses, cost, thresholds, locations.

    Raises:
        ConfigError: something the user must correct, found before any training.
        JobFailed: the run stopped; the message says why. Its checkpoints are kept.
    """
    started_at = datetime.now(UTC)
    config = with_absolute_places(config)
    if not config.dry_run:
        Location(config.output_uri).check_access(create=True)
    folder = TrainRun(config.output_uri, config.run_name)
    images = list_nominal(config)
    SampleMaker(config, others=[np.zeros((1, 1, 1), np.uint8)])  # missing textures are reported here
    if config.dry_run:
        plan = {"fit": len(images.fit), "held_out": len(images.held_out), "cores": num_cores()}
        return show_plan(config, {**plan, "steps": config.total_steps(len(images.fit))})
    folder.begin(config)
    if (record := folder.record()) is not None:
        report(f"run {config.run_name} is complete already: nothing to do")
        return {**record.summary, "already_complete": True}
    remedy = "run the same command to continue from the newest checkpoint"
    with expected_stops(f"run {config.run_name}", remedy), connected(dashboard=True):
        check_workers_fit(config, alive_nodes())
        summary = dict(_train(config, folder, images, report))
    folder.location.write(RECORD_FILE, run_record(config, started_at, summary=summary))
    return summary


def _train(config: TrainConfig, folder: TrainRun, images: NominalImages, report: Report) -> Facts:
    """Train from the newest checkpoint to the end, write the model and calibrate it."""
    stored = store_images(config, images.fit)
    num_steps, step = config.total_steps(len(stored.places)), folder.newest_step() or 0
    _report_images(config, images, stored, report)
    report(f"run {config.run_name}: step {step} of {num_steps}, {config.num_workers} worker(s)")
    start_s = time.perf_counter()
    if step < num_steps:
        _fit(config, folder, WorkerSettings(config, num_steps, stored))
    training_s = time.perf_counter() - start_s
    rows = folder.metrics()
    newest = folder.newest_step()
    assert newest == num_steps
    facts = {"run_name": config.run_name, "step": newest, "source": images.fit.uri, "num_images": len(stored.places)}
    info = folder.write_model(config, folder.load(newest)["weights"], facts)
    report(f"scoring {len(images.held_out)} held-out images")
    compute = ComputeConfig(
        num_scorers=1, cpus_per_scorer=config.cpus_per_worker, gpus_per_scorer=config.gpus_per_worker
    )
    model_uri = str(folder.location)
    return {
        "model_id": info.model_id,
        "model_uri": model_uri,
        "steps": num_steps,
        "images": len(stored.places),
        "skipped": stored.skipped,
        **{name: rows[-1][name] for name in ("total", "l2", "ssim", "focal") if name in rows[-1]},
        "training_s": round(sum(row["seconds"] for row in rows), 2),
        "training_s_now": round(training_s, 2),
        "images_per_s": round(sum(r["images_per_s"] for r in rows) / len(rows), 3),
        "peak_memory_bytes": max(int(row["peak_memory_bytes"]) for row in rows),
        **calibrate_and_check(model_uri, images.held_out, compute, config.calibration, report),
    }


def with_absolute_places(config: TrainConfig) -> TrainConfig:
    """Return a copy with absolute local paths: Ray Train's workers run in another folder than the driver."""
    texture_uri = config.synthesis.texture_uri
    return replace(
        config,
        output_uri=Location(config.output_uri).uri,
        synthesis=replace(config.synthesis, texture_uri=texture_uri and Location(texture_uri).uri),
    )


def check_workers_fit(config: TrainConfig, nodes: list[Node]) -> None:
    """Raise `ConfigError`, with the resources of the nodes, unless every worker can be placed."""
    each = config.cpus_per_worker, config.gpus_per_worker

    def room(node: Node) -> int:
        by_cpu = int(node.cpus / each[0] + 1e-6)
        return min(by_cpu, int(node.gpus / each[1] + 1e-6)) if each[1] else by_cpu

    most = sum(room(node) for node in nodes)
    if most < config.num_workers:
        gpus = f" and {each[1]:g} GPUs" if each[1] else ""
        raise ConfigError(
            f"{config.num_workers} training workers of {each[0]:g} CPUs{gpus} do not fit on the nodes "
            f"({'; '.join(map(str, nodes)) or 'none'}), {most} would: lower num_workers, or the CPUs and GPUs of each"
        )


def _report_images(config: TrainConfig, images: NominalImages, stored: StoredImages, report: Report) -> None:
    report(f"{len(stored.places)} images to fit on, {len(images.held_out)} held out, from {images.fit.uri}")
    if stored.skipped:
        report(f"left out: {stored.skipped}")
    if config.model == "draem" and config.synthesis.texture_uri is None:
        report("no synthesis.texture_uri: anomalies are made from generated textures")


def _fit(config: TrainConfig, folder: TrainRun, settings: WorkerSettings) -> None:
    filesystem, path = folder.location.arrow()
    resources = {"CPU": config.cpus_per_worker}
    if config.gpus_per_worker:
        resources["GPU"] = config.gpus_per_worker
    trainer = TorchTrainer(
        train,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=config.num_workers, use_gpu=config.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=RAY_FOLDER,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        trainer.fit()
    except (TrainingFailedError, RayError) as error:
        raise JobFailed(
            f"run {config.run_name} stopped: {cause_in_one_line(error)}; run the same command to continue from step "
            f"{folder.newest_step() or 0}"
        ) from error
    finally:
        (folder.location / RAY_FOLDER).delete_all()
    if (failure := folder.failure()) is not None:
        raise JobFailed(
            f"run {config.run_name} stopped at step {failure.step}: {failure.reason}; "
            f"the newest checkpoint is of step {folder.newest_step() or 0}"
        )
