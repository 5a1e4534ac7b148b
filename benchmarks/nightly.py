"""What a second attempt costs: of a run that is complete, and of one that was killed in the middle.

Jobs are processes, as a night's are. Resuming is compared with a run of its own over as many images as were left.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.data import archive, strips
from benchmarks.growth import TILE_PX, built_bank
from benchmarks.measuring import REPEATS, ROOT, SCRATCH
from steelray.runs.run import CHECKPOINT_DIR, PENDING, RUNS
from steelray.storage.location import Location

ATTEMPT_S = 1200


def start(
    folder: Path, results_uri: str, *more: str, environment: dict[str, str] | None = None
) -> "subprocess.Popen[str]":
    """jobs/score_archive.py over an archive of 256x256 pieces."""
    command = [
        sys.executable, str(ROOT / "jobs" / "score_archive.py"), "--archive.uri", str(folder),
        "--model_uri", built_bank(), "--results_uri", results_uri, *more,
    ]  # fmt: skip
    env = {**os.environ, **(environment or {})}
    return subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env, start_new_session=True
    )


def finish(job: "subprocess.Popen[str]") -> dict[str, Any]:
    """Its summary. Raises `RuntimeError` where it failed."""
    stdout, _ = job.communicate(timeout=ATTEMPT_S)
    if job.returncode != 0:
        raise RuntimeError(f"jobs/score_archive.py ended with {job.returncode}")
    summary: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    return summary


def timed_job(folder: Path, results_uri: str, *more: str) -> tuple[float, dict[str, Any]]:
    start_s = time.perf_counter()
    summary = finish(start(folder, results_uri, *more))
    return time.perf_counter() - start_s, summary


def rerun(count: int) -> dict[str, Any]:
    """A run, and the same command again, three times."""
    folder = archive("tiles", count, strips(32, 1, TILE_PX))
    results_uri = str(SCRATCH / f"rerun-{time.time_ns()}")
    first_s, _ = timed_job(folder, results_uri)
    again = []
    for _ in range(REPEATS):
        seconds, summary = timed_job(folder, results_uri)
        if not summary.get("already_complete"):
            raise RuntimeError(f"the second attempt did something: {summary}")
        again.append(seconds)
    Location(results_uri).delete_all()
    return {"rerun_of": count, "first_s": first_s, "again_s": statistics.median(again), "runs_s": again}


def safe_rows(results_uri: str) -> bool:
    """Whether a part of the run has been written for good."""
    keys = [stored.key for stored in Location(f"{results_uri}/{RUNS}").list()]
    return any(f"/{CHECKPOINT_DIR}/" in key and not key.endswith(PENDING) for key in keys)


def resume(count: int, kill_after_s: float) -> dict[str, Any]:
    """A run that is killed some time after its first rows are safe, what the next attempt takes, and what a fresh run
    over as many images takes: whole jobs, each with its start."""
    folder = archive("tiles", count, strips(32, 1, TILE_PX))
    turns = []
    for _ in range(REPEATS):
        results_uri = str(SCRATCH / f"resume-{time.time_ns()}")
        job = start(folder, results_uri)
        while not safe_rows(results_uri):
            if job.poll() is not None:
                raise RuntimeError("the run ended before it could be killed")
            time.sleep(0.1)
        time.sleep(kill_after_s)
        job.send_signal(signal.SIGKILL)
        job.wait()
        time.sleep(5)  # the dead driver's raylet and actors go by themselves
        resumed_s, summary = timed_job(folder, results_uri)
        left = int(summary["scored_now"])
        fresh_s, fresh = timed_job(folder, f"{results_uri}-fresh", "--archive.limit", str(left))
        turns.append({"left": left, "resumed_s": resumed_s, "fresh_s": fresh_s, "fresh": fresh["scored_now"]})
        for uri in (results_uri, f"{results_uri}-fresh"):
            Location(uri).delete_all()
    ratios = [turn["resumed_s"] / turn["fresh_s"] for turn in turns]
    return {"resume_of": count, "turns": turns, "resumed_over_fresh": statistics.median(ratios)}


CASES = {"rerun-10000": lambda: rerun(10_000), "resume-4000": lambda: resume(4000, 5.0)}
QUICK_CASES = {"rerun-500": lambda: rerun(500), "resume-1000": lambda: resume(1000, 1.0)}
