"""Tiles cover an image, have one size and are spread evenly."""

import numpy as np
import pytest

from steelray.config import ConfigError
from steelray.imaging.tiling import Tile, tile_grid


@pytest.mark.parametrize(
    ("width_px", "lefts_px"),
    [(400, (0, 400, 800, 1200)), (256, (0, 224, 448, 672, 896, 1120, 1344)), (1600, (0,))],
    ids=["the thesis's four", "squares that share 32 pixels", "the whole image"],
)
def test_a_strip_is_cut_into_tiles(width_px: int, lefts_px: tuple[int, ...]) -> None:
    assert tile_grid((256, 1600), (256, width_px)) == [Tile(0, left, 256, width_px) for left in lefts_px]


def test_tiles_of_any_size_cover_the_image_with_as_few_as_can_be() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(1, 60, 2)
        tile = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        covered = np.zeros((height, width), int)
        tiles = tile_grid((int(height), int(width)), tile)
        for one in tiles:
            assert one.cut(covered).shape == tile
            one.cut(covered)[...] += 1
        assert covered.min() >= 1
        assert len(tiles) == -(-height // tile[0]) * -(-width // tile[1])
        assert [(t.top_px, t.left_px) for t in tiles] == sorted((t.top_px, t.left_px) for t in tiles)


def test_a_tile_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ConfigError, match="a tile of 400x256 does not fit an image of 399x256"):
        tile_grid((256, 399), (256, 400))
