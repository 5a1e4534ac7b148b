"""Placement of the bank: copied into every scorer, or cut into shard actors."""

import itertools
from dataclasses import dataclass
from typing import Literal

from steelray.config import ConfigError

BYTES_PER_VALUE = 4
"""Size of a float32."""
OVERHEAD = 2
"""Factor on memory: loading holds the file's table and the index's copy at once."""


@dataclass(frozen=True)
class BankPlan:
    """The placement, and the reason for the run's report."""

    placement: Literal["replicated", "sharded"]
    num_shards: int
    """Shard actors; 1 when replicated."""
    bytes_per_actor: int
    reason: str

    @property
    def num_actors(self) -> int:
        """Return the number of actors that hold the bank besides the scorers."""
        return self.num_shards if self.placement == "sharded" else 0


def plan_bank(
    num_vectors: int,
    dim: int,
    *,
    memory_per_actor_bytes: int,
    bytes_per_vector: int | None = None,
    num_shards: int | None = None,
    cluster_memory_bytes: int | None = None,
) -> BankPlan:
    """Choose placement and shard count by the bank's size and the memory that one actor may use.

    Args:
        bytes_per_vector: of a vector in the index; None: float32 values.

    Raises:
        ConfigError: the bank does not fit into the cluster, or not into this number of shards.
    """
    vector_bytes = (bytes_per_vector or BYTES_PER_VALUE * dim) * OVERHEAD
    kind = "float32" if bytes_per_vector in (None, BYTES_PER_VALUE * dim) else f"in {bytes_per_vector} bytes each"
    total_bytes = num_vectors * vector_bytes
    size = f"the bank needs {_mib(total_bytes)} ({num_vectors} x {dim} {kind}, twice while loading)"
    limit = f"{_mib(memory_per_actor_bytes)} per actor"
    if cluster_memory_bytes is not None and total_bytes > cluster_memory_bytes:
        raise ConfigError(f"{size} but the cluster has {_mib(cluster_memory_bytes)}: lower coreset.ratio or add nodes")
    fits = total_bytes <= memory_per_actor_bytes
    if fits and num_shards in (None, 1):
        return BankPlan("replicated", 1, total_bytes, f"{size}; {limit}: fits, every scorer holds a copy")
    why = "as asked for" if fits else "does not fit"
    vectors_per_actor = memory_per_actor_bytes // vector_bytes
    if vectors_per_actor == 0:
        raise ConfigError(f"a vector of {dim} values needs {vector_bytes} bytes, more than {memory_per_actor_bytes}")
    needed = -(-num_vectors // vectors_per_actor)
    shards = num_shards or needed
    if shards > num_vectors:
        raise ConfigError(f"bank_shards is {shards} but the bank has {num_vectors} vectors: use fewer shards")
    per_actor = -(-num_vectors // shards) * vector_bytes  # shards may differ by one vector: the largest has to fit
    if shards < needed:
        raise ConfigError(f"{size}; {shards} shards of {_mib(per_actor)} exceed {limit}: use at least {needed} shards")
    return BankPlan("sharded", shards, per_actor, f"{size}; {limit}: {why}, {shards} shard actors hold it together")


def shard_bounds(num_vectors: int, num_shards: int) -> list[tuple[int, int]]:
    """Return the first and last+1 id of each shard: contiguous, complete, and of sizes that differ by at most one."""
    cuts = [num_vectors * i // num_shards for i in range(num_shards + 1)]
    return list(itertools.pairwise(cuts))


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
