"""Tiles of one size that cover a strip, overlapping only where their size does not divide it."""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from steelray.config import ConfigError

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Tile:
    """A rectangle of a strip, in pixels."""

    top_px: int
    left_px: int
    height_px: int
    width_px: int

    def cut(self, pixels: NDArray[Scalar]) -> NDArray[Scalar]:
        """Return the tile of an array whose first two axes are height and width, as a view."""
        cut: NDArray[Any] = pixels[
            self.top_px : self.top_px + self.height_px, self.left_px : self.left_px + self.width_px
        ]
        return cut


def tile_grid(size_px: tuple[int, int], tile_px: tuple[int, int]) -> list[Tile]:
    """Return the fewest tiles that cover an image, evenly spread, row by row.

    Tiles overlap if their size does not divide the image's: seven of 256x256 cover 1600x256, sharing 32 px each.

    Raises:
        ConfigError: a tile is larger than the image.
    """
    if tile_px[0] > size_px[0] or tile_px[1] > size_px[1]:
        raise ConfigError(f"a tile of {tile_px[1]}x{tile_px[0]} does not fit an image of {size_px[1]}x{size_px[0]}")
    tops, lefts = (_starts(size, tile) for size, tile in zip(size_px, tile_px, strict=True))
    return [Tile(top, left, *tile_px) for top in tops for left in lefts]


def _starts(size: int, tile: int) -> list[int]:
    count = -(-size // tile)
    return [round(i * (size - tile) / (count - 1)) for i in range(count)] if count > 1 else [0]
