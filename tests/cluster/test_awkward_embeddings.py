"""Selections from awkward embeddings in actors: an error that names the embedding, or a defined result."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import ray
import torch
from numpy.typing import NDArray

from steelray.cluster.embedding_actors import RemoteShards, start_embedding_servers
from steelray.patchcore.coreset import Coreset, greedy_coreset, select

ROWS, DIM = 40, 6


@contextmanager
def holding(uri: str, images: list[NDArray[np.float32]], num_shards: int) -> Iterator[RemoteShards]:
    servers = start_embedding_servers(uri, num_shards, 1)
    try:
        ray.get([servers[index % num_shards].add.remote(index, image) for index, image in enumerate(images)])
        yield RemoteShards(servers, {index: ROWS * index for index in range(len(images))})
    finally:
        for server in servers:
            ray.kill(server)


def pick(shards: RemoteShards, count: int, centers_KD: torch.Tensor | None = None) -> Coreset:
    return select([shards], count, gather=shards.gather, centers_KD=centers_KD)  # type: ignore[list-item]


def gaussian(count: int) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((ROWS, DIM)).astype(np.float32) for _ in range(count)]


def test_a_value_that_is_not_finite_is_named_in_one_line(cluster: dict[str, float], s3_uri: str) -> None:
    images = gaussian(3)
    images[2][5, 1] = np.nan
    with (
        holding(s3_uri, images, 2) as shards,
        pytest.raises(ValueError, match=r"^embedding 85 is not finite .*$") as caught,
    ):
        pick(shards, 10)
    assert "\n" not in str(caught.value)


def test_duplicates_only_are_picked_by_index(cluster: dict[str, float], s3_uri: str) -> None:
    with holding(s3_uri, [np.ones((ROWS, DIM), np.float32)] * 3, 3) as shards:
        chosen = pick(shards, 5)
    assert chosen.indices_M.tolist() == [0, 1, 2, 3, 4]
    assert chosen.cover_radius == 0


def test_a_selection_over_shards_is_that_of_one_process(cluster: dict[str, float], s3_uri: str) -> None:
    """One shard has no points, and one feature no variance; the selection also continues from given centres."""
    images = gaussian(3)
    for image in images:
        image[:, 3] = 7.0
    everything = torch.from_numpy(np.concatenate(images))
    expected = greedy_coreset(everything, 30)
    with holding(s3_uri, images, 4) as shards:
        assert pick(shards, 30).indices_M.tolist() == expected.tolist()
    with holding(f"{s3_uri}/again", images, 2) as shards:
        chosen = pick(shards, 12, everything[expected[:18]])
    assert everything[chosen.indices_M].tolist() == everything[expected[18:]].tolist()
