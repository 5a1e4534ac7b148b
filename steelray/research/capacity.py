"""Capacity planning: machines, time and price of a run, from measured costs per strip. Pure arithmetic, no Ray.

Each strip uses a fixed amount of every resource (CPUs, GPUs, network, requests to the store). The scarcest resource
sets the rate and is named in the plan. A fixed startup time is added.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from steelray.config import ConfigError, require

GIGABIT_BYTES = 1e9 / 8
FLOAT_BYTES = 4
ANSWER_BYTES = 12
"""Size of one neighbour: float32 distance and int64 id."""


@dataclass(frozen=True)
class StageCosts:
    """Costs of one strip by stage, as benchmarks/stage_costs.py measures them."""

    measured_on: str
    """Hardware, date and commit of the measurement."""
    read_cpu_s: float
    """CPU seconds to fetch a strip from the store."""
    decode_cpu_s: float
    """CPU seconds from JPEG to pixels."""
    embed_cpu_s: float
    """CPU seconds of the backbone; not used with a GPU."""
    search_cpu_s: float
    """CPU seconds of the search in a bank of `search_vectors`; proportional to the size of the bank."""
    search_vectors: int
    """Vectors in the bank with which `search_cpu_s` was measured."""
    finish_cpu_s: float
    """CPU seconds for map, score, verdict and row."""
    overhead_cpu_s: float
    """CPU seconds of Ray: moving pixels and rows between processes, writing the table."""
    startup_s: float
    """Seconds from the start of the job to the first strip, while actors load backbone and bank."""
    image_bytes: float
    """Bytes read per strip."""
    result_bytes: float
    """Bytes written per strip: its row, and a heatmap if it is flagged."""
    queries: int
    """Patches per strip."""
    dim: int
    """Dimension of a patch embedding."""
    embed_gpu_s: float
    """GPU seconds of the backbone."""
    search_gpu_s: float
    """GPU seconds of the search in a bank of `search_vectors`."""
    cpu_measured: bool = True
    """Whether all CPU figures were measured; false marks every prediction as estimated."""
    gpu_measured: bool = False
    """Whether the two GPU figures were measured; false marks every prediction that uses them as estimated."""


@dataclass(frozen=True)
class InstanceType:
    """One kind of machine, rented or owned."""

    name: str
    vcpus: int
    network_gbit: float
    """Sustained bandwidth, not burst; Gbit/s."""
    usd_per_hour: float
    source: str
    """Source and date of price and bandwidth."""
    gpus: int = 0
    spot_usd_per_hour: float | None = None
    core_speed: float = 1.0
    """Speed of a vCPU relative to the measured one."""
    gpu_speed: float = 1.0
    """Speed of a GPU relative to that of the GPU figures."""


@dataclass(frozen=True)
class Workload:
    """A run to plan for."""

    strips: int = 1_000_000
    """Images to score."""
    hours: float = 6.0
    """Time allowed; hours."""
    bank_vectors: int = 20_000
    """Vectors in the memory bank."""
    placement: Literal["replicated", "sharded"] = "replicated"
    """Placement of the bank."""
    num_shards: int = 4
    """Shard actors of a sharded bank."""
    store_gets_per_s: float = 5500
    """Requests per second that the store answers; S3 documents 5,500 GET per prefix."""

    def __post_init__(self) -> None:
        for name in ("strips", "hours", "bank_vectors", "num_shards", "store_gets_per_s"):
            require(getattr(self, name) > 0, f"{name} must be > 0, not {getattr(self, name)}")


@dataclass(frozen=True)
class PlanCapacityConfig(Workload):
    """Options of jobs/plan_capacity.py."""

    FIRST: ClassVar[tuple[str, ...]] = (
        "costs", "strips", "hours", "bank_vectors", "placement", "num_shards", "dry_run"
    )  # fmt: skip
    RECIPES: ClassVar[dict[str, tuple[str, ...]]] = {"costs": ()}

    costs: StageCosts = field(kw_only=True)
    """Costs per strip, measured by benchmarks/stage_costs.py."""
    instances: list[InstanceType] = field(default_factory=list)
    """Kinds of machines to plan for."""
    max_nodes: int = 1000
    """Largest cluster to consider; machines."""
    dry_run: bool = False
    """Accepted as by every job; this one only calculates anyway."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.instances) > 0, "instances is empty: name a machine as in jobs/configs/capacity.yaml")


@dataclass(frozen=True)
class Prediction:
    """Predicted time and price of a run on a cluster of one kind of machine."""

    instance: str
    nodes: int
    strips_per_s: float
    hours: float
    gpu_hours: float
    usd: float
    spot_usd: float | None
    saturated: str
    """The resource that sets the rate: `cpu`, `gpu`, `network` or `store`."""
    load: dict[str, float]
    """Share of every resource in use at that rate."""
    network_bytes_per_s: float
    """Bytes per second over all nodes: images, results, and the queries of a sharded bank."""
    estimated: bool
    """Whether some of the figures behind it were not measured."""


