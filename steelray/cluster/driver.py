"""The frame of every job on the cluster: dry run, connection, plan, expected stops and run.json."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

import pyarrow as pa
import ray
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from steelray.cluster.connect import cause_in_one_line, connected
from steelray.cluster.placement import plan_on_cluster
from steelray.cluster.plan import ComputePlan, plan_compute
from steelray.config import Facts, JobFailed, ModelJobConfig
from steelray.job import num_cores, show_plan
from steelray.patchcore.index import BankUnavailable
from steelray.provenance import run_record
from steelray.storage.location import Location, ObjectChanged

Report = Callable[[str], None]
"""Takes a line of progress."""

EXPECTED_STOPS = (RayError, ExecutionTimeoutError, BankUnavailable, ObjectChanged, OSError, pa.ArrowInvalid)
"""Failures of the cluster, the store or a disk; everything else is a bug and keeps its traceback."""


@contextmanager
def expected_stops(what: str, remedy: str = "run the same command again") -> Iterator[None]:
    """Turn every expected stop of the block into a `JobFailed` of one line.

    Args:
        what: name of the work, such as `run 7c1e`.
        remedy: advice to the user.
    """
    try:
        yield
    except EXPECTED_STOPS as error:
        raise JobFailed(f"{what} stopped: {cause_in_one_line(error)}; {remedy}") from error


@dataclass(frozen=True)
class ModelJob:
    """A job that makes one model on the cluster.

    Attributes:
        config: the job's settings.
        target: location of the model; run.json is written there last.
        what: name of the work, for messages.
        uris: locations that every node must reach.
        facts: entries of run.json and of a dry run's plan beside the settings.
        num_shards: shard actors that work beside the scorers.
        started_at: start of the job.
    """

    config: ModelJobConfig
    target: Location
    what: str
    uris: Sequence[str]
    facts: Facts
    num_shards: int = 0
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def run(self, make: Callable[[ComputePlan], Facts], report: Report) -> dict[str, Any]:
        """Connect, make the model and record the run; a dry run shows the plan instead.

        Args:
            make: makes the model with a plan that fits the cluster, and returns the summary.

        Returns:
            The summary.

        Raises:
            ConfigError: something the user must correct.
            JobFailed: the cluster or the store failed.
        """
        compute = self.config.compute
        if self.config.dry_run:
            plan = plan_compute(num_cores(), 0, compute, self.num_shards)
            return show_plan(self.config, {**self.facts, "compute": asdict(plan)})
        with expected_stops(self.what), connected():
            plan = plan_on_cluster(compute, self.num_shards, self.uris, report)
            start_s = perf_counter()
            summary = {**make(plan), "seconds": round(perf_counter() - start_s, 2)}
        record = run_record(self.config, self.started_at, **self.facts, compute_plan=asdict(plan), summary=summary)
        self.target.write("run.json", record)
        return summary


def cluster_resources() -> tuple[float, float]:
    """Return the CPUs and GPUs of the connected cluster as of now; nodes may have joined since the plan was made."""
    resources = ray.cluster_resources()
    return resources.get("CPU", 0.0), resources.get("GPU", 0.0)
