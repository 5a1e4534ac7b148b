"""Waiting for a condition of real processes."""

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

Answer = TypeVar("Answer")


def wait_for(
    condition: Callable[[], Answer],
    timeout_s: float,
    complaint: Callable[[], str] = str,
    *,
    process: "subprocess.Popen[str] | subprocess.Popen[bytes] | None" = None,
) -> Answer:
    """Return the first true answer of `condition`, an OSError being false.

    Fail with `complaint`, and what `process` wrote to a piped stderr, at the deadline or when `process` has ended.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and (process is None or process.poll() is None):
        with suppress(OSError):
            if answer := condition():
                return answer
        time.sleep(0.05)
    written = None
    if process is not None:
        process.kill()
        written = process.communicate()[1]
    raise AssertionError(f"{complaint()} {written or ''}")
