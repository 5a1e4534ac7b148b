"""The loop of a training process: its share of each batch, the metrics of all workers, rank 0's checkpoints."""

import resource
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train.collective import broadcast_from_rank_zero
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from steelray.cluster.training_images import ImageReader, StoredImages
from steelray.config import ConfigError
from steelray.reconstruction.batch import Batch, collate
from steelray.reconstruction.config import TrainConfig
from steelray.reconstruction.curves import loss_curves_png
from steelray.reconstruction.run import CURVES_FILE, TENSORBOARD, Failure, Row, TrainRun
from steelray.reconstruction.session import NonFiniteLoss, TrainingSession
from steelray.reconstruction.synthesis import SampleMaker, samples_of_step

PROGRESS_EVERY_S = 15.0
CLIPPED_TERM = "grad_norm"
"""Term that a NaN loss on another worker shows up in here: this worker's own terms are finite."""


@dataclass(frozen=True)
class WorkerSettings:
    """Settings and images that the driver passes to its workers."""

    config: TrainConfig
    num_steps: int
    images: StoredImages


def train(settings: WorkerSettings) -> None:
    """Train to the end, or until it cannot continue (failure.json says why); Ray calls this again for a lost worker."""
    _Worker(settings).run()


class _Worker:
    def __init__(self, settings: WorkerSettings) -> None:
        config = self.config = settings.config
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        torch.set_num_threads(max(1, int(config.cpus_per_worker)))
        self.images = ImageReader(settings.images)
        self.maker = SampleMaker(config, others=self.images)
        self.session = TrainingSession(
            config, settings.num_steps, self.device, wrap=self._wrap if self.world > 1 else None
        )
        self.folder = TrainRun(config.output_uri, config.run_name)
        newest = self.folder.newest_step()
        if newest is not None:
            self.session.load_state_dict(self.folder.load(newest))
        self.journal = Journal(self.folder, config, self.session.step, settings.num_steps) if self.rank == 0 else None

    def _wrap(self, network: nn.Module) -> nn.Module:
        return DistributedDataParallel(network, device_ids=[self.device] if self.device.type == "cuda" else None)

    def run(self) -> None:
        try:
            with ThreadPoolExecutor(1, "batches") as ahead:
                self._run(ahead)
        finally:
            if self.journal is not None:
                self.journal.close()

    def _run(self, ahead: ThreadPoolExecutor) -> None:
        session, config = self.session, self.config
        window: list[Row] = []
        since_s = time.perf_counter()
        upcoming = self._prepared(ahead, session.step)
        while session.step < session.num_steps:
            try:
                batch = upcoming.result()
                upcoming = self._prepared(ahead, session.step + 1)
                window.append(session.train_step(batch))
            except (NonFiniteLoss, ConfigError) as error:
                self._stop(error)
                return
            step, last = session.step, session.step == session.num_steps
            if step % config.log_every_steps == 0 or last:
                row = self._averaged(window, time.perf_counter() - since_s)
                if self.journal is not None:
                    self.journal.add(row)
                window, since_s = [], time.perf_counter()
            if step % config.checkpoint_every_steps == 0 or last:
                failure = broadcast_from_rank_zero(self._save() if self.rank == 0 else None)
                if failure is not None:
                    return
                ray.train.report({"step": step})  # a barrier, too slow for every row

    def _prepared(self, ahead: ThreadPoolExecutor, step: int) -> "Future[Batch]":
        """Start to make a step's batch, which depends only on the step's number, during the step before."""
        return ahead.submit(self._batch, min(step, self.session.num_steps - 1))

    def _batch(self, step: int) -> Batch:
        places = samples_of_step(step, self.config.batch_size, len(self.images), self.config.seed)
        return collate(
            [
                self.maker.sample(self.images[index], self.images.key(index), epoch=epoch, index=index)
                for epoch, index in places[self.rank :: self.world]
            ]
        )

    def _averaged(self, window: list[Row], seconds: float) -> Row:
        """Return the means of the window over all workers, with time, throughput and memory."""
        names = list(window[0])
        means = torch.tensor([sum(row[name] for row in window) / len(window) for name in names], dtype=torch.float64)
        peak = torch.tensor([_peak_memory_bytes(self.device)], dtype=torch.float64)
        if self.world > 1:
            means, peak = means.to(self.device), peak.to(self.device)
            dist.all_reduce(means)
            means /= self.world
            dist.all_reduce(peak, op=dist.ReduceOp.MAX)
        step = self.session.step
        return {
            "step": step,
            "epoch": (step * self.config.batch_size) / len(self.images),
            **dict(zip(names, means.tolist(), strict=True)),
            "learning_rate": window[-1]["learning_rate"],
            "images_per_s": len(window) * self.config.batch_size / seconds,
            "peak_memory_bytes": peak.item(),
            "seconds": seconds,
        }

    def _save(self) -> str | None:
        """Store a checkpoint. If that still fails after the store's retries, return the reason."""
        assert self.journal is not None
        try:
            self.folder.save(self.config, self.session.state_dict(), self.session.step, self.journal.rows)
            self.journal.store()
        except OSError as error:
            return self._stop(error)
        return None

    def _stop(self, error: Exception) -> str:
        """Record why the run ends here, where neither a retry nor another worker would help, and return the reason."""
        failure = Failure(self.session.step, str(error), self.rank)
        if isinstance(error, NonFiniteLoss):
            failure = replace(failure, term=error.term, keys=error.keys)
            if error.term == CLIPPED_TERM and self.world > 1 and self._told_by_another():
                return str(error)
        elif isinstance(error, OSError):
            failure = replace(failure, reason=f"the checkpoint could not be stored: {error}")
        try:
            self.folder.write_failure(failure)
        except OSError:
            print(f"failure.json could not be stored either: {failure}", file=sys.stderr)
        return failure.reason[:500]

    def _told_by_another(self) -> bool:
        """Return whether the worker whose own loss is not finite has recorded it, after giving it time to."""
        time.sleep(1)
        return self.folder.failure() is not None


