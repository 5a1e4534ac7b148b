"""How many machines a night takes and what it costs, from measured costs per strip. Pure arithmetic; knows no Ray.

The model: a strip asks each resource of the cluster (CPUs, GPUs, network, the store's requests) for a fixed amount. The
rate is what the scarcest of them allows; that one is named. On top comes a fixed time until the first strip is scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from steelray.config import ConfigError, require

GIGABIT_BYTES = 1e9 / 8
FLOAT_BYTES = 4
ANSWER_BYTES = 12
"""Of one neighbour: float32 distance, int64 id."""


@dataclass(frozen=True)
class StageCosts:
    """What one strip costs, by stage; measured by benchmarks/stage_costs.py."""

    measured_on: str
    """Hardware, date and commit of the measurement."""
    read_cpu_s: float
    """CPU seconds to fetch it from the store."""
    decode_cpu_s: float
    """CPU seconds from JPEG to pixels."""
    embed_cpu_s: float
    """CPU seconds of the backbone; nothing where a GPU does it."""
    search_cpu_s: float
    """CPU seconds of the nearest-neighbour search in a bank of `search_vectors`; grows in proportion."""
    search_vectors: int
    """Vectors of the bank that `search_cpu_s` was measured with."""
    finish_cpu_s: float
    """CPU seconds for map, score, verdict and the row."""
    overhead_cpu_s: float
    """CPU seconds of Ray: moving the strip's pixels and row between processes, writing the table."""
    startup_s: float
    """From the start of the job to the first strip: actors that load backbone and bank."""
    image_bytes: float
    """What is read per strip."""
    result_bytes: float
    """What is written per strip: its row, and a heatmap where it is flagged."""
    queries: int
    """Patches of a strip."""
    dim: int
    """Values of a patch embedding."""
    embed_gpu_s: float
    """GPU seconds of the backbone."""
    search_gpu_s: float
    """GPU seconds of the search in a bank of `search_vectors`."""
    cpu_measured: bool = True
    """False: some of the CPU figures are assumptions, and every prediction says so."""
    gpu_measured: bool = False
    """False: the two GPU figures are estimates from arithmetic, and every prediction that uses them says so."""


@dataclass(frozen=True)
class InstanceType:
    """A machine to hire, or to own."""

    name: str
    vcpus: int
    network_gbit: float
    """What it sustains, not what it bursts to."""
    usd_per_hour: float
    source: str
    """Where price and network come from, and of which date."""
    gpus: int = 0
    spot_usd_per_hour: float | None = None
    core_speed: float = 1.0
    """A vCPU's speed as a share of the measured one's."""
    gpu_speed: float = 1.0
    """A GPU's speed as a share of the one that the GPU figures stand for."""


@dataclass(frozen=True)
class Workload:
    """A night."""

    strips: int = 1_000_000
    """Images to score."""
    hours: float = 6.0
    """The time there is."""
    bank_vectors: int = 20_000
    """Vectors of the memory bank."""
    placement: Literal["replicated", "sharded"] = "replicated"
    """Where the bank lives."""
    num_shards: int = 4
    """Shard actors, where it is sharded."""
    store_gets_per_s: float = 5500
    """Requests that the store answers; S3 documents 5,500 GET per second and prefix."""

    def __post_init__(self) -> None:
        for name in ("strips", "hours", "bank_vectors", "num_shards", "store_gets_per_s"):
            require(getattr(self, name) > 0, f"{name} must be > 0, not {getattr(self, name)}")


@dataclass(frozen=True)
class PlanCapacityConfig:
    """jobs/plan_capacity.py"""

    costs: StageCosts
    instances: list[InstanceType] = field(default_factory=list)
    strips: int = 1_000_000
    """Images to score in a night."""
    hours: float = 6.0
    """The time there is for them."""
    bank_vectors: int = 20_000
    """Vectors of the memory bank."""
    placement: Literal["replicated", "sharded"] = "replicated"
    """Where the bank lives."""
    num_shards: int = 4
    """Shard actors, where it is sharded."""
    max_nodes: int = 1000
    """More than this is no plan."""
    dry_run: bool = False
    """The same: this job only calculates."""

    def __post_init__(self) -> None:
        require(len(self.instances) > 0, "instances is empty: name at least one machine, as jobs/configs/capacity.yaml")

    @property
    def workload(self) -> Workload:
        """The night that is asked for."""
        return Workload(self.strips, self.hours, self.bank_vectors, self.placement, self.num_shards)


@dataclass(frozen=True)
class Prediction:
    """What a cluster of one kind of machine makes of a night."""

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
    """Share of every resource that is in use at that rate."""
    network_bytes_per_s: float
    """Over all nodes: images in, results out, and the queries of a sharded bank."""
    estimated: bool
    """Rests on figures that were not measured."""


def network_bytes(costs: StageCosts, workload: Workload, nodes: int) -> float:
    """Bytes that one strip moves between machines.

    Sharded, its queries go to every other node that holds a shard, once, and one answer comes back from each shard.
    """
    moved = costs.image_bytes + costs.result_bytes
    if workload.placement == "sharded":
        holders = min(workload.num_shards, nodes)
        elsewhere = holders - holders / nodes  # the strip's own node is one of them as often as it has a shard
        moved += costs.queries * costs.dim * FLOAT_BYTES * elsewhere
        moved += costs.queries * ANSWER_BYTES * workload.num_shards * elsewhere / holders
    return moved


def cpu_seconds(costs: StageCosts, workload: Workload, use_gpu: bool) -> dict[str, float]:
    """CPU seconds of one strip, by stage."""
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
    """Rate, time and price of a night on `nodes` machines of a kind."""
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


def plan_night(costs: StageCosts, instance: InstanceType, workload: Workload, max_nodes: int = 1000) -> Prediction:
    """The smallest cluster of a kind that ends in time.

    Raises:
        ConfigError: none does, and what stands in the way.
    """
    low, high = 1, max_nodes
    best = predict(costs, instance, high, workload)
    if best.hours > workload.hours:
        raise ConfigError(
            f"{workload.strips} strips take {best.hours:.1f} h on {max_nodes} x {instance.name} ({best.saturated} is "
            f"the limit), {workload.hours:g} h are there: give more hours"
            + (", spread the archive over more prefixes" if best.saturated == "store" else "")
        )
    while low < high:  # the rate never falls with a node more
        middle = (low + high) // 2
        tried = predict(costs, instance, middle, workload)
        low, high = (low, middle) if tried.hours <= workload.hours else (middle + 1, high)
    return predict(costs, instance, low, workload)


def to_markdown(predictions: Sequence[Prediction], workload: Workload) -> str:
    """A table, one line per kind of machine."""
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
    """A table, and the same as data: what jobs/plan_capacity.py prints."""
    workload = config.workload
    found, impossible = [], {}
    for instance in config.instances:
        try:
            found.append(plan_night(config.costs, instance, workload, config.max_nodes))
        except ConfigError as error:
            impossible[instance.name] = str(error)
    table = to_markdown(found, workload) + "".join(f"\n\n{name}: {line}." for name, line in impossible.items())
    return table, {
        "measured_on": config.costs.measured_on,
        "strips": config.strips,
        "hours": config.hours,
        "plans": [vars(one) for one in found],
        "impossible": impossible,
    }
