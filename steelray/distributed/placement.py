"""Which part of a plan fits on which node, and the wait for nodes that an autoscaler still has to start.

A cluster's totals deceive: four nodes with one CPU each hold no actor that needs two. What can never be placed is said
before anything starts.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from steelray.config import ComputeConfig, ConfigError
from steelray.distributed.cluster import SHARD_CPUS, TASK_CPUS, ComputePlan, plan_compute
from steelray.distributed.node_check import check_nodes

POLL_S = 1.0
MARGIN = 1e-6


@dataclass(frozen=True)
class Node:
    """A node of the cluster and what it offers in all."""

    name: str
    cpus: float
    gpus: float = 0.0

    def __str__(self) -> str:
        return f"{self.name} {self.cpus:g} CPUs" + (f" {self.gpus:g} GPUs" if self.gpus else "")


def alive_nodes() -> list[Node]:
    """The nodes of the connected cluster that can carry work, by name."""
    import ray

    nodes = [
        Node(node["NodeManagerAddress"], node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted((node for node in nodes if node.cpus > 0), key=lambda node: node.name)


def fits(plan: ComputePlan, nodes: Sequence[Node]) -> bool:
    """True if every actor of a plan, and two tasks that feed them, find a node; largest first, on the emptiest node."""
    free = [[node.cpus, node.gpus] for node in nodes]
    wanted = [(plan.scorer_cpus, plan.scorer_gpus)] * plan.num_scorers
    wanted += [(SHARD_CPUS, plan.scorer_gpus)] * plan.num_shards + [(TASK_CPUS, 0.0)] * 2
    for cpus, gpus in wanted:
        able = [place for place in free if place[0] >= cpus - MARGIN and place[1] >= gpus - MARGIN]
        if not able:
            return False
        # what needs no GPU stays away from the nodes that have one, as long as there are others
        chosen = max(able, key=lambda place: (place[1] if gpus else -place[1], place[0]))
        chosen[0] -= cpus
        chosen[1] -= gpus
    return True


def fit_to_nodes(plan: ComputePlan, nodes: Sequence[Node], compute: ComputeConfig) -> ComputePlan:
    """The plan, with fewer scorers where the settings leave their number open.

    Raises:
        ConfigError: it does not fit; says how many would, and what the nodes offer.
    """
    most = next((count for count in range(plan.num_scorers, 0, -1) if fits(replace(plan, num_scorers=count), nodes)), 0)
    if most == plan.num_scorers or (most and compute.num_scorers is None):
        return replace(plan, num_scorers=most)
    each = f"{plan.scorer_cpus:g} CPUs" + (f" and {plan.scorer_gpus:g} GPUs" if plan.scorer_gpus else "")
    shards = f" beside {plan.num_shards} shards" if plan.num_shards else ""
    offered = "; ".join(map(str, nodes)) or "none"
    raise ConfigError(
        f"{plan.num_scorers} scorers of {each}{shards} do not fit on the nodes ({offered}), {most} would: "
        "lower compute.num_scorers or compute.cpus_per_scorer, or add nodes"
    )


def plan_on_cluster(
    compute: ComputeConfig, num_shards: int, uris: Sequence[str], report: Callable[[str], None]
) -> ComputePlan:
    """The plan for the connected cluster, every node of it checked; waits `compute.wait_for_nodes_s` for more nodes.

    Args:
        uris: what every node must be able to reach.

    Raises:
        ConfigError: what is missing, on which node, and what to do.
    """
    deadline = time.monotonic() + compute.wait_for_nodes_s
    asked = False
    while True:
        nodes = alive_nodes()
        try:
            cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
            plan = fit_to_nodes(plan_compute(cpus, gpus, compute, num_shards), nodes, compute)
            break
        except ConfigError as error:
            if time.monotonic() >= deadline:
                waited = f" (waited {compute.wait_for_nodes_s:g} s for more nodes)" if asked else ""
                _ask_autoscaler([])
                raise ConfigError(f"{error}{waited}") from None
            if not asked:
                report(f"waiting up to {compute.wait_for_nodes_s:g} s for nodes: {error}")
                _ask_autoscaler(bundles_of(compute, num_shards))
                asked = True
        time.sleep(POLL_S)
    if asked:
        _ask_autoscaler([])  # the actors keep their nodes from now on
    check_nodes(uris, needs_gpu=plan.scorer_gpus > 0)
    return plan


def bundles_of(compute: ComputeConfig, num_shards: int) -> list[dict[str, float]]:
    """What to ask an autoscaler for: the configured scorers (one where their number is open) and the shards.

    A scorer asks for all of the CPUs that it is configured with: what it does not take carries the tasks that feed it.
    """
    scorer = {"CPU": compute.cpus_per_scorer}
    shard = {"CPU": SHARD_CPUS}
    if compute.gpus_per_scorer:
        scorer["GPU"] = shard["GPU"] = compute.gpus_per_scorer
    return [scorer] * (compute.num_scorers or 1) + [shard] * num_shards


def _ask_autoscaler(bundles: list[dict[str, float]]) -> None:
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=bundles)