class Journal:
    """Rank 0's metrics: rows of the table, TensorBoard, and MLflow if set.

    Metrics after the checkpoint that a run continues from are dropped, so that the curve is that of one run.
    """

    def __init__(self, folder: TrainRun, config: TrainConfig, step: int, num_steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.rows = folder.metrics(step)
        self._folder, self._config = folder, config
        self._events = tempfile.TemporaryDirectory(prefix="steelray-tensorboard-")
        self._writer = SummaryWriter(self._events.name, purge_step=step + 1 if step else None)
        self._num_steps, self._said_s = num_steps, 0.0

    def add(self, row: Row) -> None:
        self.rows.append(row)
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(row["step"]))
        if time.monotonic() - self._said_s > PROGRESS_EVERY_S:
            self._said_s = time.monotonic()
            cost = f"{row['images_per_s']:.3g} images/s"
            # Ray forwards a worker's output to the driver; Ray Train shows the output of `print` twice
            sys.stdout.write(f"step {row['step']:.0f} of {self._num_steps}: loss {row['total']:.4g}, {cost}\n")
            sys.stdout.flush()

    def store(self) -> None:
        """Write the curves and TensorBoard's files to the run's folder."""
        self._writer.flush()
        for file in Path(self._events.name).iterdir():
            self._folder.location.write(f"{TENSORBOARD}/{file.name}", file.read_bytes())
        if self.rows:
            body = loss_curves_png(self.rows, f"{self._config.run_name} ({self._config.model})")
            self._folder.location.write(CURVES_FILE, body)

    def close(self) -> None:
        """Remove TensorBoard's local folder; the copies that `store` has made stay."""
        self._writer.close()
        self._events.cleanup()


def _peak_memory_bytes(device: torch.device) -> float:
    """Return the peak memory of the GPU if there is one, else of this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    factor = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * factor)
