"""Where the bank lives: invariants over many sizes, and messages that name the number."""

import itertools
import random

import pytest

from steelray.config import ConfigError
from steelray.patchcore.planner import BYTES_PER_VALUE, OVERHEAD, plan_bank, shard_bounds

MIB = 2**20


def test_every_plan_fits_and_is_the_smallest_that_does() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        num_vectors = rng.choice([1, 2, 10, 1000, rng.randrange(1, 5_000_000)])
        dim = rng.choice([1, 40, 176, 1536])
        memory = rng.choice([dim * 8, MIB, 64 * MIB, 2**31, rng.randrange(dim * 8, 2**33)])
        plan = plan_bank(num_vectors, dim, memory_per_actor_bytes=memory)
        total = num_vectors * dim * BYTES_PER_VALUE * OVERHEAD
        assert plan.bytes_per_actor <= memory
        assert (plan.placement == "replicated") == (total <= memory)
        assert (plan.placement == "replicated") <= (plan.num_shards == 1)
        assert 1 <= plan.num_shards <= num_vectors
        largest = -(-num_vectors // plan.num_shards)
        if plan.num_shards < 100:
            assert largest == max(stop - start for start, stop in shard_bounds(num_vectors, plan.num_shards))
        assert plan.bytes_per_actor == largest * dim * BYTES_PER_VALUE * OVERHEAD
        if plan.num_shards > 1:
            assert -(-num_vectors // (plan.num_shards - 1)) * dim * BYTES_PER_VALUE * OVERHEAD > memory


def test_more_memory_never_means_more_shards_and_more_vectors_never_fewer() -> None:
    for dim in (40, 1536):
        for count in (10, 10_000, 3_000_000):
            shards = [plan_bank(count, dim, memory_per_actor_bytes=MIB * 2**n).num_shards for n in range(14)]
            assert shards == sorted(shards, reverse=True)
        counts = [plan_bank(10**n, dim, memory_per_actor_bytes=8 * MIB).num_shards for n in range(1, 8)]
        assert counts == sorted(counts)


@pytest.mark.parametrize(
    ("num_shards", "placed"), [(None, ("replicated", 1)), (1, ("replicated", 1)), (3, ("sharded", 3))]
)
def test_a_number_of_shards_is_kept(num_shards: int | None, placed: tuple[str, int]) -> None:
    plan = plan_bank(1000, 176, memory_per_actor_bytes=2**31, num_shards=num_shards)
    assert (plan.placement, plan.num_shards) == placed


def test_the_reason_says_what_decided() -> None:
    fits = plan_bank(1000, 176, memory_per_actor_bytes=2**31)
    assert "1.3 MiB (1000 x 176 float32" in fits.reason
    assert "2048.0 MiB per actor: fits, every scorer holds a copy" in fits.reason
    assert "does not fit, 2 shard actors" in plan_bank(1000, 176, memory_per_actor_bytes=MIB).reason
    assert "as asked for" in plan_bank(1000, 176, memory_per_actor_bytes=2**31, num_shards=2).reason


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"num_shards": 1001, "memory_per_actor_bytes": 2**31}, "bank_shards is 1001 but the bank has 1000 vectors"),
        ({"num_shards": 3, "memory_per_actor_bytes": MIB // 4}, "3 shards of 0.4 MiB exceed .* use at least 6 shards"),
        ({"cluster_memory_bytes": MIB, "memory_per_actor_bytes": MIB}, r"1\.3 MiB .* but the cluster has 1\.0 MiB"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_number(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        plan_bank(1000, 176, **settings)  # type: ignore[arg-type]


def test_the_advice_for_too_few_shards_works() -> None:
    for count, dim, memory in itertools.product((7, 1000, 12_345), (8, 176), (20_000, MIB)):
        needed = plan_bank(count, dim, memory_per_actor_bytes=memory).num_shards
        if needed > 1:
            with pytest.raises(ConfigError, match=f"use at least {needed} shards"):
                plan_bank(count, dim, memory_per_actor_bytes=memory, num_shards=needed - 1)
            assert plan_bank(count, dim, memory_per_actor_bytes=memory, num_shards=needed).num_shards == needed


def test_a_single_vector_larger_than_an_actor_is_refused() -> None:
    with pytest.raises(ConfigError, match="a vector of 1000 values needs 8000 bytes, more than 100"):
        plan_bank(10, 1000, memory_per_actor_bytes=100)
