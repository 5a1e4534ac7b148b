"""Further images made of a nominal one: which there are, the same every time, and where their cells lie."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from steelray.demo.synthetic import make_strip
from steelray.patchcore.augmentation import MAX_JPEG_PX, variants
from steelray.patchcore.config import AugmentationConfig

EVERYTHING = AugmentationConfig(flips="both", brightness_levels=20, jpeg_quality=30)


def strip(channels: int = 1) -> NDArray[np.uint8]:
    images = [make_strip(0, index, size_px=(32, 96)).pixels_HW for index in range(channels)]
    return np.stack(images, axis=2)


def test_off_by_default() -> None:
    image = strip()
    [only] = variants(image, AugmentationConfig())
    assert only.pixels_HWC is image
    assert only.mirrored == ()


@pytest.mark.parametrize("channels", [1, 3])
def test_each_option_adds_images_made_of_the_original_alone(channels: int) -> None:
    image = strip(channels)
    itself, upside_down, left_right, darker, brighter, compressed = (
        variant.pixels_HWC for variant in variants(image, EVERYTHING)
    )
    assert np.array_equal(itself, image)
    assert np.array_equal(upside_down, image[::-1])
    assert np.array_equal(left_right, image[:, ::-1])
    assert np.array_equal(darker, np.clip(image.astype(int) - 20, 0, 255))
    assert np.array_equal(brighter, np.clip(image.astype(int) + 20, 0, 255))
    body = io.BytesIO()
    Image.fromarray(image[:, :, 0] if channels == 1 else image).save(body, "JPEG", quality=30)
    assert np.array_equal(compressed, np.asarray(Image.open(body)).reshape(image.shape))
    assert not np.array_equal(compressed, image)
    for variant in variants(image, EVERYTHING):
        assert (variant.pixels_HWC.shape, variant.pixels_HWC.dtype) == (image.shape, np.uint8)


def test_the_same_every_time_and_the_image_is_left_as_it_is() -> None:
    image = strip()
    image.flags.writeable = False
    before = image.copy()
    first, second = ([variant.pixels_HWC for variant in variants(image, EVERYTHING)] for _ in range(2))
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))
    assert np.array_equal(image, before)


def test_brightness_is_clipped_and_does_not_wrap_around() -> None:
    image = np.array([0, 5, 250, 255], np.uint8).reshape(1, 4, 1)
    _, darker, brighter = (v.pixels_HWC.ravel().tolist() for v in variants(image, AugmentationConfig("none", 7.4)))
    assert darker == [0, 0, 243, 248]
    assert brighter == [7, 12, 255, 255]


def test_an_upright_grid_shows_the_same_place_of_the_original() -> None:
    image = strip()

    def cells(pixels_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        means = pixels_HWC.reshape(4, 8, 12, 8).mean(axis=(1, 3), dtype=np.float64)
        return means[:, :, None].astype(np.float32)

    for variant in variants(image, AugmentationConfig(flips="both")):
        assert np.array_equal(variant.upright(cells(variant.pixels_HWC)), cells(image))


def test_a_strip_longer_than_a_jpeg_can_be_is_compressed_in_pieces() -> None:
    image = np.tile(strip()[:16], (1, 700, 1))
    assert image.shape[1] > MAX_JPEG_PX
    *_, compressed = variants(image, AugmentationConfig(jpeg_quality=50))
    assert compressed.pixels_HWC.shape == image.shape
    assert 0 < np.abs(compressed.pixels_HWC.astype(int) - image).mean() < 10
