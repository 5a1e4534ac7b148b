"""Connecting to Ray, and the plan of how a pipeline's parts share the cluster's CPUs."""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from steelray.config import ComputeConfig, ConfigError
from steelray.job import progress_line

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


SECTIONS = "exception was the direct cause of the following exception:", "another exception occurred:"
RAYS_OWN = "UserCodeException"
"""What Ray Data wraps around the failure of a step."""
ADVICE = "Failed to apply UDF transform after", "To change retry attempts"
"""How the lines begin that Ray Data adds to a failure, on settings of its own."""


def cause_in_one_line(error: BaseException) -> str:
    """The last line of the traceback of what was raised first by our code, without Ray's wrappers around it."""
    sections: list[list[str]] = [[]]
    for line in str(error).splitlines():
        if line.strip().endswith(SECTIONS):
            sections.append([])
        elif line.strip() and not line.strip().startswith(ADVICE):
            sections[-1].append(line.strip())
    told = [lines for lines in sections if lines and not any(RAYS_OWN in line for line in lines)]
    return told[-1][-1] if told else type(error).__name__


EVERY_S = 2.0
CONNECT_S = 5.0
AWAY_S = 45.0
"""How long a head may be away, which one with a database behind it survives. Ray gives up after 60 s."""
WHAT_TO_DO = "if it was stopped or restarted, start the cluster and run the same command to continue"


def reach(address: str) -> None:
    """Opens a connection to HOST:PORT and closes it. Raises `OSError` if nobody answers within seconds."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()


@contextmanager
def head_watched(address: str) -> Iterator[None]:
    """Ends this process with code 1 and a line if the head at HOST:PORT does not answer any more."""
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(address, ended), daemon=True, name="head watch")
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _watch(address: str, ended: threading.Event) -> None:
    lost_at_s: float | None = None
    while not ended.wait(EVERY_S):
        try:
            reach(address)
        except OSError:
            if lost_at_s is None:
                lost_at_s = time.monotonic()
                # at once: if the head is restarted, Ray ends this process before another line can be said
                _say(f"the Ray head at {address} does not answer; {WHAT_TO_DO}", "warning")
            elif time.monotonic() - lost_at_s > AWAY_S:
                _say(f"error: the Ray head at {address} has not answered for {AWAY_S:.0f} s: {WHAT_TO_DO}", "error")
                os._exit(1)  # the main thread waits in Ray, which would wait on
        else:
            lost_at_s = None


def _say(line: str, level: str) -> None:
    print(progress_line(line, level=level), file=sys.stderr, flush=True)
