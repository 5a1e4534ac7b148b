"""Gradient noise (Perlin 1985) and Gaussian smoothing as small matrix products.

Shapes: H height and W width in pixels, G grid points along an axis (cells + 1).
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NOISE_THRESHOLD = 0.5

Floats = NDArray[np.float32]


def perlin_noise(rng: np.random.Generator, size_px: tuple[int, int], cells: tuple[int, int]) -> Floats:
    """Draw Perlin noise, noise_HW about within [-1, 1].

    The noise is bilinear in the faded weights of the two axes, so two products of small matrices give it. The number of
    cells need not divide the size.

    Args:
        cells: grid cells along the height and along the width.
    """
    angles_GG = rng.random((cells[0] + 1, cells[1] + 1), dtype=np.float32) * np.float32(2 * np.pi)
    value_HG, ramp_HG = _axis(size_px[0], cells[0])
    value_WG, ramp_WG = _axis(size_px[1], cells[1])
    noise_HW = ramp_HG @ np.cos(angles_GG) @ value_WG.T + value_HG @ np.sin(angles_GG) @ ramp_WG.T
    return np.asarray(np.float32(np.sqrt(2)) * noise_HW, dtype=np.float32)


@lru_cache(maxsize=64)
def _axis(size_px: int, cells: int) -> tuple[Floats, Floats]:
    """Return each pixel's weight on its two grid points, and that weight times the distance from the point."""
    position = np.arange(size_px) * cells / size_px
    cell = np.floor(position).astype(int)
    t = position - cell
    fade = 6 * t**5 - 15 * t**4 + 10 * t**3
    value, ramp = np.zeros((size_px, cells + 1)), np.zeros((size_px, cells + 1))
    pixels = np.arange(size_px)
    value[pixels, cell], value[pixels, cell + 1] = 1 - fade, fade
    ramp[pixels, cell], ramp[pixels, cell + 1] = (1 - fade) * t, fade * (t - 1)
    return value.astype(np.float32), ramp.astype(np.float32)


def perlin_mask(rng: np.random.Generator, size_px: tuple[int, int], exponents: tuple[int, int]) -> NDArray[np.bool_]:
    """Draw an anomaly's mask_HW: Perlin noise, rotated by up to 90 degrees either way, above a threshold of 0.5.

    About one mask in twenty is empty.

    Args:
        exponents: smallest and largest k; the noise has 2^k cells along an axis, k drawn for each axis.
    """
    rows, columns = (2 ** int(k) for k in rng.integers(exponents[0], exponents[1] + 1, 2))
    noise_HW = perlin_noise(rng, size_px, (rows, columns))
    return rotate(noise_HW, rng.uniform(-90, 90)) > NOISE_THRESHOLD


def rotate(pixels: NDArray[Any], angle_deg: float) -> NDArray[Any]:
    """Rotate float HW or uint8 HWC pixels about their centre, bilinear, same size, zeros beyond the edge."""
    squeezed = pixels.ndim == 3 and pixels.shape[2] == 1
    image = Image.fromarray(pixels[:, :, 0] if squeezed else pixels)
    turned = np.asarray(image.rotate(angle_deg, Image.Resampling.BILINEAR))
    return turned[:, :, None] if squeezed else turned


def gaussian_blur(pixels_HWC: Floats, sigma_px: float) -> Floats:
    """Smooth pixels_HWC or pixels_HW with a Gaussian window, cut off at the edges and normalised to a sum of 1."""
    if sigma_px == 0:
        return pixels_HWC
    rows_HH, columns_WW = (_gaussian_matrix(size, sigma_px) for size in pixels_HWC.shape[:2])
    if pixels_HWC.ndim == 2:
        return np.asarray(rows_HH @ pixels_HWC @ columns_WW.T, dtype=np.float32)
    planes_CHW = rows_HH @ pixels_HWC.transpose(2, 0, 1) @ columns_WW.T
    return np.asarray(planes_CHW.transpose(1, 2, 0), dtype=np.float32)


@lru_cache(maxsize=32)
def _gaussian_matrix(size_px: int, sigma_px: float) -> Floats:
    offsets = np.arange(size_px)[:, None] - np.arange(size_px)[None, :]
    kernel = np.exp(-(offsets**2) / (2 * sigma_px**2))
    return np.asarray(kernel / kernel.sum(axis=1, keepdims=True), dtype=np.float32)
