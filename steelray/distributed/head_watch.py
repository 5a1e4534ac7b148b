"""Says that the cluster's head is lost, and what to do: Ray itself ends a driver a minute later, with a stack trace."""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from steelray.progress import progress_line

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
