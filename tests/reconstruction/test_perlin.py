"""Perlin noise against its definition written out pixel by pixel; masks, rotation and smoothing."""

import math

import numpy as np
import pytest

from steelray.reconstruction.perlin import gaussian_blur, perlin_mask, perlin_noise, rotate


def fade(t: float) -> float:
    return 6 * t**5 - 15 * t**4 + 10 * t**3


def written_out_noise(angles: np.ndarray, size_px: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    noise = np.zeros(size_px)
    for row in range(size_px[0]):
        for column in range(size_px[1]):
            y, x = row * cells[0] / size_px[0], column * cells[1] / size_px[1]
            for i in (math.floor(y), math.floor(y) + 1):
                for j in (math.floor(x), math.floor(x) + 1):
                    dot = math.cos(angles[i, j]) * (y - i) + math.sin(angles[i, j]) * (x - j)
                    noise[row, column] += (1 - fade(abs(y - i))) * (1 - fade(abs(x - j))) * dot
    return math.sqrt(2) * noise


@pytest.mark.parametrize(("size", "cells"), [((16, 16), (4, 2)), ((10, 14), (3, 5)), ((8, 8), (1, 1))])
def test_noise_is_the_written_out_definition(size: tuple[int, int], cells: tuple[int, int]) -> None:
    """For sizes that the cells do not divide too, which the published implementation cannot do."""
    angles = 2 * np.pi * np.random.default_rng(3).random((cells[0] + 1, cells[1] + 1), dtype=np.float32)
    noise = perlin_noise(np.random.default_rng(3), size, cells)
    assert noise.dtype == np.float32
    np.testing.assert_allclose(noise, written_out_noise(angles, size, cells), atol=1e-5)


def test_masks_are_of_the_published_kind() -> None:
    """About one in twenty empty, and about one pixel in twenty set."""
    rng = np.random.default_rng(0)
    masks = [perlin_mask(rng, (64, 64), (0, 5)) for _ in range(600)]
    assert 0.02 < np.mean([not mask.any() for mask in masks]) < 0.1
    assert 0.025 < np.mean(masks) < 0.06
    assert masks[0].dtype == bool


def test_exponents_bound_the_cells() -> None:
    def changes(exponents: tuple[int, int]) -> float:
        rng = np.random.default_rng(1)
        masks = [perlin_mask(rng, (64, 64), exponents) for _ in range(60)]
        return float(np.mean([np.diff(mask.astype(int), axis=1).any(axis=1).mean() for mask in masks]))

    assert changes((0, 1)) < changes((4, 5)) / 2


def test_rotation_fills_with_black_and_keeps_the_size() -> None:
    grey = np.full((40, 60, 1), 200, dtype=np.uint8)
    colour = np.full((40, 60, 3), 200, dtype=np.uint8)
    for pixels in (grey, colour):
        turned = rotate(pixels, 45)
        assert turned.shape == pixels.shape
        assert not turned[0, 0].any()
        assert (turned[20, 30] == 200).all()
    assert rotate(np.full((8, 8), 0.7, dtype=np.float32), 45).dtype == np.float32


def test_blur_keeps_a_constant_and_smooths_noise() -> None:
    constant = np.full((20, 30, 3), 0.4, dtype=np.float32)
    np.testing.assert_allclose(gaussian_blur(constant, 2.0), constant, rtol=1e-5)
    noise = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    # the variance of white noise after a Gaussian of sigma s is 1 / (4 pi s²)
    assert gaussian_blur(noise, 2.0)[8:-8, 8:-8].var() == pytest.approx(1 / (16 * np.pi), rel=0.35)
    assert gaussian_blur(noise, 0) is noise
