"""Scoring over several real raylets (ray.cluster_utils.Cluster), with the driver in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Literal

import pytest

from steelray.demo.object_store import ObjectStore
from steelray.runs.run import RUNS
from steelray.storage.location import Location
from tests.nodes.conftest import BIN, JOB_S, REPOSITORY, World, last_json, many_strips, rows_written, scores_of
from tests.waiting import wait_for

pytestmark = pytest.mark.cluster
LARGE = 400
FIRST_ROWS_S = 240
SHARDED = ("--compute.bank_shards", "2")


class Nodes:
    """A running cluster, controlled through node_server.py."""

    def __init__(self, process: "subprocess.Popen[str]", environment: dict[str, str]) -> None:
        self._process = process
        self._environment = environment
        self.address = self._answer()

    def _answer(self) -> str:
        stdout = self._process.stdout
        assert stdout is not None
        while line := stdout.readline():
            if line.strip() and not line.startswith(("\x1b", "20")):  # Ray's own lines of progress
                return line.strip()
        raise AssertionError("the cluster ended")

    def _ask(self, line: str) -> str:
        stdin: IO[str] | None = self._process.stdin
        assert stdin is not None
        stdin.write(f"{line}\n")
        stdin.flush()
        return self._answer()

    def add(self, cpus: int, **environment: str) -> int:
        return int(self._ask(f"add {cpus} {json.dumps(environment)}"))

    def kill(self, number: int | Literal["head"]) -> None:
        assert self._ask(f"kill {number}") == "killed"

    def start(self, world: World, *arguments: str) -> "subprocess.Popen[str]":
        """Start jobs/score_archive.py as a driver on this cluster."""
        return subprocess.Popen(
            [sys.executable, str(REPOSITORY / "jobs/score_archive.py"), *arguments],
            env={**self._environment, **world.environment, "RAY_ADDRESS": self.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, world: World, *arguments: str) -> tuple[int, str, str]:
        driver = self.start(world, *arguments)
        stdout, stderr = driver.communicate(timeout=JOB_S)
        return driver.returncode, stdout, stderr


@contextmanager
def cluster_of(*cpus: int, home: Path, environment: Mapping[str, str]) -> Iterator[Nodes]:
    """Start a head without work and a node for each number of CPUs, with these variables in its workers."""
    own = {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run([str(BIN / "ray"), "get-auth-token", "--generate"], env=own, capture_output=True, check=True)
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("node_server.py"))],
        env={**own, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        nodes = Nodes(process, own)
        for count in cpus:
            nodes.add(count)
        yield nodes
    finally:
        process.communicate(timeout=60)  # closes stdin, which ends the cluster


@contextmanager
def disturbed(nodes: Nodes, world: World, results_uri: str, *more: str) -> Iterator["subprocess.Popen[str]"]:
    """Start a run over a long archive and yield its driver once the first rows are written."""
    archive = many_strips(world.root, LARGE)
    arguments = world.score_arguments(results_uri, "--compute.batch_size", "4", "--archive.uri", archive.uri, *more)
    with nodes.start(world, *arguments) as driver:
        try:
            wait_for(lambda: rows_written(results_uri), FIRST_ROWS_S, process=driver)
            yield driver
        finally:
            driver.kill()


@pytest.mark.parametrize("num_nodes", [1, 2, 4])
def test_scores_do_not_depend_on_the_number_of_nodes(
    num_nodes: int, world: World, local_scores: dict[str, tuple[object, ...]], object_store: ObjectStore, tmp_path: Path
) -> None:
    results_uri = f"{world.root}/results-{num_nodes}-nodes"
    with cluster_of(
        *[2 if num_nodes == 1 else 1] * num_nodes, home=tmp_path, environment=object_store.environment
    ) as nodes:
        code, stdout, stderr = nodes.run(world, *world.score_arguments(results_uri, *SHARDED))
    assert code == 0, stderr
    summary = last_json(stdout)
    assert scores_of(results_uri, summary["run_id"]) == local_scores
    record = json.loads(Location(f"{results_uri}/{RUNS}/{summary['run_id']}").read("run.json"))
    assert record["bank_plan"]["placement"] == "sharded"
    assert record["compute_plan"]["num_shards"] == 2
    assert record["compute_plan"]["num_scorers"] == max(2, num_nodes)


def test_a_node_is_killed_and_another_joins_while_it_runs(
    world: World, object_store: ObjectStore, tmp_path: Path
) -> None:
    results_uri = f"{world.root}/results-killed"
    with (
        cluster_of(2, 2, home=tmp_path, environment=object_store.environment) as nodes,
        disturbed(nodes, world, results_uri, *SHARDED) as driver,
    ):
        nodes.kill(1)
        nodes.add(2)
        stdout, stderr = driver.communicate(timeout=JOB_S)
    assert driver.returncode == 0, stderr
    summary = last_json(stdout)
    scores = scores_of(results_uri, summary["run_id"])
    assert len(scores) == LARGE, "nothing lost, nothing twice"
    for index in range(LARGE):
        assert scores[f"{index:04d}.jpg"] == scores[f"{index % 8:04d}.jpg"], "the same strip has the same score"


def test_missing_resources_are_reported_before_anything_starts(
    world: World, object_store: ObjectStore, tmp_path: Path
) -> None:
    results_uri = f"{world.root}/results-impossible"
    with cluster_of(1, 1, home=tmp_path, environment=object_store.environment) as nodes:
        for more, said in [
            (("--compute.gpus_per_scorer", "1"), "a scorer needs 1.0 GPUs, the cluster has 0"),
            (("--compute.num_scorers", "1", "--compute.cpus_per_scorer", "2"), "1 scorers of 1.5 CPUs do not fit"),
            (("--compute.num_scorers", "9"), "9 scorers"),
            (("--compute.bank_shards", "40"), "40 shards"),
        ]:
            code, stdout, stderr = nodes.run(world, *world.score_arguments(results_uri, *more))
            assert (code, stdout) == (2, ""), stderr
            assert said in stderr.splitlines()[-1]
        # a node whose credentials are wrong
        nodes.add(1, AWS_SECRET_ACCESS_KEY="wrong")
        code, _, stderr = nodes.run(world, *world.score_arguments(results_uri))
        assert code == 2, stderr
        assert "cannot use a location that the job needs" in stderr.splitlines()[-1]
        assert object_store.environment["AWS_SECRET_ACCESS_KEY"] not in stderr
    assert not [o for o in Location(f"{results_uri}/{RUNS}").list() if "/scores/" in o.key]


def test_a_job_waits_for_the_nodes_that_an_autoscaler_brings(
    world: World, local_scores: dict[str, tuple[object, ...]], object_store: ObjectStore, tmp_path: Path
) -> None:
    results_uri = f"{world.root}/results-waited"
    more = ("--compute.num_scorers", "1", "--compute.wait_for_nodes_s", "120")
    with cluster_of(home=tmp_path, environment=object_store.environment) as nodes, ExitStack() as stack:
        driver = stack.enter_context(nodes.start(world, *world.score_arguments(results_uri, *more)))
        stack.callback(driver.kill)
        assert driver.stderr is not None
        while line := driver.stderr.readline():
            if "waiting up to 120 s for nodes" in line:
                break
        nodes.add(2)
        stdout, stderr = driver.communicate(timeout=JOB_S)
    assert driver.returncode == 0, stderr
    assert scores_of(results_uri, last_json(stdout)["run_id"]) == local_scores


def test_a_lost_head_is_one_line_that_names_it(world: World, object_store: ObjectStore, tmp_path: Path) -> None:
    results_uri = f"{world.root}/results-headless"
    with (
        cluster_of(2, home=tmp_path, environment=object_store.environment) as nodes,
        disturbed(nodes, world, results_uri) as driver,
    ):
        nodes.kill("head")
        _, stderr = driver.communicate(timeout=JOB_S)
    assert driver.returncode == 1
    [line] = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: the Ray head at {nodes.address} has not answered for 45 s: ")
    assert line.endswith("start the cluster and run the same command to continue")
