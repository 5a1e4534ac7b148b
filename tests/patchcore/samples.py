"""Strips, vectors and banks that several tests use."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelray.demo.synthetic import make_strip
from steelray.patchcore.bank import CoresetStatistics, MemoryBank, make_bank
from steelray.patchcore.config import EmbedderConfig, ScoringConfig

STATISTICS = CoresetStatistics(10_000, 1.25, 3, 0.5)


def strip(height_px: int, width_px: int, index: int = 0) -> NDArray[np.uint8]:
    """Return pixels_HWC of a generated grey strip."""
    return make_strip(0, index, size_px=(height_px, width_px)).pixels_HW[:, :, None]


def gaussian(count: int, dim: int, seed: int) -> NDArray[np.float32]:
    """Return normally distributed vectors_ND."""
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def bank_of(vectors_ND: NDArray[np.float32], **changes: Any) -> MemoryBank:
    """Return a bank of these vectors; `changes` are other arguments of `make_bank`."""
    settings: dict[str, Any] = {
        "origins_N3": np.zeros((len(vectors_ND), 3), np.int32),
        "image_keys": ("a.jpg",),
        "embedder": EmbedderConfig(),
        "weights_digest": "w",
        "scoring": ScoringConfig(),
        "input_size_px": None,
        "coreset": STATISTICS,
    }
    return make_bank(vectors_ND, **settings | changes)
