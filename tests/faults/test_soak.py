"""Score 20,000 small images in one run: the memory of driver, actors and object store stays flat."""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from steelray.demo.synthetic import make_strip
from steelray.runs.run import Run
from steelray.storage.location import Location
from tests.faults.conftest import REPOSITORY, Job, RestartableStore
from tests.plant import Plant

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
NUM_IMAGES = int(os.environ.get("STEELRAY_SOAK_IMAGES", "20000"))
NUM_DISTINCT = 200
ROLES = {"driver": "score_archive.py", "scorer": "ScoringActor", "reader": "ReadImages"}
MAX_GROWTH = 1.10
"""Last third of the scoring over the second; the first does not count, because allocators keep what they once had."""
ALLOWANCE_MB = 30


def memory_mb(process: int) -> tuple[float, float]:
    """Return a process's own memory, and the part of the object store that it has touched."""
    status = Path(f"/proc/{process}/status").read_text()
    anonymous, shared = (
        int(found[1]) / 1024 if (found := re.search(rf"{name}:\s+(\d+) kB", status)) else 0.0
        for name in ("RssAnon", "RssShmem")
    )
    return anonymous, shared


def test_memory_stays_flat(built_plant: Plant, store: RestartableStore) -> None:
    archive, bank = Location("s3://archive/soak/archive"), Location("s3://archive/soak/bank")
    for stored in built_plant.place("bank").list():
        bank.write(stored.key, built_plant.place("bank").read(stored.key))
    bodies = [make_strip(5, index, size_px=(64, 256)).jpeg() for index in range(NUM_DISTINCT)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: archive.write(f"{i % 7}/{i:06d}.jpg", bodies[i % NUM_DISTINCT]), range(NUM_IMAGES)))

    mark = "soak-" + os.urandom(8).hex()
    command = [
        sys.executable, str(REPOSITORY / "jobs" / "score_archive.py"), "--archive.uri", archive.uri,
        "--model_uri", bank.uri, "--results_uri", "s3://archive/soak/results", "--max_quarantine_share", "0",
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        env={**os.environ, "STEELRAY_FAULT_MARK": mark, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    job = Job(process, mark, "s3://archive/soak/results")
    samples: dict[str, list[float]] = defaultdict(list)
    while process.poll() is None:
        if scorers := job.workers(ROLES["scorer"]):
            for role, title in ROLES.items():
                # the largest of its kind: readers start and end, and at times there is none
                if used := [memory_mb(one) for one in (scorers if role == "scorer" else job.workers(title))]:
                    samples[role].append(max(own for own, _ in used))
            samples["object store"].append(max(memory_mb(one)[1] for one in scorers))
        time.sleep(1)
    stdout, _ = process.communicate()
    assert process.returncode == 0
    summary = json.loads(stdout.splitlines()[-1])
    assert summary["counts"]["ok"] == summary["counts"]["listed"] == NUM_IMAGES

    figures = {}
    for role, values in samples.items():
        third = len(values) // 3
        assert third >= 10, f"only {len(values)} samples: raise STEELRAY_SOAK_IMAGES"
        figures[role] = tuple(statistics.median(part) for part in (values[third : 2 * third], values[2 * third :]))
    print({role: f"{before:.0f} -> {after:.0f} MB" for role, (before, after) in figures.items()})
    for before, after in figures.values():
        assert after <= MAX_GROWTH * before + ALLOWANCE_MB, figures

    rows = Run("s3://archive/soak/results", summary["run_id"]).scores(["image_key", "anomaly_score"])
    of_body: dict[int, set[float]] = defaultdict(set)
    for key, score in zip(*(rows.column(name).to_pylist() for name in rows.column_names), strict=True):
        of_body[int(key[2:8]) % NUM_DISTINCT].add(score)
    assert all(len(scores) == 1 for scores in of_body.values()), "the same strip has the same score"
