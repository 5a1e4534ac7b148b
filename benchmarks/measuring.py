"""How every benchmark measures: repeated runs, their median, and where and with what they were made."""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SCRATCH = ROOT / ".bench"
"""Generated data and the reference's environment; not in the repository."""
REPEATS = 3


def timed(run: Callable[[], object], repeats: int = REPEATS) -> dict[str, Any]:
    """Seconds of repeated runs, each in `runs_s`, and their median `seconds`."""
    seconds = []
    for _ in range(repeats):
        start_s = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start_s)
    return {"seconds": statistics.median(seconds), "runs_s": [round(s, 4) for s in seconds]}


def peak_memory_bytes() -> int:
    """The most memory that this process has had resident."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def current_memory_bytes() -> int:
    """What this process has resident now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def load_average() -> float | None:
    """Of the last minute (Linux)."""
    file = Path("/proc/loadavg")
    return float(file.read_text().split()[0]) if file.exists() else None


def environment() -> dict[str, Any]:
    """Hardware, versions, commit and date. Imports torch, which takes memory: not before memory is measured."""
    from steelray.provenance import git_commit, hardware, package_versions

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "hardware": hardware(),
        "versions": package_versions(),
    }


def rounded(value: Any, digits: int = 5) -> Any:
    """Numbers of a result, short enough to read."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: rounded(entry, digits) for key, entry in value.items()}
    return [rounded(entry, digits) for entry in value] if isinstance(value, list) else value


def reference_python() -> Path:
    """The interpreter of an environment with anomalib 2.7, made on first use; it takes about a minute.

    anomalib wants other versions of some packages than steelray pins, so it gets an environment of its own, which
    borrows torch and whatever else fits from ours.
    """
    folder = SCRATCH / "anomalib"
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        print("installing anomalib 2.7 into .bench/anomalib", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)  # noqa: S603
        ours = next(path for path in map(Path, sys.path) if path.name == "site-packages")
        theirs = next(folder.glob("lib/python*/site-packages"))
        (theirs / "borrowed.pth").write_text(f"import site; site.addsitedir({str(ours)!r})\n")
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "anomalib==2.7.*"]
        subprocess.run(command, check=True)  # noqa: S603
        ready.touch()
    return python


def ask_reference(*arguments: str | int | float | Path) -> dict[str, Any]:
    """Runs benchmarks/anomalib_reference.py in its environment; its last line is the answer."""
    command = [reference_python(), Path(__file__).with_name("anomalib_reference.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=SCRATCH)  # noqa: S603
    if done.returncode != 0:
        raise RuntimeError(f"anomalib failed: {done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
