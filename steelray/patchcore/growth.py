"""Limits of growing a memory bank with further nominal strips; those that it was built from are not needed.

Greedy selection continues from the bank's vectors over the new patches only, so only these cost time. By default it
stops as soon as the new patches lie as close to the bank as the old ones. The cover radius then stays the same, and a
bank of that size rebuilt from all strips covers little better.
"""

from collections.abc import Callable

import numpy as np
import torch

from steelray.patchcore.bank import BankInfo, MemoryBank
from steelray.patchcore.config import GrowthConfig

COVERED = 1e-12
"""Least cover radius of growing. A bank of every patch has radius 0, with which it would take in duplicates."""


def growth_radius(info: BankInfo, config: GrowthConfig) -> float:
    """Return the cover radius at which a bank stops growing."""
    radius = info.coreset.cover_radius if config.cover_radius is None else config.cover_radius
    return max(radius, COVERED)


def growth_limits(info: BankInfo, config: GrowthConfig) -> Callable[[int], tuple[int, float]]:
    """Return the limits of growing a bank, as `fit.Limits`. They raise `ValueError` if there are no new patches."""

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
