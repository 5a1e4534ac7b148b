"""Plan how a pipeline's actors and tasks share the CPUs and GPUs of a cluster and of each of its nodes.

Nothing here asks Ray. A cluster's totals are not enough: four nodes of one CPU each cannot hold an actor that needs
two.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from steelray.config import ComputeConfig, ConfigError

TASK_CPUS = 0.25
"""Logical CPUs of a reading, decoding or writing task: these mostly wait for storage."""
SHARD_CPUS = 0.25
"""Logical CPUs of a shard actor."""
MAX_RESTARTS = 3
"""Restarts of an actor that holds a shard, after which Ray gives it up."""
MIN_SCORER_CPUS = 0.25
"""Fewest logical CPUs of a scorer on a machine that is too small for all of its parts."""
SCORER_SHARE = 0.75
"""Logical CPUs of a scorer per configured CPU; the rest is for the tasks that feed it."""
MARGIN = 1e-6
"""Tolerance when fractions of CPUs and GPUs are compared."""


@dataclass(frozen=True)
class ComputePlan:
    """Number of actors, and the resources that each of them requests from Ray."""

    num_scorers: int
    scorer_cpus: float
    scorer_gpus: float
    scorer_threads: int
    num_shards: int


@dataclass(frozen=True)
class Node:
    """A node of the cluster and its total resources."""

    name: str
    cpus: float
    gpus: float = 0.0

    def __str__(self) -> str:
        return f"{self.name} {self.cpus:g} CPUs" + (f" {self.gpus:g} GPUs" if self.gpus else "")


def plan_compute(cpus: float, gpus: float, compute: ComputeConfig, num_shards: int = 0) -> ComputePlan:
    """Divide a cluster's totals among scorers, shard actors and tasks so that a pipeline cannot block itself.

    Raises:
        ConfigError: not even one scorer fits; the message says what is missing.
    """
    free_cpus = cpus - 2 * TASK_CPUS - num_shards * SHARD_CPUS
    scorer_cpus = compute.cpus_per_scorer * SCORER_SHARE
    if compute.gpus_per_scorer > gpus:
        raise ConfigError(
            f"a scorer needs {compute.gpus_per_scorer} GPUs, the cluster has {gpus:g}: set compute.gpus_per_scorer to 0"
        )
    if compute.num_scorers is None and free_cpus > 0:
        # on a small machine, one scorer per core, which share the CPUs that the shards leave
        wanted = max(1, int(cpus / compute.cpus_per_scorer))
        scorer_cpus = min(scorer_cpus, max(free_cpus / wanted, MIN_SCORER_CPUS))
    fit = int(free_cpus / scorer_cpus + MARGIN) if free_cpus > 0 else 0
    if compute.gpus_per_scorer > 0:
        fit = min(fit, int(gpus / compute.gpus_per_scorer + MARGIN))
    count = compute.num_scorers or fit
    if fit < 1 or count > fit:
        needed = count * scorer_cpus if count else scorer_cpus
        raise ConfigError(
            f"{max(count, 1)} scorers and {num_shards} shards need {needed + cpus - free_cpus:g} CPUs, "
            f"the cluster has {cpus:g}: lower compute.num_scorers or compute.bank_shards"
        )
    return ComputePlan(count, scorer_cpus, compute.gpus_per_scorer, max(1, int(compute.cpus_per_scorer)), num_shards)


def fit_to_nodes(plan: ComputePlan, nodes: Sequence[Node], compute: ComputeConfig) -> ComputePlan:
    """Return the plan, with fewer scorers if the settings leave their number open.

    Raises:
        ConfigError: it does not fit; the message says how many scorers would, and what the nodes offer.
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


def fits(plan: ComputePlan, nodes: Sequence[Node]) -> bool:
    """Return whether every actor of a plan, and two tasks that feed them, can be placed.

    Places the largest first, each on the node with most resources left.
    """
    free = [[node.cpus, node.gpus] for node in nodes]
    wanted = [(plan.scorer_cpus, plan.scorer_gpus)] * plan.num_scorers
    wanted += [(SHARD_CPUS, plan.scorer_gpus)] * plan.num_shards + [(TASK_CPUS, 0.0)] * 2
    for cpus, gpus in wanted:
        able = [place for place in free if place[0] >= cpus - MARGIN and place[1] >= gpus - MARGIN]
        if not able:
            return False
        # work without a GPU stays off the GPU nodes as long as there are others
        chosen = max(able, key=lambda place: (place[1] if gpus else -place[1], place[0]))
        chosen[0] -= cpus
        chosen[1] -= gpus
    return True


def bundles_of(compute: ComputeConfig, num_shards: int) -> list[dict[str, float]]:
    """Return the resources to request from an autoscaler: the scorers (one if their number is open) and the shards.

    A scorer requests all of its configured CPUs; the share that it does not use carries the tasks that feed it.
    """
    scorer = {"CPU": compute.cpus_per_scorer}
    shard = {"CPU": SHARD_CPUS}
    if compute.gpus_per_scorer:
        scorer["GPU"] = shard["GPU"] = compute.gpus_per_scorer
    return [scorer] * (compute.num_scorers or 1) + [shard] * num_shards
