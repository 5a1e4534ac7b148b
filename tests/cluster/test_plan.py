import pytest

from steelray.cluster.plan import ComputePlan, Node, bundles_of, fit_to_nodes, fits, plan_compute
from steelray.config import ComputeConfig, ConfigError


def plan(num_scorers: int, cpus: float = 0.75, gpus: float = 0.0, num_shards: int = 0) -> ComputePlan:
    return ComputePlan(num_scorers, cpus, gpus, 1, num_shards)


@pytest.mark.parametrize("cpus", [2, 3, 4, 8, 16, 64])
@pytest.mark.parametrize("num_shards", [0, 2])
def test_on_one_node_the_totals_are_the_truth(cpus: int, num_shards: int) -> None:
    compute = ComputeConfig()
    wanted = plan_compute(cpus, 0, compute, num_shards)
    assert fit_to_nodes(wanted, [Node("a", cpus)], compute) == wanted


@pytest.mark.parametrize("num_nodes", [2, 4])
def test_small_nodes_together_carry_a_scorer_each(num_nodes: int) -> None:
    nodes = [Node(f"10.0.0.{number}", 1) for number in range(num_nodes)]
    compute = ComputeConfig()
    wanted = plan_compute(num_nodes, 0, compute, 0)
    assert fit_to_nodes(wanted, nodes, compute).num_scorers == num_nodes


def test_an_actor_larger_than_every_node_is_named_with_what_there_is() -> None:
    compute = ComputeConfig(num_scorers=1, cpus_per_scorer=4)
    nodes = [Node("10.0.0.1", 2), Node("10.0.0.2", 2)]
    with pytest.raises(ConfigError) as error:
        fit_to_nodes(plan_compute(4, 0, compute, 0), nodes, compute)
    assert "1 scorers of 3 CPUs do not fit on the nodes (10.0.0.1 2 CPUs; 10.0.0.2 2 CPUs), 0 would" in str(error.value)
    assert "cpus_per_scorer" in str(error.value)


def test_a_number_that_was_asked_for_is_not_lowered_silently() -> None:
    nodes = [Node("a", 1), Node("b", 1.5)]
    assert fit_to_nodes(plan(3), nodes, ComputeConfig()).num_scorers == 2, "open: as many as fit"
    with pytest.raises(ConfigError, match="2 would"):
        fit_to_nodes(plan(3), nodes, ComputeConfig(num_scorers=3))


def test_shards_of_a_gpu_bank_need_their_gpus_too() -> None:
    nodes = [Node("a", 8, 1)]
    assert fits(plan(1, gpus=0.5, num_shards=1), nodes)
    assert not fits(plan(1, gpus=1.0, num_shards=1), nodes)
    with pytest.raises(ConfigError, match="and 1 GPUs beside 1 shards"):
        fit_to_nodes(plan(1, gpus=1.0, num_shards=1), nodes, ComputeConfig(gpus_per_scorer=1))


def test_what_needs_no_gpu_leaves_the_gpu_nodes_alone() -> None:
    # one CPU beside each GPU, one node without: tasks and nothing else may go there
    nodes = [Node("gpu", 0.75, 1), Node("cpu", 0.5)]
    assert fits(plan(1, gpus=1.0), nodes)
    assert not fits(plan(2, gpus=1.0), nodes)


def test_what_fits_still_fits_with_one_more_node() -> None:
    nodes = [Node("a", 4), Node("b", 2)]
    for count in range(1, 8):
        if fits(plan(count), nodes):
            assert fits(plan(count), [*nodes, Node("c", 1)])
            assert count == 1 or fits(plan(count - 1), nodes)


def test_an_autoscaler_is_asked_for_all_that_the_settings_name() -> None:
    compute = ComputeConfig(num_scorers=3, cpus_per_scorer=2, gpus_per_scorer=1)
    assert bundles_of(compute, 2) == [{"CPU": 2, "GPU": 1}] * 3 + [{"CPU": 0.25, "GPU": 1}] * 2
    assert bundles_of(ComputeConfig(), 0) == [{"CPU": 1.0}]
