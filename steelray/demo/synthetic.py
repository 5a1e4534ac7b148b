"""Generated steel strips with planted defects of Severstal's four kinds, for the demo and the tests.

Everything follows from a seed. The strips do not model real steel: they have grain along the rolling direction, a
drifting brightness and, some of them, a black margin. Shapes: H height, W width; grey levels are floats in
[0, 255] until the end.
"""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

SIZE_PX = (256, 1600)
DEFECTS = ("pitting", "inclusion", "scratch", "patch")
"""Kinds of defect, in the order of Severstal's classes 1 to 4."""


@dataclass(frozen=True)
class SyntheticStrip:
    """A strip and the mask of its defect."""

    pixels_HW: NDArray[np.uint8]
    mask_HW: NDArray[np.bool_]
    defect: str | None

    def jpeg(self) -> bytes:
        """Return the strip as a JPEG file of quality 95."""
        return encode(self.pixels_HW, "JPEG", quality=95)


def encode(pixels: NDArray[np.uint8] | NDArray[np.uint16], image_format: str, **options: int) -> bytes:
    """Return HW or HWC pixels as an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


def make_strip(
    seed: int,
    index: int,
    *,
    defect: str | None = None,
    size_px: tuple[int, int] = SIZE_PX,
    grain_sd: float = 6.0,
    brightness: float | None = None,
) -> SyntheticStrip:
    """Generate a strip; the same arguments give the same strip everywhere.

    Args:
        defect: one of `DEFECTS`, or None for a nominal strip.
        grain_sd: standard deviation of the grain, grey levels.
        brightness: mean grey level; None draws one.
    """
    rng = np.random.default_rng([seed, index, DEFECTS.index(defect) + 1 if defect else 0])
    height_px, width_px = size_px
    level = rng.uniform(85, 135) if brightness is None else brightness
    fine_HW = ndimage.gaussian_filter(rng.standard_normal(size_px), (0.6, 2.0))
    streaks_HW = ndimage.gaussian_filter(rng.standard_normal(size_px), (1.0, 60.0))
    shade_HW = ndimage.zoom(rng.standard_normal((3, 6)), (height_px / 3, width_px / 6), order=1)
    strip_HW = level + sum(
        scale * layer / layer.std()
        for scale, layer in ((grain_sd, fine_HW), (0.5 * grain_sd, streaks_HW), (4.0, shade_HW))
    )
    mask_HW = np.zeros(size_px, dtype=bool)
    left_margin_px = int(rng.integers(width_px // 16, width_px // 5)) if rng.random() < 0.2 else 0
    if defect is not None:
        strip_HW, mask_HW = _plant(rng, strip_HW, defect, left_margin_px)
    if left_margin_px:
        strip_HW[:, :left_margin_px] = rng.uniform(0, 3, (height_px, left_margin_px))
        mask_HW[:, :left_margin_px] = False
    return SyntheticStrip(np.clip(strip_HW, 0, 255).astype(np.uint8), mask_HW, defect)


def _plant(
    rng: np.random.Generator, strip_HW: NDArray[np.float64], defect: str, left_margin_px: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    height_px, width_px = strip_HW.shape
    top = rng.uniform(0.2, 0.8) * height_px
    left = rng.uniform(left_margin_px + 0.1 * (width_px - left_margin_px), 0.9 * width_px)
    rows_HW, cols_HW = np.mgrid[:height_px, :width_px].astype(np.float64)
    scale = height_px / 256
    if defect == "pitting":
        alpha_HW = np.zeros(strip_HW.shape)
        for _ in range(int(rng.integers(8, 16))):
            row, col = top + rng.normal(0, 25 * scale), left + rng.normal(0, 40 * scale)
            radius = rng.uniform(2.0, 4.5) * scale
            alpha_HW = np.maximum(alpha_HW, np.exp(-((rows_HW - row) ** 2 + (cols_HW - col) ** 2) / (2 * radius**2)))
        change_HW = -70 * alpha_HW
    elif defect == "inclusion":
        length, thick = rng.uniform(30, 70) * scale, rng.uniform(5, 9) * scale
        alpha_HW = np.exp(-(((cols_HW - left) / length) ** 2 + ((rows_HW - top) / thick) ** 2))
        change_HW = -60 * alpha_HW
    elif defect == "scratch":
        angle = rng.uniform(-0.5, 0.5) + (np.pi / 2 if rng.random() < 0.5 else 0)
        along_HW = (cols_HW - left) * np.cos(angle) + (rows_HW - top) * np.sin(angle)
        across_HW = -(cols_HW - left) * np.sin(angle) + (rows_HW - top) * np.cos(angle)
        alpha_HW = np.exp(-((across_HW / (2.2 * scale)) ** 2)) / (1 + (along_HW / (90 * scale)) ** 8)
        change_HW = rng.choice([-75.0, 80.0]) * alpha_HW
    else:
        wobble_HW = ndimage.gaussian_filter(rng.standard_normal(strip_HW.shape), 14 * scale)
        radius_HW = np.hypot((rows_HW - top) / (40 * scale), (cols_HW - left) / (70 * scale))
        alpha_HW = 1 / (1 + np.exp(12 * (radius_HW - 1 + 0.35 * wobble_HW / wobble_HW.std())))
        rough_HW = ndimage.gaussian_filter(rng.standard_normal(strip_HW.shape), 2.5 * scale)
        change_HW = alpha_HW * (-35 + 28 * rough_HW / rough_HW.std())
    return strip_HW + change_HW, alpha_HW > 0.3
