"""Further nominal images made of one: mirrored, darker, brighter, compressed. The same every time: nothing is drawn.

Shapes: H height, W width, C channels (1 or 3); h, w the patch grid, D dimensions of an embedding.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steelray.patchcore.config import AugmentationConfig

MIRRORED_AXES: dict[str, tuple[int, ...]] = {"none": (), "vertical": (0,), "horizontal": (1,), "both": (0, 1)}
"""Axes of HWC: along each, a further image is mirrored."""
MAX_JPEG_PX = 65_488
"""JPEG takes at most 65,500 pixels a side; this is the last multiple of its blocks of 16 before that."""


@dataclass(frozen=True)
class Variant:
    """An image to embed in the place of another one, of the same size.

    Attributes:
        pixels_HWC: uint8.
        mirrored: axes along which it is mirrored.
    """

    pixels_HWC: NDArray[np.uint8] = field(repr=False)
    mirrored: tuple[int, ...] = ()

    def upright(self, embeddings_hwD: NDArray[np.float32]) -> NDArray[np.float32]:
        """The variant's embeddings turned back: row and column mean the same place as in the original's grid."""
        return np.flip(embeddings_hwD, self.mirrored)


def variants(pixels_HWC: NDArray[np.uint8], config: AugmentationConfig) -> Iterator[Variant]:
    """The image itself, then each further image, all made of the original and not of one another."""
    yield Variant(pixels_HWC)
    for axis in MIRRORED_AXES[config.flips]:
        yield Variant(np.flip(pixels_HWC, axis), (axis,))
    if config.brightness_levels:
        for levels in (-config.brightness_levels, config.brightness_levels):
            shifted_HWC = np.rint(np.clip(pixels_HWC + np.float32(levels), 0, 255))
            yield Variant(shifted_HWC.astype(np.uint8))
    if config.jpeg_quality is not None:
        yield Variant(_through_jpeg(pixels_HWC, config.jpeg_quality))


def _through_jpeg(pixels_HWC: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """The image as it comes back from a JPEG file; a longer one than the format allows comes from several."""
    longer = int(np.argmax(pixels_HWC.shape[:2]))
    parts = np.split(pixels_HWC, range(MAX_JPEG_PX, pixels_HWC.shape[longer], MAX_JPEG_PX), axis=longer)
    decoded = []
    for part_HWC in parts:
        body = io.BytesIO()
        grey = part_HWC.shape[2] == 1
        Image.fromarray(part_HWC[:, :, 0] if grey else part_HWC).save(body, "JPEG", quality=quality)
        decoded.append(np.asarray(Image.open(body)).reshape(part_HWC.shape))
    return np.concatenate(decoded, axis=longer)
