"""Connect to Ray for the duration of a job, watch its head, and name the cause of a failure on another process."""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from steelray.config import ConfigError
from steelray.job import progress_line

CONNECT_S = 5.0
WATCH_EVERY_S = 2.0
AWAY_S = 45.0
"""Seconds that a head may be away; one with a database behind it survives a restart. Ray gives up after 60 s."""
REMEDY = "if it was stopped or restarted, start the cluster and run the same command to continue"

SECTIONS = "exception was the direct cause of the following exception:", "another exception occurred:"
"""Ends of the lines that separate the tracebacks of chained exceptions."""
RAYS_WRAPPER = "UserCodeException"
"""Name of the exception that Ray Data puts around the failure of a step."""
RAYS_ADVICE = "Failed to apply UDF transform after", "To change retry attempts"
"""Beginnings of the lines about its own settings that Ray Data adds to a failure."""


@contextmanager
def connected(num_cpus: int | None = None, *, dashboard: bool = False) -> Iterator[dict[str, float]]:
    """Connect to the cluster that RAY_ADDRESS names, or start one on this machine's loopback.

    Args:
        num_cpus: CPUs of a cluster of this machine's own; None: all.
        dashboard: whether a cluster of this machine's own gets one. Ray Train asks the dashboard whether its controller
            is alive. Without one it would ask another cluster's on this machine, not find the controller there, and
            take the workers' resources away.

    Yields:
        The cluster's total resources.

    Raises:
        ConfigError: nobody answers at RAY_ADDRESS, or this client is refused.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_NON_TTY_PROGRESS_LOG_INTERVAL", "30")
    import ray  # after the variables, which it reads

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
        if not address.startswith("ray://"):  # a remote client reaches only its proxy
            watch = head_watched(ray.get_runtime_context().gcs_address)
    else:
        ray.init(address="local", num_cpus=num_cpus, include_dashboard=dashboard, logging_level="warning")
    try:
        with watch:
            yield ray.cluster_resources()
    finally:
        ray.shutdown()


@contextmanager
def head_watched(address: str) -> Iterator[None]:
    """End this process with exit code 1 and one line if the head at HOST:PORT no longer answers."""
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(address, ended), daemon=True, name="head watch")
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def cause_in_one_line(error: BaseException) -> str:
    """Return the last line of the traceback of the exception that our code raised first, without Ray's wrappers."""
    sections: list[list[str]] = [[]]
    for line in str(error).splitlines():
        if line.strip().endswith(SECTIONS):
            sections.append([])
        elif line.strip() and not line.strip().startswith(RAYS_ADVICE):
            sections[-1].append(line.strip())
    told = [lines for lines in sections if lines and not any(RAYS_WRAPPER in line for line in lines)]
    return told[-1][-1] if told else type(error).__name__


def _check_answers(address: str) -> None:
    """Raise `ConfigError` within seconds if nobody answers, which Ray would try for minutes."""
    if address.startswith(("http://", "https://")):
        raise ConfigError(f"RAY_ADDRESS {address} is a job server: give it this job with `ray job submit`")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return  # `auto`, `local`, ray://: left to Ray
    try:
        _reach(address)
    except OSError as error:
        raise ConfigError(
            f"RAY_ADDRESS {address}: no Ray cluster answers ({error}): start it, or unset RAY_ADDRESS"
        ) from None


def _reach(address: str) -> None:
    """Open a connection to HOST:PORT and close it. Raises `OSError` if nobody answers within seconds."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()


def _watch(address: str, ended: threading.Event) -> None:
    lost_at_s: float | None = None
    while not ended.wait(WATCH_EVERY_S):
        try:
            _reach(address)
        except OSError:
            if lost_at_s is None:
                lost_at_s = time.monotonic()
                # at once: if the head is restarted, Ray ends this process before another line can be printed
                _say(f"the Ray head at {address} does not answer; {REMEDY}", "warning")
            elif time.monotonic() - lost_at_s > AWAY_S:
                _say(f"error: the Ray head at {address} has not answered for {AWAY_S:.0f} s: {REMEDY}", "error")
                os._exit(1)  # the main thread is blocked in Ray and would stay there
        else:
            lost_at_s = None


def _say(line: str, level: str) -> None:
    print(progress_line(line, level=level), file=sys.stderr, flush=True)
