"""A training run's folder: its settings, checkpoints, metrics and curves. Knows no Ray and no network.

output_uri/RUN_NAME/settings.json              what the run was started with
output_uri/RUN_NAME/checkpoints/STEP/          format in `checkpoint`; one without checkpoint.json is not there
output_uri/RUN_NAME/metrics.parquet            a row per logged step, up to the newest checkpoint
output_uri/RUN_NAME/tensorboard/               the same for TensorBoard
output_uri/RUN_NAME/loss_curves.png            the same as a picture
output_uri/RUN_NAME/failure.json               why the run stopped for good, such as a loss that is not finite
output_uri/RUN_NAME/model.safetensors, checkpoint.json, calibrations/    the finished model, a `--model_uri`
output_uri/RUN_NAME/run.json                   written last: a run without it is not complete
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from steelray.config import ConfigError
from steelray.reconstruction import checkpoint
from steelray.reconstruction.checkpoint import CheckpointInfo
from steelray.reconstruction.config import TrainConfig
from steelray.storage.location import Location, ObjectMissing

SETTINGS_FILE, METRICS_FILE, CURVES_FILE, FAILURE_FILE, RECORD_FILE = (
    "settings.json",
    "metrics.parquet",
    "loss_curves.png",
    "failure.json",
    "run.json",
)
CHECKPOINTS, TENSORBOARD = "checkpoints", "tensorboard"

FREE = {
    "num_workers", "cpus_per_worker", "gpus_per_worker", "max_failures", "checkpoint_every_steps", "keep_checkpoints",
    "log_every_steps", "overwrite", "dry_run", "mlflow_uri", "output_uri",
}  # fmt: skip
"""Settings that may change when a run goes on: its result does not depend on them."""

Row = dict[str, float]


class TrainRun:
    """One run's folder."""

    def __init__(self, output_uri: str, run_name: str) -> None:
        self.location = Location(f"{output_uri.rstrip('/')}/{run_name}")

    def begin(self, config: TrainConfig) -> int | None:
        """Starts the run, or finds that it goes on.

        Returns:
            The step of the checkpoint that it goes on from; None for a new run.

        Raises:
            ConfigError: a run of this name was started with other settings.
        """
        if config.overwrite:
            self.location.delete_all()
        settings = json.loads(json.dumps(asdict(config), default=str))
        try:
            stored = json.loads(self.location.read(SETTINGS_FILE))
        except ObjectMissing:
            self.location.write(SETTINGS_FILE, json.dumps(settings, indent=2).encode())
            return None
        given, before = dict(_flat(settings)), dict(_flat(stored))
        differing = [name for name in sorted(given) if given[name] != before.get(name) and name not in FREE]
        if differing:
            name = differing[0]
            raise ConfigError(
                f"{name} is {given[name]!r} but run {config.run_name} was started with {before.get(name)!r}: use that, "
                "give another run_name, or set overwrite"
            )
        step = self.newest_step()
        if step is not None:
            info = checkpoint.read_info(self.checkpoint_at(step).read, str(self.checkpoint_at(step)))
            checkpoint.check_agreement(info, config.network, config.input, str(self.checkpoint_at(step)))
        self.location.delete(FAILURE_FILE)
        return step

    def checkpoint_at(self, step: int) -> Location:
        """Where the checkpoint after so many steps lies."""
        return self.location / f"{CHECKPOINTS}/{step:08d}"

    def steps(self) -> list[int]:
        """The steps of all whole checkpoints, rising."""
        names = [stored.key for stored in (self.location / CHECKPOINTS).list()]
        suffix = f"/{checkpoint.INFO_FILE}"
        return sorted(int(name.removesuffix(suffix)) for name in names if name.endswith(suffix))

    def newest_step(self) -> int | None:
        """The step of the newest whole checkpoint."""
        steps = self.steps()
        return steps[-1] if steps else None

    def save(self, config: TrainConfig, state: dict[str, checkpoint.Tensors], step: int, rows: list[Row]) -> None:
        """Stores a checkpoint with the metrics up to it, and then deletes what retention no longer keeps.

        Raises:
            OSError: the store failed. The checkpoints of before are whole, and so are their metrics.
        """
        training = {"run_name": config.run_name, "step": step, "seed": config.seed}
        self.write_metrics(rows)
        self._write(
            self.checkpoint_at(step),
            checkpoint.checkpoint_files(config.network, config.input, **state, training=training),
        )
        kept = {f"{old:08d}" for old in self.steps()[-config.keep_checkpoints :]}
        folder = self.location / CHECKPOINTS
        # checkpoint.json goes first, so that what is half deleted is not taken for whole
        keys = sorted((stored.key for stored in folder.list()), key=lambda key: not key.endswith(checkpoint.INFO_FILE))
        for key in keys:
            if key.partition("/")[0] not in kept:
                folder.delete(key)

    def load(self, step: int) -> dict[str, checkpoint.Tensors]:
        """What `TrainingSession.load_state_dict` takes. Raises `ConfigError` if the checkpoint is damaged."""
        location = self.checkpoint_at(step)
        info = checkpoint.read_info(location.read, str(location))
        return checkpoint.read_resume(location.read, info, str(location))

    def write_model(self, config: TrainConfig, weights: checkpoint.Tensors, training: dict[str, Any]) -> CheckpointInfo:
        """Stores the finished model, without what a run needs to go on."""
        self._write(
            self.location, checkpoint.checkpoint_files(config.network, config.input, weights, training=training)
        )
        return checkpoint.read_info(self.location.read, str(self.location))

    def _write(self, location: Location, files: Iterable[tuple[str, bytes]]) -> None:
        for name, body in files:
            location.write(name, body)

    def metrics(self, before_step: int | None = None) -> list[Row]:
        """The logged rows, of steps below `before_step` only."""
        try:
            table = pq.read_table(pa.BufferReader(self.location.read(METRICS_FILE)))
        except ObjectMissing:
            return []
        return [row for row in table.to_pylist() if before_step is None or row["step"] <= before_step]

    def write_metrics(self, rows: list[Row]) -> None:
        """Replaces the table of metrics."""
        if rows:
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(rows), sink)
            self.location.write(METRICS_FILE, sink.getvalue().to_pybytes())

    def write_failure(self, failure: dict[str, Any]) -> None:
        """Keeps why the run stopped."""
        self.location.write(FAILURE_FILE, json.dumps(failure, indent=2).encode())

    def failure(self) -> dict[str, Any] | None:
        """Why the run stopped, if it did."""
        return self._json(FAILURE_FILE)

    def record(self) -> dict[str, Any] | None:
        """run.json, if the run is complete."""
        return self._json(RECORD_FILE)

    def _json(self, name: str) -> dict[str, Any] | None:
        try:
            value: dict[str, Any] = json.loads(self.location.read(name))
        except ObjectMissing:
            return None
        return value


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
