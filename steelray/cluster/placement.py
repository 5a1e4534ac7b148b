"""Which part of a plan fits on which node, and the wait for nodes that an autoscaler still has to start.

A cluster's totals deceive: four nodes with one CPU each hold no actor that needs two. What can never be placed is said
before anything starts.
"""

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from steelray.cluster.connect import SHARD_CPUS, TASK_CPUS, ComputePlan, cause_in_one_line, plan_compute
from steelray.config import ComputeConfig, ConfigError
from steelray.provenance import package_versions
from steelray.storage.location import Location

ANSWER_S = 90
"""A node that has not answered by then is named: its worker may be installing, or its network is cut."""
MAX_SKEW_S = 300
"""A third of what S3 tolerates in a signature (900 s)."""


@dataclass(frozen=True)
class NodeReport:
    """What a node says of itself."""

    host: str
    clock_s: float
    versions: dict[str, str]
    unreachable: tuple[str, ...]
    """One line per URI that it cannot use."""
    cuda: bool


def examine_node(uris: Sequence[str], needs_gpu: bool) -> NodeReport:
    """Runs on the node."""
    unreachable = []
    for uri in uris:
        try:
            Location(uri).check_access()
        except ConfigError as error:
            unreachable.append(str(error))
    cuda = False
    if needs_gpu:
        import torch

        cuda = torch.cuda.is_available()
    return NodeReport(socket.gethostname(), time.time(), package_versions(), tuple(unreachable), cuda)


def problems_of(name: str, node: NodeReport, own: dict[str, str], skew_s: float, needs_gpu: bool) -> list[str]:
    """What is wrong with a node, and what to do about it; nothing if it is fine.

    Args:
        own: package versions of the driver.
        skew_s: by how much the node's clock is ahead of the driver's.
    """
    found = [f"{name} cannot use a place that the job needs: {line}" for line in node.unreachable]
    for package, version in own.items():
        there = node.versions.get(package)
        if there is None:
            found.append(f"{name} has no {package}: install requirements.txt there")
        elif there != version:
            found.append(f"{name} has {package} {there}, the driver {version}: install requirements.txt there")
    if abs(skew_s) > MAX_SKEW_S:
        ahead = "ahead of" if skew_s > 0 else "behind"
        found.append(f"{name}: its clock is {abs(skew_s):.0f} s {ahead} the driver's: run NTP there")
    if needs_gpu and not node.cuda:
        found.append(f"{name} offers a GPU that torch cannot use: check its NVIDIA driver")
    return found


def check_nodes(uris: Sequence[str], needs_gpu: bool = False) -> None:
    """Asks every node that can carry work.

    Raises:
        ConfigError: one line with everything that is wrong, node by node.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    if [node["NodeID"] for node in nodes] == [ray.get_runtime_context().get_node_id()]:
        return
    examine = ray.remote(examine_node)
    started_s = time.time()
    asked: list[tuple[str, bool, Any]] = []
    for node in nodes:
        look_for_gpu = needs_gpu and node["Resources"].get("GPU", 0) > 0
        options = examine.options(
            num_cpus=0,
            num_gpus=0.01 if look_for_gpu else 0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        asked.append((node["NodeManagerAddress"], look_for_gpu, options.remote(list(uris), look_for_gpu)))
    ray.wait([ref for _, _, ref in asked], num_returns=len(asked), timeout=ANSWER_S)
    answered_s, problems = time.time(), []
    own = package_versions()
    del own["python"]  # Ray itself refuses nodes of another one
    for name, look_for_gpu, ref in asked:
        try:
            report = ray.get(ref, timeout=0.1)
        except GetTimeoutError:
            problems.append(f"{name} did not answer within {ANSWER_S} s: look at `ray status` and its raylet's log")
        except RayError as error:
            problems.append(f"{name} cannot run steelray: {cause_in_one_line(error)}: install requirements.txt there")
        else:
            behind_s, ahead_s = min(0.0, report.clock_s - started_s), max(0.0, report.clock_s - answered_s)
            problems += problems_of(name, report, own, behind_s + ahead_s, look_for_gpu)
    if problems:
        raise ConfigError("; ".join(dict.fromkeys(problems)))


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
