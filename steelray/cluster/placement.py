"""Plan work on the connected cluster: wait for the nodes that an autoscaler starts, and check every node.

Whatever can never be placed is reported before any actor starts.
"""

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from steelray.cluster.connect import cause_in_one_line
from steelray.cluster.plan import ComputePlan, Node, bundles_of, fit_to_nodes, plan_compute
from steelray.config import ComputeConfig, ConfigError
from steelray.provenance import package_versions
from steelray.storage.location import Location

POLL_S = 1.0
ANSWER_S = 90
"""Seconds after which a silent node is reported: its worker may be installing, or its network is cut."""
MAX_SKEW_S = 300
"""Largest accepted difference between two clocks, a third of what S3 tolerates in a signature (900 s)."""


def plan_on_cluster(
    compute: ComputeConfig, num_shards: int, uris: Sequence[str], report: Callable[[str], None]
) -> ComputePlan:
    """Plan the work for the connected cluster and check its nodes; wait `compute.wait_for_nodes_s` for more nodes.

    Args:
        uris: locations that every node must reach.

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
                request_resources(bundles=[])
                raise ConfigError(f"{error}{waited}") from None
            if not asked:
                report(f"waiting up to {compute.wait_for_nodes_s:g} s for nodes: {error}")
                request_resources(bundles=bundles_of(compute, num_shards))
                asked = True
        time.sleep(POLL_S)
    if asked:
        request_resources(bundles=[])  # from now on the actors keep their nodes
    check_nodes(uris, needs_gpu=plan.scorer_gpus > 0)
    return plan


def alive_nodes() -> list[Node]:
    """Return the nodes of the connected cluster that can carry work, by name."""
    nodes = [
        Node(node["NodeManagerAddress"], node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted((node for node in nodes if node.cpus > 0), key=lambda node: node.name)


def check_nodes(uris: Sequence[str], needs_gpu: bool = False) -> None:
    """Examine every other node that can carry work.

    Raises:
        ConfigError: one line with everything that is wrong, node by node.
    """
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
    del own["python"]  # Ray itself refuses a node with another version
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


@dataclass(frozen=True)
class NodeReport:
    """Facts that a node reports about itself.

    Attributes:
        unreachable: one line per location that the node cannot use.
    """

    host: str
    clock_s: float
    versions: dict[str, str]
    unreachable: tuple[str, ...]
    cuda: bool


def examine_node(uris: Sequence[str], needs_gpu: bool) -> NodeReport:
    """Report on the node that this runs on."""
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
    """Return a line for everything that is wrong with a node, with its remedy.

    Args:
        own: package versions of the driver.
        skew_s: seconds by which the node's clock is ahead of the driver's.
    """
    found = [f"{name} cannot use a location that the job needs: {line}" for line in node.unreachable]
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
