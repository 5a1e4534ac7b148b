"""Limits of growing a memory bank by further nominal strips, without those it was built from.

Greedy selection goes on from the vectors that the bank holds, over the new patches only, so the time is that of what is
new. By default it stops as soon as the new patches lie as close to the bank as the old ones do: then the cover radius
of the whole is the old one, and a bank rebuilt from everything at the same size covers little better.
"""

from collections.abc import Callable

import numpy as np
import torch

from steelray.patchcore.bank import BankInfo, MemoryBank
from steelray.patchcore.config import GrowthConfig

COVERED = 1e-12
"""The cover radius at which a bank that holds every patch stops growing: duplicates add nothing."""


def growth_radius(info: BankInfo, config: GrowthConfig) -> float:
    """Return the cover radius at which a bank stops growing."""
    radius: float = info.coreset["cover_radius"] if config.cover_radius is None else config.cover_radius
    return max(radius, COVERED)


def growth_limits(info: BankInfo, config: GrowthConfig) -> Callable[[int], tuple[int, float]]:
    """Return the limits of growing: from the number of new patches to the most picks and the cover radius that ends it.

    They raise `ValueError` if there are no new patches.
    """

    def limits(num_candidates: int) -> tuple[int, float]:
        if num_candidates == 0:
            raise ValueError("there are 0 new embeddings: nothing to learn from")
        most = [num_candidates, max(1, round(config.ratio * num_candidates))]
        if config.max_centers is not None:
            most.append(config.max_centers)
        return min(most), growth_radius(info, config)

    return limits


def centers_of(bank: MemoryBank) -> torch.Tensor:
    """Return centers_KD of a bank, for `coreset.select` to go on from."""
    return torch.from_numpy(bank.vectors_ND.astype(np.float32))
