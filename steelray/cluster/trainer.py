"""Nominal images to a trained, calibrated model over a cluster: decode, train on Ray Train, score held-out images."""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from steelray.cluster.connect import cause_in_one_line, connected, plan_compute
from steelray.cluster.held_out import set_thresholds, threshold_facts
from steelray.cluster.placement import Node, alive_nodes
from steelray.cluster.scoring_actors import ScoringActor
from steelray.cluster.train_worker import WorkerSettings, train
from steelray.cluster.training_images import NominalImages, StoredImages, list_nominal, store_images
from steelray.config import ComputeConfig, ConfigError
from steelray.job import num_cores
from steelray.models.model import open_model
from steelray.provenance import run_record
from steelray.reconstruction.config import TrainConfig
from steelray.reconstruction.run import RECORD_FILE, TrainRun
from steelray.reconstruction.synthesis import SampleMaker
from steelray.runs.batch import RunStamp
from steelray.storage.location import Location

Report = Callable[[str], None]
RAY_FOLDER = "ray"
"""Where Ray Train keeps its own state while a run is under way."""


def train_model(config: TrainConfig, report: Report) -> dict[str, Any]:
    """Trains a model, calibrates it and writes it to `output_uri/run_name`; running it again goes on.

    Returns:
        The summary: model id, steps, last losses, cost, thresholds, places.

    Raises:
        ConfigError: something the user has to correct, before any training.
        RuntimeError: the run stopped, with the reason; what it had is kept.
    """
    started_at = datetime.now(UTC)
    config = with_absolute_places(config)
    if config.mlflow_uri is not None and importlib.util.find_spec("mlflow") is None:
        raise ConfigError("mlflow_uri is set but mlflow is not installed: pip install mlflow, or leave mlflow_uri out")
    if not config.dry_run:
        Location(config.output_uri).check_access(create=True)
    folder = TrainRun(config.output_uri, config.run_name)
    images = list_nominal(config)
    SampleMaker(config, others=[np.zeros((1, 1, 1), np.uint8)])  # textures that cannot be had are found out here
    if config.dry_run:
        plan = {"fit": images.fit.num_rows, "held_out": images.held_out.num_rows, "cores": num_cores(),
                "steps": config.total_steps(images.fit.num_rows)}  # fmt: skip
        return {"dry_run": True, "config": asdict(config), "plan": plan}
    step = folder.begin(config)
    if (record := folder.record()) is not None:
        report(f"run {config.run_name} is complete already: nothing to do")
        return {**record["summary"], "already_complete": True}
    with connected(dashboard=True) as resources:
        check_workers_fit(config, alive_nodes())
        stored = store_images(config, images)
        num_steps = config.total_steps(len(stored.places))
        _say_what_is_there(config, images, stored, report)
        report(f"run {config.run_name}: step {step or 0} of {num_steps}, {config.num_workers} worker(s)")
        start_s = time.perf_counter()
        if step is None or step < num_steps:
            _fit(config, folder, WorkerSettings(config, num_steps, stored))
        training_s = time.perf_counter() - start_s
        rows = folder.metrics()
        newest = folder.newest_step()
        assert newest == num_steps
        facts = {"run_name": config.run_name, "step": newest, "source": images.source, "num_images": len(stored.places)}
        info = folder.write_model(config, folder.load(newest)["weights"], facts)
        summary: dict[str, Any] = {
            "model_id": info.model_id,
            "model_uri": str(folder.location),
            "steps": num_steps,
            "images": len(stored.places),
            "skipped": stored.skipped,
            **{name: rows[-1][name] for name in ("total", "l2", "ssim", "focal") if name in rows[-1]},
            "training_s": round(sum(row["seconds"] for row in rows), 2),
            "training_s_now": round(training_s, 2),
            "images_per_s": round(sum(r["images_per_s"] for r in rows) / len(rows), 3),
            "peak_memory_bytes": max(int(row["peak_memory_bytes"]) for row in rows),
            **_calibrate(config, folder, images, resources, report),
        }
    folder.location.write(RECORD_FILE, run_record(config, started_at, summary=summary))
    return summary


