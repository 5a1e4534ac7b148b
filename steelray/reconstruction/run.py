"""Folder of a training run: settings, checkpoints, metrics and curves.

output_uri/RUN_NAME/settings.json              settings that the run was started with
output_uri/RUN_NAME/checkpoints/STEP/          format in `checkpoint`; one without checkpoint.json does not count
output_uri/RUN_NAME/metrics.parquet            a row per logged step, up to the newest checkpoint
output_uri/RUN_NAME/tensorboard/               the metrics for TensorBoard
output_uri/RUN_NAME/loss_curves.png            the metrics as a picture
output_uri/RUN_NAME/failure.json               reason why the run stopped for good, such as a loss that is not finite
output_uri/RUN_NAME/model.safetensors, checkpoint.json, calibrations/    the finished model, a `--model_uri`
output_uri/RUN_NAME/run.json                   written last: a run without it is not complete
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from steelray.config import ConfigError, Facts
from steelray.description import Kind, dump, parse
from steelray.reconstruction import checkpoint
from steelray.reconstruction.checkpoint import CheckpointInfo
from steelray.reconstruction.config import TrainConfig
from steelray.storage.location import Location, ObjectMissing

SETTINGS_FILE, METRICS_FILE, CURVES_FILE = "settings.json", "metrics.parquet", "loss_curves.png"
FAILURE_FILE, RECORD_FILE = "failure.json", "run.json"
CHECKPOINTS, TENSORBOARD = "checkpoints", "tensorboard"
KEPT_CHECKPOINTS = 2
"""Older ones are deleted."""

FREE = {
    "num_workers", "cpus_per_worker", "gpus_per_worker", "checkpoint_every_steps", "overwrite", "dry_run",
    "output_uri",
}  # fmt: skip
"""Settings that may change when a run continues, because its result does not depend on them."""

REMEDY = "restore the file, give another run_name, or set overwrite"

Row = dict[str, float]


@dataclass(frozen=True)
class Failure:
    """Contents of failure.json; `term` and `keys` name the loss term and the batch of a loss that is not finite."""

    step: int
    reason: str
    rank: int
    term: str | None = None
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainRecord:
    """run.json, as far as it is read.

    Attributes:
        summary: the one that the job printed.
    """

    summary: Facts
    format_version: Literal[1] = 1


class TrainRun:
    """Folder of one training run."""

    def __init__(self, output_uri: str, run_name: str) -> None:
        self.location = Location(f"{output_uri.rstrip('/')}/{run_name}")

    def begin(self, config: TrainConfig) -> int | None:
        """Start the run, or continue one of the same name.

        Returns:
            The step of the checkpoint to continue from; None without one.

        Raises:
            ConfigError: a run of this name was started with other settings.
        """
        if config.overwrite:
            self.location.delete_all()
        stored = self._read(TrainConfig, SETTINGS_FILE)
        if stored is None:
            self.location.write(SETTINGS_FILE, dump(config))
            return None
        given, before = dict(_flat(asdict(config))), dict(_flat(asdict(stored)))
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
        """Return the location of the checkpoint after `step` steps."""
        return self.location / f"{CHECKPOINTS}/{step:08d}"

    def steps(self) -> list[int]:
        """List the steps of all complete checkpoints in ascending order."""
        names = [stored.key for stored in (self.location / CHECKPOINTS).list()]
        suffix = f"/{checkpoint.INFO_FILE}"
        return sorted(int(name.removesuffix(suffix)) for name in names if name.endswith(suffix))

    def newest_step(self) -> int | None:
        """Return the step of the newest complete checkpoint."""
        steps = self.steps()
        return steps[-1] if steps else None

    def save(self, config: TrainConfig, state: dict[str, checkpoint.Tensors], step: int, rows: list[Row]) -> None:
        """Write a checkpoint and the metrics up to it, then delete the checkpoints beyond `KEPT_CHECKPOINTS`.

        Raises:
            OSError: the store failed. Earlier checkpoints and their metrics remain complete.
        """
        training = {"run_name": config.run_name, "step": step, "seed": config.seed}
        self.write_metrics(rows)
        self._write(
            self.checkpoint_at(step),
            checkpoint.checkpoint_files(config.network, config.input, **state, training=training),
        )
        kept = {f"{old:08d}" for old in self.steps()[-KEPT_CHECKPOINTS:]}
        folder = self.location / CHECKPOINTS
        # checkpoint.json is deleted first, so that a half-deleted checkpoint does not count as complete
        keys = sorted((stored.key for stored in folder.list()), key=lambda key: not key.endswith(checkpoint.INFO_FILE))
        for key in keys:
            if key.partition("/")[0] not in kept:
                folder.delete(key)

    def load(self, step: int) -> dict[str, checkpoint.Tensors]:
        """Read the state that `TrainingSession.load_state_dict` takes. Raise `ConfigError` if it is damaged."""
        location = self.checkpoint_at(step)
        info = checkpoint.read_info(location.read, str(location))
        return checkpoint.read_resume(location.read, info, str(location))

    def write_model(self, config: TrainConfig, weights: checkpoint.Tensors, training: Facts) -> CheckpointInfo:
        """Write the finished model, without the state needed to continue training."""
        self._write(
            self.location, checkpoint.checkpoint_files(config.network, config.input, weights, training=training)
        )
        return checkpoint.read_info(self.location.read, str(self.location))

    def _write(self, location: Location, files: Iterable[tuple[str, bytes]]) -> None:
        for name, body in files:
            location.write(name, body)

    def metrics(self, before_step: int | None = None) -> list[Row]:
        """Read the logged rows, up to and including `before_step` if it is given."""
        try:
            table = pq.read_table(pa.BufferReader(self.location.read(METRICS_FILE)))
        except ObjectMissing:
            return []
        return [row for row in table.to_pylist() if before_step is None or row["step"] <= before_step]

    def write_metrics(self, rows: list[Row]) -> None:
        """Replace the table of metrics; keep it if there are no rows."""
        if rows:
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(rows), sink)
            self.location.write(METRICS_FILE, sink.getvalue().to_pybytes())

    def write_failure(self, failure: Failure) -> None:
        """Record why the run stopped for good."""
        self.location.write(FAILURE_FILE, dump(failure))

    def failure(self) -> Failure | None:
        """Read why the run stopped; None if it did not."""
        return self._read(Failure, FAILURE_FILE)

    def record(self) -> TrainRecord | None:
        """Read run.json; None if the run is not complete."""
        return self._read(TrainRecord, RECORD_FILE)

    def _read(self, kind: type[Kind], name: str) -> Kind | None:
        try:
            body = self.location.read(name)
        except ObjectMissing:
            return None
        return parse(kind, body, f"{self.location}/{name}", REMEDY)


def _flat(settings: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, object]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
