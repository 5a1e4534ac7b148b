"""Connecting to Ray, and the plan of how a pipeline's parts share the cluster's CPUs."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from steelray.config import ComputeConfig, ConfigError
from steelray.distributed.head_watch import head_watched, reach

TASK_CPUS = 0.25
"""Logical share of a reading, decoding or writing task: they mostly wait for storage."""
SHARD_CPUS = 0.25
"""Logical share of a shard actor."""
MIN_SCORER_CPUS = 0.25
RESTARTS = 3
"""How often Ray may restart an actor that holds a shard."""
SCORER_SHARE = 0.75
"""Logical share of a scorer per configured CPU; the rest carries the tasks that feed it."""


@dataclass(frozen=True)
class ComputePlan:
    """How many actors, and what each asks of Ray."""

    num_scorers: int
    scorer_cpus: float
    scorer_gpus: float
    scorer_threads: int
    num_shards: int

    def to_dict(self) -> dict[str, Any]:
        """For run.json."""
        return asdict(self)


def plan_compute(cpus: float, gpus: float, compute: ComputeConfig, num_shards: int = 0) -> ComputePlan:
    """Fits scorers, shard actors and tasks into a cluster, so that a pipeline never waits for what cannot come.

    Raises:
        ConfigError: not even one scorer fits; says what is missing.
    """
    free_cpus = cpus - 2 * TASK_CPUS - num_shards * SHARD_CPUS
    scorer_cpus = compute.cpus_per_scorer * SCORER_SHARE
    if compute.gpus_per_scorer > gpus:
        raise ConfigError(
            f"a scorer needs {compute.gpus_per_scorer} GPUs, the cluster has {gpus:g}: set compute.gpus_per_scorer to 0"
        )
    if compute.num_scorers is None and free_cpus > 0:
        # a small machine: as many scorers as it has cores for, which share what the shards leave
        wanted = max(1, int(cpus / compute.cpus_per_scorer))
        scorer_cpus = min(scorer_cpus, max(free_cpus / wanted, MIN_SCORER_CPUS))
    fit = int(free_cpus / scorer_cpus + 1e-6) if free_cpus > 0 else 0
    if compute.gpus_per_scorer > 0:
        fit = min(fit, int(gpus / compute.gpus_per_scorer + 1e-6))
    count = compute.num_scorers or fit
    if fit < 1 or count > fit:
        needed = count * scorer_cpus if count else scorer_cpus
        raise ConfigError(
            f"{max(count, 1)} scorers and {num_shards} shards need {needed + cpus - free_cpus:g} CPUs, "
            f"the cluster has {cpus:g}: lower compute.num_scorers or compute.bank_shards"
        )
    return ComputePlan(count, scorer_cpus, compute.gpus_per_scorer, max(1, int(compute.cpus_per_scorer)), num_shards)


@contextmanager
def connected(num_cpus: int | None = None, *, dashboard: bool = False) -> Iterator[dict[str, float]]:
    """Ray for the duration of a job: the cluster that RAY_ADDRESS names, or one of this machine's own, on loopback.

    Args:
        dashboard: whether a cluster of this machine's own gets one. Ray Train needs it: it asks the dashboard whether
            its controller lives, and without one of its own it asks that of another cluster on the machine, does not
            find the controller there, and takes the workers' resources away.

    Yields:
        The cluster's total resources.

    Raises:
        ConfigError: nobody answers at RAY_ADDRESS, or not to this client.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_NON_TTY_PROGRESS_LOG_INTERVAL", "30")
    import ray

    if ray.is_initialized():
        yield ray.cluster_resources()
        return
    watch: AbstractContextManager[None] = nullcontext()
    if address := os.environ.get("RAY_ADDRESS"):
        _check_answers(address)
        try:
            ray.init(logging_level="warning")
        except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as error:
            # another version of Ray or Python, or no token: Ray says which
            raise ConfigError(f"RAY_ADDRESS {address}: {' '.join(str(error).split())}") from None
        if not address.startswith("ray://"):  # a remote client reaches no more than its proxy
            watch = head_watched(ray.get_runtime_context().gcs_address)
    else:
        ray.init(address="local", num_cpus=num_cpus, include_dashboard=dashboard, logging_level="warning")
    try:
        with watch:
            yield ray.cluster_resources()
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raises `ConfigError` within seconds where Ray would try for minutes."""
    if address.startswith(("http://", "https://")):
        raise ConfigError(f"RAY_ADDRESS {address} is a job server: give it this job with `ray job submit`")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return  # `auto`, `local`, ray://: Ray knows
    try:
        reach(address)
    except OSError as error:
        raise ConfigError(
            f"RAY_ADDRESS {address}: no Ray cluster answers ({error}): start it, or unset RAY_ADDRESS"
        ) from None
