import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from steelray.config import ConfigError
from steelray.research.capacity import (
    InstanceType,
    PlanCapacityConfig,
    StageCosts,
    Workload,
    network_bytes,
    plan_capacity,
    plan_run,
    predict,
)

REPOSITORY = Path(__file__).parents[2]
COSTS = StageCosts(
    measured_on="a test", read_cpu_s=0.002, decode_cpu_s=0.008, embed_cpu_s=0.05, search_cpu_s=0.02,
    search_vectors=10_000, finish_cpu_s=0.01, overhead_cpu_s=0.01, startup_s=30, image_bytes=200_000,
    result_bytes=1_000, queries=6400, dim=152, embed_gpu_s=0.001, search_gpu_s=0.001,
)  # fmt: skip
CPU = InstanceType("cpu-16", 16, 10, 0.80, "a test", spot_usd_per_hour=0.30)
GPU = InstanceType("gpu-8", 8, 10, 1.00, "a test", gpus=1)
RUN = Workload(strips=1_000_000, hours=6, bank_vectors=10_000, store_gets_per_s=1e9)


def test_a_rate_by_hand() -> None:
    one = predict(COSTS, CPU, 2, RUN)
    assert one.strips_per_s == pytest.approx(2 * 16 / 0.1)
    assert one.saturated == "cpu"
    assert one.hours == pytest.approx((30 + 1_000_000 / 320) / 3600)
    assert one.usd == pytest.approx(one.hours * 2 * 0.80)
    assert one.spot_usd == pytest.approx(one.hours * 2 * 0.30)
    assert (one.gpu_hours, one.estimated) == (0, False)


def test_a_gpu_takes_backbone_and_search_off_the_cpus() -> None:
    one = predict(COSTS, GPU, 1, RUN)
    assert one.saturated == "cpu", "decoding keeps the GPU waiting"
    assert one.strips_per_s == pytest.approx(8 / 0.03)
    assert one.load["gpu"] == pytest.approx(8 / 0.03 * 0.002)
    assert one.gpu_hours == pytest.approx(one.hours)
    assert one.estimated, "its GPU figures were not measured"
    slow = replace(COSTS, embed_gpu_s=0.01, gpu_measured=True)
    assert predict(slow, GPU, 1, RUN).saturated == "gpu"
    assert not predict(slow, GPU, 1, RUN).estimated


def test_the_search_grows_with_the_bank_and_the_rest_does_not() -> None:
    small, large = (predict(COSTS, CPU, 1, replace(RUN, bank_vectors=n)).strips_per_s for n in (10_000, 100_000))
    assert 16 / large - 16 / small == pytest.approx(0.02 * 9)


def test_a_sharded_bank_sends_its_queries_over_the_network() -> None:
    sharded = replace(RUN, placement="sharded", num_shards=4)
    plain = network_bytes(COSTS, RUN, 8)
    assert plain == 201_000
    assert network_bytes(COSTS, sharded, 1) == plain, "on one machine nothing leaves it"
    queries = 6400 * 152 * 4
    assert network_bytes(COSTS, sharded, 8) == pytest.approx(plain + 3.5 * queries + 3.5 * 6400 * 12)
    assert predict(COSTS, CPU, 8, sharded).saturated == "network"
    loads = predict(COSTS, CPU, 8, sharded).load
    assert loads["network"] == 1
    assert 0 < loads["cpu"] < 1


def test_more_machines_are_never_slower_and_the_smallest_number_in_time_is_chosen() -> None:
    rates = [predict(COSTS, CPU, nodes, RUN).strips_per_s for nodes in range(1, 20)]
    assert rates == sorted(rates)
    for strips in (1_000, 1_000_000, 20_000_000, 100_000_000):
        run = replace(RUN, strips=strips)
        plan = plan_run(COSTS, CPU, run)
        assert plan.hours <= run.hours
        if plan.nodes > 1:
            assert predict(COSTS, CPU, plan.nodes - 1, run).hours > run.hours


def test_what_no_number_of_machines_can_do_is_said_with_the_limit() -> None:
    with pytest.raises(ConfigError, match=r"store is the limit.*spread the archive over more prefixes"):
        plan_run(COSTS, CPU, replace(RUN, strips=10**9, store_gets_per_s=5500))
    with pytest.raises(ConfigError, match=r"on 2 x cpu-16 \(cpu is the limit\)"):
        plan_run(COSTS, CPU, replace(RUN, strips=10**8), max_nodes=2)


def test_one_machine_that_cannot_does_not_hide_the_others() -> None:
    config = PlanCapacityConfig(
        costs=COSTS, instances=[replace(CPU, name="toy", vcpus=1), GPU], strips=2_000_000, max_nodes=5
    )
    table, summary = plan_capacity(config)
    assert [plan["instance"] for plan in summary["plans"]] == ["gpu-8"]
    assert "toy: 2000000 strips take" in table
    assert "| gpu-8 * |" in table
    assert "estimated, not measured" in table


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match="instances is empty"):
        PlanCapacityConfig(costs=COSTS)
    with pytest.raises(ConfigError, match="strips must be > 0"):
        Workload(strips=0)


@pytest.mark.parametrize("strips", [1_000_000, 100_000_000])
def test_the_job_answers_from_the_recorded_costs(strips: int) -> None:
    command = [sys.executable, str(REPOSITORY / "jobs/plan_capacity.py"), "--strips", str(strips)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["strips"] == strips
    assert {"c7i.4xlarge", "g6.2xlarge"} <= {plan["instance"] for plan in summary["plans"]}
    for plan in summary["plans"]:
        assert plan["hours"] <= summary["hours"]
        assert plan["saturated"] in ("cpu", "gpu", "network", "store")
        assert f"| {plan['instance']}" in done.stderr