def network_bytes(costs: StageCosts, workload: Workload, nodes: int) -> float:
    """Return the bytes that one strip moves between machines.

    With a sharded bank, its queries go once to every other node with a shard, and each shard returns one answer.
    """
    moved = costs.image_bytes + costs.result_bytes
    if workload.placement == "sharded":
        holders = min(workload.num_shards, nodes)
        elsewhere = holders - holders / nodes  # less the strip's own node, as often as it has a shard
        moved += costs.queries * costs.dim * FLOAT_BYTES * elsewhere
        moved += costs.queries * ANSWER_BYTES * workload.num_shards * elsewhere / holders
    return moved


def cpu_seconds(costs: StageCosts, workload: Workload, use_gpu: bool) -> dict[str, float]:
    """Return the CPU seconds of one strip by stage."""
    seconds = {
        "read": costs.read_cpu_s,
        "decode": costs.decode_cpu_s,
        "finish": costs.finish_cpu_s,
        "overhead": costs.overhead_cpu_s,
    }
    if not use_gpu:
        seconds["embed"] = costs.embed_cpu_s
        seconds["search"] = costs.search_cpu_s * workload.bank_vectors / costs.search_vectors
    return seconds


def predict(costs: StageCosts, instance: InstanceType, nodes: int, workload: Workload) -> Prediction:
    """Predict rate, time and price of a run on `nodes` machines of a kind."""
    use_gpu = instance.gpus > 0
    moved = network_bytes(costs, workload, nodes)
    limits = {
        "cpu": nodes * instance.vcpus * instance.core_speed / sum(cpu_seconds(costs, workload, use_gpu).values()),
        "network": nodes * instance.network_gbit * GIGABIT_BYTES / moved,
        "store": workload.store_gets_per_s,
    }
    if use_gpu:
        gpu_s = costs.embed_gpu_s + costs.search_gpu_s * workload.bank_vectors / costs.search_vectors
        limits["gpu"] = nodes * instance.gpus * instance.gpu_speed / gpu_s
    saturated = min(limits, key=lambda name: limits[name])
    rate = limits[saturated]
    hours = (costs.startup_s + workload.strips / rate) / 3600
    spot = instance.spot_usd_per_hour
    return Prediction(
        instance=instance.name,
        nodes=nodes,
        strips_per_s=rate,
        hours=hours,
        gpu_hours=hours * nodes * instance.gpus,
        usd=hours * nodes * instance.usd_per_hour,
        spot_usd=None if spot is None else hours * nodes * spot,
        saturated=saturated,
        load={name: rate / limit for name, limit in limits.items()},
        network_bytes_per_s=rate * moved,
        estimated=not costs.cpu_measured or (use_gpu and not costs.gpu_measured) or instance.core_speed != 1.0,
    )


def plan_run(costs: StageCosts, instance: InstanceType, workload: Workload, max_nodes: int = 1000) -> Prediction:
    """Find the smallest cluster of a kind that finishes in time.

    Raises:
        ConfigError: none does; the message names the limiting resource.
    """
    low, high = 1, max_nodes
    best = predict(costs, instance, high, workload)
    if best.hours > workload.hours:
        raise ConfigError(
            f"{workload.strips} strips take {best.hours:.1f} h on {max_nodes} x {instance.name} ({best.saturated} is "
            f"the limit), but hours is {workload.hours:g}: raise it"
            + (", spread the archive over more prefixes" if best.saturated == "store" else "")
        )
    while low < high:  # bisection: one more node never lowers the rate
        nodes = (low + high) // 2
        in_time = predict(costs, instance, nodes, workload).hours <= workload.hours
        low, high = (low, nodes) if in_time else (nodes + 1, high)
    return predict(costs, instance, low, workload)


def to_markdown(predictions: Sequence[Prediction], workload: Workload) -> str:
    """Format predictions as a table, one line per kind of machine."""
    lines = [
        f"{workload.strips:,} strips in {workload.hours:g} h, bank of {workload.bank_vectors:,} vectors, "
        f"{workload.placement}:",
        "",
        "| machine | nodes | strips/s | hours | GPU-hours | USD on demand | USD spot | first limit | network |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    for one in predictions:
        network = f"{one.network_bytes_per_s / 1e6:,.0f} MB/s"
        spot = "" if one.spot_usd is None else f"{one.spot_usd:,.2f}"
        mark = " *" if one.estimated else ""
        lines.append(
            f"| {one.instance}{mark} | {one.nodes} | {one.strips_per_s:,.0f} | {one.hours:.2f} "
            f"| {one.gpu_hours:,.1f} | {one.usd:,.2f} | {spot} | {one.saturated} | {network} |"
        )
    if any(one.estimated for one in predictions):
        lines += ["", "\\* rests on figures that were estimated, not measured: see the costs in the file."]
    return "\n".join(lines)


def plan_capacity(config: PlanCapacityConfig) -> tuple[str, dict[str, Any]]:
    """Plan for every kind of machine; return a table and the same as data, for jobs/plan_capacity.py to print."""
    found, impossible = [], {}
    for instance in config.instances:
        try:
            found.append(plan_run(config.costs, instance, config, config.max_nodes))
        except ConfigError as error:
            impossible[instance.name] = str(error)
    table = to_markdown(found, config) + "".join(f"\n\n{name}: {line}." for name, line in impossible.items())
    return table, {
        "measured_on": config.costs.measured_on,
        "strips": config.strips,
        "hours": config.hours,
        "plans": [vars(one) for one in found],
        "impossible": impossible,
    }
