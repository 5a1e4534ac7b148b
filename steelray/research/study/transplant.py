"""Changes that put a suspected cause into images or take it out. Shapes: H height, W width, C channels; uint8."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steelray.reconstruction.perlin import gaussian_blur

Pixels = NDArray[np.uint8]


def apply_changes(pixels_HWC: Pixels, changes: tuple[tuple[str, float], ...], seed: int) -> Pixels:
    """Make the changes to an image, in order. `seed` alone determines what is random in them."""
    for number, (name, amount) in enumerate(changes):
        pixels_HWC = _change(pixels_HWC, name, amount, np.random.default_rng([seed, number]))
    return pixels_HWC


def _change(pixels_HWC: Pixels, name: str, amount: float, rng: np.random.Generator) -> Pixels:
    height_px, width_px, _ = pixels_HWC.shape
    if name == "grain":  # the same in all channels: grain is grey
        noise_HW1 = rng.standard_normal((height_px, width_px, 1), dtype=np.float32)
        return _rounded(pixels_HWC + np.float32(amount) * noise_HW1)
    if name == "denoise":
        return _rounded(gaussian_blur(pixels_HWC.astype(np.float32), amount))
    if name == "bands":  # black from one side, as if the camera saw past the strip's edge
        banded_HWC = pixels_HWC.copy()
        black_px = round(amount * width_px)
        start = 0 if rng.random() < 0.5 else width_px - black_px
        banded_HWC[:, start : start + black_px] = rng.integers(0, 4, (height_px, black_px, 1))
        return banded_HWC
    if name == "grey":
        return _rounded(np.repeat(pixels_HWC.mean(axis=2, keepdims=True), pixels_HWC.shape[2], axis=2))
    assert name == "squeeze"
    channels = pixels_HWC.shape[2]
    image = Image.fromarray(pixels_HWC[:, :, 0] if channels == 1 else pixels_HWC)
    squeezed = np.asarray(image.resize((round(amount * width_px), height_px), Image.Resampling.BILINEAR))
    return squeezed[:, :, None] if channels == 1 else squeezed


def _rounded(values: NDArray[np.floating]) -> Pixels:
    return np.asarray(np.rint(np.clip(values, 0, 255)), dtype=np.uint8)
