"""Scoring over several raylets of one machine, and what the loss of a node costs.

The machine's cores do not grow with the nodes, so this shows what it costs to move blocks between them, not a speed-up.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.data import archive, strips
from benchmarks.growth import TILE_PX
from benchmarks.measuring import REPEATS, SCRATCH
from benchmarks.nightly import finish, safe_rows, start
from steelray.storage.location import Location
from tests.nodes.test_several_nodes import SHARDED, Nodes, cluster_of

NODES = (1, 2, 4)


def scoring_s(cpus: tuple[int, ...], folder: Path, *more: str, meanwhile: Callable[[Nodes, str], None]) -> float:
    """Seconds of the scoring part of one run on a cluster of such nodes of its own, disturbed by `meanwhile`."""
    results_uri = str(SCRATCH / f"nodes-{time.time_ns()}")
    with tempfile.TemporaryDirectory() as home, cluster_of(*cpus, home=Path(home), environment={}) as nodes:
        environment = {
            "RAY_ADDRESS": nodes.address, "RAY_AUTH_MODE": "token", "HOME": home, "OMP_NUM_THREADS": "1"
        }  # fmt: skip
        job = start(folder, results_uri, *more, environment=environment)
        meanwhile(nodes, results_uri)
        summary = finish(job)
    if summary["counts"]["ok"] != summary["counts"]["listed"]:
        raise RuntimeError(f"not every image has a score: {summary['counts']}")
    Location(results_uri).delete_all()
    return float(summary["scoring_s"])


def undisturbed(nodes: Nodes, results_uri: str) -> None:
    """Lets the run be."""


def kill_one(nodes: Nodes, results_uri: str) -> None:
    """Once rows are safe one of the nodes is killed, and another of its size joins."""
    while not safe_rows(results_uri):
        time.sleep(0.1)
    nodes.kill(1)
    nodes.add(1)


def by_nodes(count: int) -> dict[str, Any]:
    """Images per second with the same bank in two shards over 1, 2 and 4 nodes."""
    folder = archive("tiles", count, strips(32, 1, TILE_PX))
    rates: dict[int, list[float]] = {number: [] for number in NODES}
    for _ in range(REPEATS):
        for number in NODES:
            cpus = (2,) if number == 1 else (1,) * number
            rates[number].append(count / scoring_s(cpus, folder, *SHARDED, meanwhile=undisturbed))
    medians = {str(number): statistics.median(values) for number, values in rates.items()}
    return {"images_on_nodes": count, "images_per_s": medians, "runs": {str(n): values for n, values in rates.items()}}


def node_killed(count: int) -> dict[str, Any]:
    """Two nodes of one CPU each; one is lost and replaced: scoring seconds against an undisturbed run's."""
    folder = archive("tiles", count, strips(32, 1, TILE_PX))
    turns = []
    for _ in range(REPEATS):
        clean = scoring_s((1, 1), folder, meanwhile=undisturbed)
        killed = scoring_s((1, 1), folder, meanwhile=kill_one)
        turns.append({"clean_s": clean, "killed_s": killed})
    ratio = statistics.median(turn["killed_s"] / turn["clean_s"] for turn in turns)
    return {"images_with_a_kill": count, "turns": turns, "killed_over_clean": ratio}


CASES = {"by-nodes-500": lambda: by_nodes(500), "killed-4000": lambda: node_killed(4000)}
QUICK_CASES = {"by-nodes-200": lambda: by_nodes(200), "killed-500": lambda: node_killed(500)}
