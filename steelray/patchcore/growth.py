"""A memory bank that learns further nominal strips, without those it was built from.

Greedy selection goes on from the vectors that the bank holds, over the new patches only, so the time is that of what is
new. By default it stops as soon as the new patches lie as close to the bank as the old ones do: then the cover radius
of the whole is the old one, and a bank rebuilt from everything at the same size covers little better.

Shapes: K vectors of the bank, B new ones, D dimensions, Q queries.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from steelray.patchcore.bank import BankInfo, MemoryBank, make_bank
from steelray.patchcore.config import GrowthConfig
from steelray.patchcore.coreset import Coreset
from steelray.patchcore.quantised import index_bank

COVERED = 1e-12
"""The cover radius at which a bank that holds every patch stops growing: duplicates add nothing."""


def growth_limits(info: BankInfo, config: GrowthConfig, num_candidates: int) -> tuple[int, float]:
    """How many of so many new patches may be added at most, and the cover radius at which that ends.

    Raises:
        ValueError: there are no new patches.
    """
    if num_candidates == 0:
        raise ValueError("there are 0 new embeddings: nothing to learn from")
    limits = [num_candidates, max(1, round(config.ratio * num_candidates))]
    if config.max_centers is not None:
        limits.append(config.max_centers)
    radius = info.coreset["cover_radius"] if config.cover_radius is None else config.cover_radius
    return min(limits), max(radius, COVERED)


def centers_of(bank: MemoryBank) -> torch.Tensor:
    """Return centers_KD, float32, for `coreset.select` to go on from."""
    return torch.from_numpy(bank.vectors_ND.astype(np.float32))


def grown_bank(
    bank: MemoryBank,
    chosen: Coreset,
    vectors_BD: NDArray[np.float32],
    origins_B3: NDArray[np.int32],
    image_keys: tuple[str, ...],
    *,
    num_candidates: int,
    duration_s: float,
    queries_QD: NDArray[np.float32],
) -> MemoryBank:
    """The bank with further vectors behind its own, under a new id, kept and searched as before.

    Args:
        chosen: what `coreset.select` made of the new patches.
        vectors_BD, origins_B3: the picks; image indices count within `image_keys`.
        image_keys: of all new images.
        num_candidates: new patches.
        queries_QD: new patches to measure the recall on, where the index is not exact.

    Raises:
        ConfigError: the index does not suit the grown bank.
    """
    info = bank.info
    shifted_B3 = origins_B3 + np.array([len(bank.image_keys), 0, 0], dtype=np.int32)
    statistics = {
        **info.coreset,
        "num_candidates": info.coreset["num_candidates"] + num_candidates,
        # of the old patches it is known that they lie no farther than before
        "cover_radius": max(info.coreset["cover_radius"], chosen.cover_radius),
        "num_rounds": chosen.num_rounds,
        "duration_s": round(duration_s, 3),
        "grown_from": [*info.coreset.get("grown_from", []), info.bank_id],
    }
    exact = make_bank(
        np.concatenate([bank.vectors_ND.astype(np.float32), vectors_BD]),
        np.concatenate([bank.origins_N3, shifted_B3]),
        bank.image_keys + image_keys,
        embedder=info.embedder,
        weights_digest=info.weights_digest,
        scoring=info.scoring,
        input_size_px=info.input_size_px,
        coreset=statistics,
    )
    return index_bank(exact, info.index, queries_QD)
