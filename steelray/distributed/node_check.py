"""Looks at every node before work starts: versions, clock, GPU, and whether it reaches the store.

One small task per node. A cluster of one node that is the driver's own has nothing to compare and is not asked.
"""

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steelray.config import ConfigError
from steelray.data.storage import Location
from steelray.distributed.causes import cause_in_one_line
from steelray.provenance import package_versions

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
