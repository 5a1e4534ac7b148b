"""Fit a memory bank in one process; `steelray.cluster.bank_builder` does the same over a cluster.

Growing a bank is building one whose selection continues from the bank's vectors, over the new patches only. By default
it stops as soon as these lie as close to the bank as the old ones: the cover radius then stays the same, and a bank of
that size rebuilt from all strips covers little better.

Shapes: N candidate patches, M picks, K existing vectors, D dimensions of an embedding; Q queries.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from steelray.config import ConfigError
from steelray.patchcore.bank import BankInfo, CoresetStatistics, MemoryBank, make_bank
from steelray.patchcore.config import CoresetConfig, EmbedderConfig, GrowthConfig, IndexConfig, ScoringConfig
from steelray.patchcore.coreset import Coreset, CoresetShard, Progress, num_centers_of, select
from steelray.patchcore.index import LocalSearch, shard_of
from steelray.patchcore.leave_out import own_vectors
from steelray.patchcore.portable_embedder import Embedder
from steelray.patchcore.quantised import index_bank, recall_queries
from steelray.patchcore.scorer import PatchCoreScorer
from steelray.patchcore.suspects import LocalPatches, Patches, Suspect, judge, shown

Limits = Callable[[int], tuple[int, float]]
"""Takes the number of candidates; returns the most picks and the cover radius that ends the selection (0: none)."""

COVERED = 1e-12
"""Least cover radius of growing. A bank of every patch has radius 0, with which it would take in duplicates."""


@dataclass(frozen=True)
class Selection:
    """Patches selected from nominal images.

    Attributes:
        chosen: all picks, also those that were dropped.
        vectors_MD, origins_M3: in the order of the picks; image indices count within `image_keys`.
        image_keys, sizes_px: of all usable images.
        queries_QD: patches that were not picked, to measure the recall of an index on.
        duration_s: duration of the selection, without embedding.
        num_dropped: picks that are not among the vectors because only one strip has them.
        suspects: the farthest of these, to show to a person.
    """

    chosen: Coreset
    vectors_MD: NDArray[np.float32]
    origins_M3: NDArray[np.int32]
    image_keys: tuple[str, ...]
    sizes_px: list[tuple[int, int]]
    num_candidates: int
    queries_QD: NDArray[np.float32]
    duration_s: float
    num_dropped: int = 0
    suspects: tuple[Suspect, ...] = ()


def patch_origins(grids: Sequence[tuple[int, int]]) -> NDArray[np.int32]:
    """Return origins_N3 of all patches of images with these grids: image index, row, column, in row-major order."""
    parts = []
    for image_index, grid in enumerate(grids):
        places_2N = np.indices(grid).reshape(2, -1)
        parts.append(np.stack([np.full(places_2N.shape[1], image_index), *places_2N], axis=1))
    return np.concatenate(parts).astype(np.int32)


def common_size(sizes: Sequence[tuple[int, int]], config: EmbedderConfig) -> tuple[int, int] | None:
    """Return the size that all images share, which scoring then requires; None if they differ or are resized."""
    return sizes[0] if config.resize_px is None and len(set(sizes)) == 1 else None


def coreset_limits(config: CoresetConfig) -> Limits:
    """Return the limits of a selection. They raise `ValueError` if there are no candidates."""

    def limits(num_candidates: int) -> tuple[int, float]:
        most = None if config.max_centers is None or not num_candidates else min(config.max_centers, num_candidates)
        count = num_centers_of(num_candidates, most, config.ratio, config.cover_radius)
        return count, config.cover_radius or 0.0

    return limits


def growth_radius(info: BankInfo, config: GrowthConfig) -> float:
    """Return the cover radius at which a bank stops growing."""
    radius = info.coreset.cover_radius if config.cover_radius is None else config.cover_radius
    return max(radius, COVERED)


def growth_limits(info: BankInfo, config: GrowthConfig) -> Limits:
    """Return the limits of growing a bank. They raise `ValueError` if there are no new patches."""

    def limits(num_candidates: int) -> tuple[int, float]:
        if num_candidates == 0:
            raise ValueError("there are 0 new embeddings: nothing to learn from")
        most = [num_candidates, max(1, round(config.ratio * num_candidates))]
        if config.max_centers is not None:
            most.append(config.max_centers)
        return min(most), growth_radius(info, config)

    return limits


def centers_of(bank: MemoryBank) -> torch.Tensor:
    """Return centers_KD of a bank, from which `coreset.select` continues."""
    return torch.from_numpy(bank.vectors_ND.astype(np.float32))


def select_patches(
    keys: Sequence[str],
    images: Sequence[NDArray[np.uint8]],
    embedder: Embedder,
    limits: Limits,
    *,
    centers_KD: torch.Tensor | None = None,
    drop_suspects: bool = False,
    strips: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Selection:
    """Embed nominal images and select the patches that cover them.

    Args:
        centers_KD: vectors of a bank that the selection continues from.
        drop_suspects: drop what only one strip has.
        strips: the strip that each image shows or is a part of; None: its key.

    Raises:
        ConfigError: no images, or embeddings that are not finite.
    """
    if not images:
        raise ConfigError("no nominal images: nothing to learn from")
    embeddings = [embedder.embed_image(image) for image in images]
    vectors_ND = np.concatenate([e.reshape(-1, e.shape[2]) for e in embeddings])
    start_s = time.perf_counter()
    points_ND = torch.from_numpy(vectors_ND)
    try:
        shard = CoresetShard(points_ND.cuda() if torch.cuda.is_available() else points_ND)
        limit, radius = limits(len(vectors_ND))
        chosen = select([shard], limit, centers_KD=centers_KD, cover_radius=radius, progress=progress)
    except ValueError as error:
        raise ConfigError(f"coreset: {error}") from None
    rows = chosen.indices_M.numpy()
    selection = Selection(
        chosen,
        vectors_ND[rows],
        patch_origins([(e.shape[0], e.shape[1]) for e in embeddings])[rows],
        tuple(keys),
        [(image.shape[0], image.shape[1]) for image in images],
        len(vectors_ND),
        vectors_ND[recall_queries(len(vectors_ND), rows)],
        time.perf_counter() - start_s,
    )
    if not drop_suspects:
        return selection
    images_of = {number: e.reshape(-1, e.shape[2]) for number, e in enumerate(embeddings)}
    patches = LocalPatches(images_of, {number: e.shape[1] for number, e in enumerate(embeddings)})
    return without_suspects(selection, patches, strips)


def without_suspects(selection: Selection, patches: Patches, strips: Sequence[str] | None = None) -> Selection:
    """Return a selection without the vectors that only one strip has.

    Args:
        patches: embeddings of all images.
        strips: the strip that each image shows or is a part of; None: its key.
    """
    start_s = time.perf_counter()
    origins_M3 = selection.origins_M3
    rows, distances = judge(patches, selection.vectors_MD, origins_M3, strips or selection.image_keys)
    suspects = [
        Suspect(selection.image_keys[image], row, column, distance)
        for (image, row, column), distance in zip(origins_M3[rows].tolist(), distances.tolist(), strict=True)
    ]
    return replace(
        selection,
        vectors_MD=np.delete(selection.vectors_MD, rows, axis=0),
        origins_M3=np.delete(origins_M3, rows, axis=0),
        duration_s=selection.duration_s + time.perf_counter() - start_s,
        num_dropped=len(rows),
        suspects=shown(suspects),
    )


def new_bank(
    selection: Selection,
    embedder: EmbedderConfig,
    weights_digest: str,
    scoring: ScoringConfig,
    index: IndexConfig | None = None,
) -> MemoryBank:
    """Make a bank of selected patches.

    Raises:
        ConfigError: the index or the scoring does not suit the bank.
    """
    bank = make_bank(
        selection.vectors_MD,
        selection.origins_M3,
        selection.image_keys,
        embedder=embedder,
        weights_digest=weights_digest,
        scoring=scoring,
        input_size_px=common_size(selection.sizes_px, embedder),
        coreset=CoresetStatistics(
            selection.num_candidates,
            selection.chosen.cover_radius,
            selection.chosen.num_rounds,
            round(selection.duration_s, 3),
        ),
    )
    return index_bank(bank, index or IndexConfig(), selection.queries_QD)


def grown_bank(bank: MemoryBank, selection: Selection) -> MemoryBank:
    """Add selected patches of further images to a bank, under a new id; storage and search stay the same.

    Raises:
        ConfigError: the index does not suit the grown bank.
    """
    info = bank.info
    shifted_M3 = selection.origins_M3 + np.array([len(bank.image_keys), 0, 0], dtype=np.int32)
    exact = make_bank(
        np.concatenate([bank.vectors_ND.astype(np.float32), selection.vectors_MD]),
        np.concatenate([bank.origins_N3, shifted_M3]),
        bank.image_keys + selection.image_keys,
        embedder=info.embedder,
        weights_digest=info.weights_digest,
        scoring=info.scoring,
        input_size_px=info.input_size_px,
        coreset=CoresetStatistics(
            info.coreset.num_candidates + selection.num_candidates,
            # new vectors never move an old patch farther from the bank
            max(info.coreset.cover_radius, selection.chosen.cover_radius),
            selection.chosen.num_rounds,
            round(selection.duration_s, 3),
            (*info.coreset.grown_from, info.bank_id),
        ),
    )
    return index_bank(exact, info.index, selection.queries_QD)


def fit_memory_bank(
    keys: Sequence[str],
    images: Sequence[NDArray[np.uint8]],
    embedder: Embedder,
    *,
    coreset: CoresetConfig,
    scoring: ScoringConfig,
    index: IndexConfig | None = None,
    strips: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> MemoryBank:
    """Embed nominal images and keep a greedy coreset of their patches.

    Args:
        index: storage and search of the bank; None: float32, exact.
        strips: the strip that each image shows or is a part of; None: its key.

    Raises:
        ConfigError: no images, embeddings that are not finite, or an index that does not suit the bank.
    """
    limits, drop = coreset_limits(coreset), coreset.drop_suspects
    selection = select_patches(keys, images, embedder, limits, drop_suspects=drop, strips=strips, progress=progress)
    return new_bank(selection, embedder.config, embedder.weights_digest, scoring, index)


def grow_memory_bank(
    bank: MemoryBank,
    keys: Sequence[str],
    images: Sequence[NDArray[np.uint8]],
    embedder: Embedder,
    growth: GrowthConfig,
    progress: Progress | None = None,
) -> MemoryBank:
    """Embed further nominal images and add what a bank does not cover yet. Raises `ConfigError` as `select_patches`."""
    limits, embedder = growth_limits(bank.info, growth), replace(embedder, nominal_px=bank.info.input_size_px)
    selection = select_patches(keys, images, embedder, limits, centers_KD=centers_of(bank), progress=progress)
    return grown_bank(bank, selection)


def bank_scorer(
    bank: MemoryBank, embedder: Embedder, num_threads: int = 1, strips: Sequence[str] | None = None
) -> PatchCoreScorer:
    """Return the scorer of a bank that is held in this process.

    Args:
        strips: the strip that each nominal image shows or is a part of, by which it is left out; None: its key.
    """
    search = LocalSearch([shard_of(bank, num_threads=num_threads)])
    own = own_vectors(bank.origins_N3, strips or bank.image_keys, bank.info.scoring.num_searched)
    embedder = replace(embedder, nominal_px=bank.info.input_size_px)
    return PatchCoreScorer(embedder, search, bank.info.scoring, own)