def with_absolute_places(config: TrainConfig) -> TrainConfig:
    """The same with absolute local paths: Ray Train runs its workers in another folder than the driver's."""
    texture_uri = config.synthesis.texture_uri
    return replace(
        config,
        output_uri=Location(config.output_uri).uri,
        synthesis=replace(config.synthesis, texture_uri=texture_uri and Location(texture_uri).uri),
    )


def check_workers_fit(config: TrainConfig, nodes: list[Node]) -> None:
    """Raises `ConfigError` unless every worker finds a node, with what the nodes have."""
    each = config.cpus_per_worker, config.gpus_per_worker

    def room(node: Node) -> int:
        by_cpu = int(node.cpus / each[0] + 1e-6)
        return min(by_cpu, int(node.gpus / each[1] + 1e-6)) if each[1] else by_cpu

    most = sum(room(node) for node in nodes)
    if most < config.num_workers:
        gpus = f" and {each[1]:g} GPUs" if each[1] else ""
        raise ConfigError(
            f"{config.num_workers} training workers of {each[0]:g} CPUs{gpus} do not fit on the nodes "
            f"({'; '.join(map(str, nodes)) or 'none'}), {most} would: lower num_workers or what each asks for"
        )


def _say_what_is_there(config: TrainConfig, images: NominalImages, stored: StoredImages, report: Report) -> None:
    report(f"{len(stored.places)} images to learn from, {images.held_out.num_rows} held out, from {images.source}")
    if stored.skipped:
        report(f"left out: {stored.skipped}")
    if config.model == "draem" and config.synthesis.texture_uri is None:
        report("no synthesis.texture_uri: anomalies are made of generated textures")


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
            failure_config=FailureConfig(max_failures=config.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        trainer.fit()
    except (TrainingFailedError, RayError) as error:
        raise RuntimeError(
            f"run {config.run_name} stopped: {cause_in_one_line(error)}; run the same command to go on from step "
            f"{folder.newest_step() or 0}"
        ) from error
    finally:
        (folder.location / RAY_FOLDER).delete_all()
    if (failure := folder.failure()) is not None:
        raise RuntimeError(
            f"run {config.run_name} stopped at step {failure['step']}: {failure['reason']}; "
            f"the newest checkpoint is of step {folder.newest_step() or 0}"
        )


def _calibrate(
    config: TrainConfig, folder: TrainRun, images: NominalImages, resources: dict[str, float], report: Report
) -> dict[str, Any]:
    """Scores the held-out images, sets the thresholds on them and stores both."""
    report(f"scoring {images.held_out.num_rows} held-out images")
    uri = str(folder.location)
    rows = score_held_out(config, uri, images, resources)
    return threshold_facts(*set_thresholds(uri, rows, config.calibration, f"held out of {images.source}", report))


def score_held_out(config: TrainConfig, model_uri: str, images: NominalImages, resources: dict[str, float]) -> pa.Table:
    """The score rows of the images that were held out."""
    compute = ComputeConfig(
        num_scorers=1, cpus_per_scorer=config.cpus_per_worker, gpus_per_scorer=config.gpus_per_worker
    )
    plan = plan_compute(resources.get("CPU", 0), resources.get("GPU", 0), compute)
    model = open_model(model_uri)
    stamp = RunStamp("calibration", model.model_id, model.bank_id, model.input_size_px)
    scored = images.decoded(images.held_out).map_batches(
        ScoringActor,
        fn_constructor_args=(model, compute, plan, [ray.put(None)], [], stamp, None, {}),
        compute=ActorPoolStrategy(size=1),
        batch_size=compute.batch_size,
        batch_format="pyarrow",
        num_cpus=plan.scorer_cpus,
        num_gpus=plan.scorer_gpus or None,
    )
    return pa.concat_tables(ray.get(scored.to_arrow_refs()))
