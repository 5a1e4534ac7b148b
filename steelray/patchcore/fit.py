"""Nominal images to a memory bank in one process; `steelray.cluster.bank_builder` does the same over a cluster."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steelray.config import ConfigError
from steelray.imaging.decode import resize
from steelray.patchcore.bank import MemoryBank, make_bank
from steelray.patchcore.config import CoresetConfig, EmbedderConfig, GrowthConfig, IndexConfig, ScoringConfig
from steelray.patchcore.coreset import CoresetShard, Progress, num_centers_of, select
from steelray.patchcore.growth import centers_of, grown_bank, growth_limits
from steelray.patchcore.portable_embedder import EmbedFunction
from steelray.patchcore.quantised import index_bank, recall_queries


def embed_images(
    embed: EmbedFunction, images: Sequence[NDArray[np.uint8]], config: EmbedderConfig
) -> list[NDArray[np.float32]]:
    """Patch embeddings hwD of each image, after the configured resize."""
    resized = [image if config.resize_px is None else resize(image, config.resize_px) for image in images]
    return [embed(image[None])[0] for image in resized]


def patch_origins(grids: Sequence[tuple[int, int]]) -> NDArray[np.int32]:
    """Return origins_N3 of all patches of images with these grids: image index, row, column, in row-major order."""
    parts = []
    for image_index, grid in enumerate(grids):
        places_2N = np.indices(grid).reshape(2, -1)
        parts.append(np.stack([np.full(places_2N.shape[1], image_index), *places_2N], axis=1))
    return np.concatenate(parts).astype(np.int32)


def common_size(sizes: Sequence[tuple[int, int]], config: EmbedderConfig) -> tuple[int, int] | None:
    """The one size of all images, which scoring then insists on; None where they differ or are resized."""
    return sizes[0] if config.resize_px is None and len(set(sizes)) == 1 else None


def num_centers(config: CoresetConfig, num_candidates: int) -> int:
    """How many of so many patches may become centres. Raises `ValueError` if there are no patches."""
    most = None if config.max_centers is None or num_candidates == 0 else min(config.max_centers, num_candidates)
    return num_centers_of(num_candidates, most, config.ratio, config.cover_radius)


def coreset_statistics(num_candidates: int, cover_radius: float, num_rounds: int, duration_s: float) -> dict[str, Any]:
    """What bank.json says of the selection."""
    return {
        "num_candidates": num_candidates,
        "cover_radius": cover_radius,
        "num_rounds": num_rounds,
        "duration_s": round(duration_s, 3),
    }


def fit_memory_bank(
    keys: Sequence[str],
    images: Sequence[NDArray[np.uint8]],
    embed: EmbedFunction,
    *,
    embedder: EmbedderConfig,
    weights_digest: str,
    coreset: CoresetConfig,
    scoring: ScoringConfig,
    index: IndexConfig | None = None,
    progress: Progress | None = None,
) -> MemoryBank:
    """Embeds nominal images and keeps a greedy coreset of their patches.

    Args:
        index: how the bank is kept and searched; None: exactly.

    Raises:
        ConfigError: no images, embeddings that are not finite, or an index that does not suit the bank.
    """
    if not images:
        raise ConfigError("no nominal images: nothing to learn from")
    embeddings = embed_images(embed, images, embedder)
    vectors_ND = np.concatenate([e.reshape(-1, e.shape[2]) for e in embeddings])
    start_s = time.perf_counter()
    points_ND = torch.from_numpy(vectors_ND)
    if torch.cuda.is_available():
        points_ND = points_ND.cuda()
    try:
        limit = num_centers(coreset, len(vectors_ND))
        chosen = select([CoresetShard(points_ND)], limit, cover_radius=coreset.cover_radius or 0.0, progress=progress)
    except ValueError as error:
        raise ConfigError(f"coreset: {error}") from None
    rows = chosen.indices_M.numpy()
    duration_s = time.perf_counter() - start_s
    bank = make_bank(
        vectors_ND[rows],
        patch_origins([(e.shape[0], e.shape[1]) for e in embeddings])[rows],
        tuple(keys),
        embedder=embedder,
        weights_digest=weights_digest,
        scoring=scoring,
        input_size_px=common_size([(i.shape[0], i.shape[1]) for i in images], embedder),
        coreset=coreset_statistics(len(vectors_ND), chosen.cover_radius, chosen.num_rounds, duration_s),
    )
    return index_bank(bank, index or IndexConfig(), vectors_ND[recall_queries(len(vectors_ND), rows)])


def grow_memory_bank(
    bank: MemoryBank,
    keys: Sequence[str],
    images: Sequence[NDArray[np.uint8]],
    embed: EmbedFunction,
    growth: GrowthConfig,
    progress: Progress | None = None,
) -> MemoryBank:
    """Embeds further nominal images and adds what the bank does not cover yet.

    Raises:
        ConfigError: no images, embeddings that are not finite, or an index that does not suit the grown bank.
    """
    embeddings = embed_images(embed, images, bank.info.embedder)
    vectors_ND = np.concatenate(
        [np.empty((0, bank.info.dim), np.float32), *(e.reshape(-1, e.shape[2]) for e in embeddings)]
    )
    start_s = time.perf_counter()
    try:
        limit, radius = growth_limits(bank.info, growth, len(vectors_ND))
        points_ND = torch.from_numpy(vectors_ND)
        shard = CoresetShard(points_ND.cuda() if torch.cuda.is_available() else points_ND)
        chosen = select([shard], limit, centers_KD=centers_of(bank), cover_radius=radius, progress=progress)
    except ValueError as error:
        raise ConfigError(f"coreset: {error}") from None
    rows = chosen.indices_M.numpy()
    return grown_bank(
        bank,
        chosen,
        vectors_ND[rows],
        patch_origins([(e.shape[0], e.shape[1]) for e in embeddings])[rows],
        tuple(keys),
        num_candidates=len(vectors_ND),
        duration_s=time.perf_counter() - start_s,
        queries_QD=vectors_ND[recall_queries(len(vectors_ND), rows)],
    )
