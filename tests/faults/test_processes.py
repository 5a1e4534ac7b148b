"""The driver, a scoring actor, a shard of the bank or a whole node is killed."""

import os
import signal
from pathlib import Path

import pytest

from tests.faults.conftest import SLOW_IMAGES, FaultyPlant
from tests.nodes.test_several_nodes import cluster_of
from tests.waiting import wait_for

pytestmark = pytest.mark.faults
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's agents, seen to outlive their raylet by a little over a minute and then to end by themselves."""
SHARDED = ("--compute.bank_shards", "2")


def test_a_killed_driver_is_started_again_at_once(plant_in_store: FaultyPlant, results_uri: str) -> None:
    plant_in_store.proxy.plan(SLOW_IMAGES)
    job = plant_in_store.start(results_uri)
    job.wait_until_some_rows_are_safe()
    job.process.send_signal(signal.SIGKILL)
    assert job.end().code == -signal.SIGKILL
    plant_in_store.proxy.plan()
    ending = plant_in_store.finish(results_uri)
    assert 0 < ending.summary["scored_now"] < 160, "written rows are not scored again"
    plant_in_store.check_like_clean(results_uri)
    assert plant_in_store.run(results_uri).summary["already_complete"] is True


@pytest.mark.parametrize(
    ("title", "arguments"), [("ScoringActor", ()), ("SearchServer", SHARDED)], ids=["scoring actor", "shard actor"]
)
def test_a_killed_actor_comes_back(
    plant_in_store: FaultyPlant, results_uri: str, title: str, arguments: tuple[str, ...]
) -> None:
    plant_in_store.proxy.plan(SLOW_IMAGES)
    job = plant_in_store.start(results_uri, *arguments)
    job.wait_until_some_rows_are_safe()
    [killed, *_] = job.wait_for(lambda: job.workers(title))
    os.kill(killed, signal.SIGKILL)
    plant_in_store.continue_after(job.end(), results_uri, *arguments)


def test_a_node_is_lost_for_good(plant_in_store: FaultyPlant, results_uri: str, tmp_path: Path) -> None:
    """One of two raylets is killed and not replaced."""
    plant_in_store.proxy.plan(SLOW_IMAGES)
    environment = {**plant_in_store.store.environment, "AWS_ENDPOINT_URL": plant_in_store.proxy.endpoint_url}
    with cluster_of(2, 2, home=tmp_path, environment=environment) as nodes:
        job = plant_in_store.start(
            results_uri, environment={"RAY_ADDRESS": nodes.address, "RAY_AUTH_MODE": "token", "HOME": str(tmp_path)}
        )
        job.wait_until_some_rows_are_safe()
        nodes.kill(1)
        ending = job.end()
    plant_in_store.proxy.plan()
    plant_in_store.continue_after(ending, results_uri)


def test_nothing_of_a_killed_job_stays_behind(plant_in_store: FaultyPlant, results_uri: str) -> None:
    plant_in_store.proxy.plan(SLOW_IMAGES)
    job = plant_in_store.start(results_uri)
    job.wait_for(lambda: job.workers("ScoringActor"))
    job.process.kill()
    job.end()

    def left() -> set[str]:
        return {title for title in job.workers("").values() if not title.startswith(AGENTS)}

    wait_for(lambda: not left(), 60, lambda: str(left()))
