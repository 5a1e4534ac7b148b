"""Preparation of images of any size as network inputs, and merging of the tiles' maps."""

import numpy as np
import pytest

from steelray.demo.synthetic import make_strip
from steelray.reconstruction.config import InputConfig
from steelray.reconstruction.input import (
    black_fraction,
    foreground_mask,
    map_size_px,
    merge_tiles,
    normalize_brightness,
    scoring_views,
    to_unit_range,
    training_view,
)

CROP = InputConfig(size_px=(64, 96), tiling="crop")
SQUEEZE = InputConfig(size_px=(64, 96))


def half_black(width: int = 100) -> np.ndarray:
    pixels = np.full((64, width, 1), 120, dtype=np.uint8)
    pixels[:, : width // 2] = 2
    return pixels


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_unit_range_is_rgb_channels_first_without_normalisation() -> None:
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[1, 2] = (255, 51, 0)
    image = to_unit_range(pixels)
    assert image.shape == (3, 4, 6)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image[:, 1, 2], [1.0, 0.2, 0.0])
    assert image.sum() == pytest.approx(1.2)
    np.testing.assert_allclose(to_unit_range(np.full((4, 6, 1), 51, dtype=np.uint8)), np.full((3, 4, 6), 0.2))


def test_foreground_is_what_is_not_black() -> None:
    mask = foreground_mask(half_black())
    assert not mask[:, :45].any()
    assert mask[:, 55:].all()
    assert black_fraction(half_black()) == pytest.approx(0.5, abs=0.04)
    speckled = np.full((64, 64, 1), 90, dtype=np.uint8)
    speckled[::7, ::7] = 0
    assert foreground_mask(speckled).all()


def test_brightness_is_that_of_the_foreground() -> None:
    for level in (60, 200):
        pixels = half_black(600)  # wide: the mask's edge is soft
        pixels[:, 300:] = level
        assert normalize_brightness(pixels)[:, 310:].mean() == pytest.approx(127.5, abs=6)
    assert normalize_brightness(np.zeros((32, 32, 1), dtype=np.uint8)).max() == 0
    dark = np.full((32, 32, 1), 10, dtype=np.uint8)
    assert normalize_brightness(dark).max() == 40


@pytest.mark.parametrize("channels", [1, 3])
def test_squeeze_shows_the_whole_image(channels: int) -> None:
    pixels = np.repeat(make_strip(0, 0, size_px=(64, 400)).pixels_HW[:, :, None], channels, axis=2)
    view = training_view(pixels, SQUEEZE, rng())
    views, tiles = scoring_views(pixels, SQUEEZE)
    assert view.shape == (64, 96, channels)
    assert (view == views[0]).all()
    assert len(views) == len(tiles) == 1
    assert map_size_px((64, 400), SQUEEZE) == (64, 96)


def test_crops_are_cut_at_native_resolution() -> None:
    pixels = np.arange(128 * 400, dtype=np.uint32).reshape(128, 400, 1)
    starts = set()
    for seed in range(20):
        view = training_view(pixels, CROP, np.random.default_rng(seed))
        assert view.shape == (64, 96, 1)
        assert view[1, 0, 0] - view[0, 0, 0] == 400
        starts.add(int(view[0, 0, 0]))
    assert len(starts) > 15


def test_crops_avoid_black_where_they_can() -> None:
    pixels = half_black(1600)
    shares = [black_fraction(training_view(pixels, CROP, np.random.default_rng(s), 0.3)) for s in range(20)]
    assert np.mean([share <= 0.3 for share in shares]) > 0.9
    assert training_view(np.zeros((64, 200, 1), np.uint8), CROP, rng(), 0.3).shape == (64, 96, 1)


@pytest.mark.parametrize("size", [(64, 96), (64, 400), (100, 131), (30, 40), (64, 50)])
def test_tiles_cover_an_image_and_merge_back_into_it(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 1), dtype=np.uint8)
    views, tiles = scoring_views(pixels, CROP)
    assert all(view.shape == (64, 96, 1) for view in views)
    merged = merge_tiles([view[:, :, 0].astype(np.float32) for view in views], tiles, map_size_px(size, CROP))
    np.testing.assert_allclose(merged, pixels[:, :, 0], rtol=1e-6)


def test_overlapping_tiles_are_averaged() -> None:
    _, tiles = scoring_views(np.zeros((64, 144, 1), dtype=np.uint8), CROP)
    merged = merge_tiles([np.full((64, 96), value, dtype=np.float32) for value in (1, 3)], tiles, (64, 144))
    assert merged[0, [0, 47, 48, 95, 96, 143]].tolist() == [1, 1, 2, 2, 3, 3]


def test_brightness_is_normalised_in_training_and_in_scoring_alike() -> None:
    config = InputConfig(size_px=(64, 96), brightness_norm="strip")
    pixels = np.full((64, 96, 1), 60, dtype=np.uint8)
    assert (training_view(pixels, config, rng()) == 128).all()
    assert (scoring_views(pixels, config)[0][0] == 128).all()
