"""Preparation of images as network inputs for training and scoring, and assembly of the maps of their tiles.

Training and scoring use the same functions and the same `InputConfig`, which is stored in the checkpoint. Shapes:
H height, W width, C channels (1 or 3) as read; h, w the network's input; T tiles of one image.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steelray.imaging.tiling import Tile, tile_grid
from steelray.reconstruction.config import InputConfig
from steelray.reconstruction.perlin import gaussian_blur

Pixels = NDArray[np.uint8]

BLACK_LEVEL = 8
"""Grey level below which a pixel belongs to the black beside the strip."""
BLACK_SIGMA_PX = 2.0
MID_GREY = 127.5
MAX_GAIN = 4.0
MAX_CROPS = 10


def foreground_mask(pixels_HWC: Pixels) -> NDArray[np.bool_]:
    """Return mask_HW, True on the strip: where the smoothed grey level is at least `BLACK_LEVEL`."""
    return gaussian_blur(pixels_HWC.mean(axis=2, dtype=np.float32), BLACK_SIGMA_PX) >= BLACK_LEVEL


def black_fraction(pixels_HWC: Pixels) -> float:
    """Return the share of an image that is not foreground."""
    return 1.0 - float(foreground_mask(pixels_HWC).mean())


def normalize_brightness(pixels_HWC: Pixels) -> Pixels:
    """Scale an image by at most `MAX_GAIN` either way so that the mean of its foreground is mid grey."""
    foreground_HW = foreground_mask(pixels_HWC)
    if not foreground_HW.any():
        return pixels_HWC
    mean = float(pixels_HWC[foreground_HW].mean())
    gain = np.float32(np.clip(MID_GREY / mean, 1 / MAX_GAIN, MAX_GAIN))
    return np.asarray(np.rint(np.minimum(pixels_HWC * gain, 255)), dtype=np.uint8)


def training_view(
    pixels_HWC: Pixels, config: InputConfig, rng: np.random.Generator, max_black_fraction: float = 1.0
) -> Pixels:
    """Return the part of an image to train on, pixels_hwC: the whole image resized, or a random crop.

    Args:
        max_black_fraction: draw another crop while more than this share is black, `MAX_CROPS` crops at most.
    """
    pixels_HWC = _normalized(pixels_HWC, config)
    if config.tiling == "squeeze":
        return _resized(pixels_HWC, config.size_px)
    padded_HWC = _padded(pixels_HWC, config.size_px)
    rooms = [have - want for have, want in zip(padded_HWC.shape[:2], config.size_px, strict=True)]
    for _ in range(MAX_CROPS):
        top_px, left_px = (int(rng.integers(room + 1)) for room in rooms)
        crop_hwC = Tile(top_px, left_px, *config.size_px).cut(padded_HWC)
        if max_black_fraction == 1.0 or black_fraction(crop_hwC) <= max_black_fraction:
            break
    return crop_hwC


def scoring_views(pixels_HWC: Pixels, config: InputConfig) -> tuple[list[Pixels], list[Tile]]:
    """Return the T views pixels_hwC that cover an image, and the place of each in the image's map.

    With tiling `crop` the image is first shrunk by `scoring_scale`. If it is then smaller than the network's input, it
    is padded with its edge pixels below and to the right.
    """
    pixels_HWC = _normalized(pixels_HWC, config)
    if config.tiling == "squeeze":
        return [_resized(pixels_HWC, config.size_px)], [Tile(0, 0, *config.size_px)]
    seen_HWC = _resized(pixels_HWC, scored_size_px((pixels_HWC.shape[0], pixels_HWC.shape[1]), config))
    padded_HWC = _padded(seen_HWC, config.size_px)
    tiles = tile_grid((padded_HWC.shape[0], padded_HWC.shape[1]), config.size_px)
    return [tile.cut(padded_HWC) for tile in tiles], tiles


def scored_size_px(image_size_px: tuple[int, int], config: InputConfig) -> tuple[int, int]:
    """Return the height and width at which an image is scored, all tiles together and without padding."""
    if config.tiling == "squeeze":
        return config.size_px
    height_px, width_px = (max(1, round(size_px * config.scoring_scale)) for size_px in image_size_px)
    return height_px, width_px


def map_size_px(image_size_px: tuple[int, int], config: InputConfig) -> tuple[int, int]:
    """Return the height and width of an image's anomaly map."""
    return config.size_px if config.tiling == "squeeze" else image_size_px


def merge_tiles(
    maps: Sequence[NDArray[np.float32]], tiles: Sequence[Tile], size_px: tuple[int, int]
) -> NDArray[np.float32]:
    """Assemble a map of `size_px` from the maps of its tiles: average overlaps, cut off padding."""
    height_px = max(tile.top_px + tile.height_px for tile in tiles)
    width_px = max(tile.left_px + tile.width_px for tile in tiles)
    total_HW = np.zeros((height_px, width_px), dtype=np.float32)
    count_HW = np.zeros((height_px, width_px), dtype=np.float32)
    for map_hw, tile in zip(maps, tiles, strict=True):
        tile.cut(total_HW)[:] += map_hw
        tile.cut(count_HW)[:] += 1
    return (total_HW / count_HW)[: size_px[0], : size_px[1]]


def to_unit_range(pixels_HWC: Pixels) -> NDArray[np.float32]:
    """Convert pixels to image_3HW, float32 in [0, 1], RGB; grey is repeated. Values are not standardised."""
    image_CHW = pixels_HWC.transpose(2, 0, 1).astype(np.float32) / 255
    return np.repeat(image_CHW, 3, axis=0) if image_CHW.shape[0] == 1 else np.ascontiguousarray(image_CHW)


def _normalized(pixels_HWC: Pixels, config: InputConfig) -> Pixels:
    return normalize_brightness(pixels_HWC) if config.brightness_norm == "strip" else pixels_HWC


def _resized(pixels_HWC: Pixels, size_px: tuple[int, int]) -> Pixels:
    if pixels_HWC.shape[:2] == size_px:
        return pixels_HWC
    from steelray.imaging.decode import resize  # imports pyarrow, which a machine that only trains may lack

    return resize(pixels_HWC, size_px)


def _padded(pixels_HWC: Pixels, size_px: tuple[int, int]) -> Pixels:
    below, right = (max(0, want - have) for want, have in zip(size_px, pixels_HWC.shape[:2], strict=True))
    return np.pad(pixels_HWC, ((0, below), (0, right), (0, 0)), mode="edge") if below or right else pixels_HWC
