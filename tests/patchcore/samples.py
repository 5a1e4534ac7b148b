"""Strips, vectors and banks that several tests of PatchCore use."""

import numpy as np
from numpy.typing import NDArray

from steelray.demo.synthetic import make_strip


def strip(height_px: int, width_px: int, index: int = 0) -> NDArray[np.uint8]:
    """Return pixels_HWC of a generated grey strip."""
    return make_strip(0, index, size_px=(height_px, width_px)).pixels_HW[:, :, None]


def gaussian(count: int, dim: int, seed: int) -> NDArray[np.float32]:
    """Return normally distributed vectors_ND."""
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
