"""Sources of synthetic anomalies: textures in a folder or bucket, or generated noise.

The generator passed to a source is its only randomness. Shapes: H height, W width, 3 channels (RGB), uint8.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torchvision.transforms.v2 import InterpolationMode  # type: ignore[import-untyped]
from torchvision.transforms.v2 import functional as transforms

from steelray.config import ConfigError
from steelray.reconstruction.perlin import perlin_noise

Pixels = NDArray[np.uint8]
TEXTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
CACHE_BYTES = 256 * 2**20
MAX_BROKEN = 32


class AnomalySource(Protocol):
    """Interface of a source of anomalies."""

    def draw(self, rng: np.random.Generator, size_px: tuple[int, int]) -> Pixels:
        """Draw source_HW3 of this height and width, read only."""


class ImageSource:
    """Source that draws from numbered images and resizes them.

    Args:
        load: returns pixels_HWC uint8 (C = 1 or 3) of a number below `count`. If it raises, the next image is drawn.
        what: name of the source in messages, such as the folder's URI.
    """

    def __init__(self, count: int, load: Callable[[int], Pixels], what: str) -> None:
        if count == 0:
            raise ConfigError(f"{what}: no images found to make anomalies from; give a folder of textures, or null")
        self._count, self._load, self._what = count, load, what
        self._cache: dict[tuple[int, tuple[int, int]], Pixels] = {}

    def draw(self, rng: np.random.Generator, size_px: tuple[int, int]) -> Pixels:
        first = int(rng.integers(self._count))
        failure: Exception | None = None
        for offset in range(min(self._count, MAX_BROKEN)):
            try:
                return self._resized((first + offset) % self._count, size_px)
            except Exception as error:  # a run of hours survives one bad file, but not many in a row
                failure = error
        raise ConfigError(f"{self._what}: no usable image among {min(self._count, MAX_BROKEN)}; last error: {failure}")

    def _resized(self, number: int, size_px: tuple[int, int]) -> Pixels:
        key = (number, size_px)
        if key not in self._cache:
            pixels_HWC = self._load(number)
            image = Image.fromarray(pixels_HWC[:, :, 0] if pixels_HWC.shape[2] == 1 else pixels_HWC)
            resized = image.convert("RGB").resize(size_px[::-1], Image.Resampling.BILINEAR)
            pixels_HW3 = np.asarray(resized)
            if (len(self._cache) + 1) * pixels_HW3.nbytes > CACHE_BYTES:
                self._cache.clear()
            self._cache[key] = pixels_HW3
        return self._cache[key]


def list_textures(uri: str) -> ImageSource:
    """List the images in a folder or under an s3:// prefix, at any depth and in key order, as a source.

    Raises:
        ConfigError: `uri` cannot be listed or holds no images.
    """
    # these import pyarrow, which a machine that only trains may lack
    from steelray.imaging.decode import decode
    from steelray.storage.location import Location

    location = Location(uri)
    location.check_access()
    keys = sorted(stored.key for stored in location.list() if stored.key.lower().endswith(TEXTURE_SUFFIXES))
    return ImageSource(len(keys), lambda number: decode(location.read(keys[number])), f"textures in {uri}")


class GeneratedSource:
    """Source of coloured noise, stripes and grain, for training without textures."""

    def draw(self, rng: np.random.Generator, size_px: tuple[int, int]) -> Pixels:
        rows, columns = (2 ** int(k) for k in rng.integers(1, 6, 2))
        field_HW = perlin_noise(rng, size_px, (rows, columns))
        kind = rng.integers(3)
        if kind == 0:  # clouds with a finer octave
            field_HW = 0.5 + 0.5 * field_HW + 0.25 * perlin_noise(rng, size_px, (2 * rows, 2 * columns))
        elif kind == 1:  # wavy stripes
            down_HW, across_HW = np.ogrid[: size_px[0], : size_px[1]]
            angle, period_px = rng.uniform(0, np.pi), rng.uniform(4, max(size_px) / 4)
            phase_HW = (down_HW * np.sin(angle) + across_HW * np.cos(angle)) / period_px
            field_HW = 0.5 + 0.5 * np.sin(2 * np.pi * (phase_HW.astype(np.float32) + field_HW))
        else:  # patches with edges
            field_HW = (field_HW > rng.uniform(-0.2, 0.2)).astype(np.float32)
        colours_23 = rng.uniform(0, 255, (2, 3)).astype(np.float32)
        texture_HW3 = colours_23[0] + field_HW[:, :, None] * (colours_23[1] - colours_23[0])
        texture_HW3 += rng.standard_normal((*size_px, 1), dtype=np.float32) * np.float32(rng.uniform(0, 25))
        return np.asarray(np.clip(texture_HW3, 0, 255), dtype=np.uint8)


def augment_source(rng: np.random.Generator, source_HW3: Pixels) -> Pixels:
    """Apply three of the official code's ten augmenters, in random order.

    Differs from the official code, which uses imgaug, in that brightness is changed in RGB instead of a random colour
    space.
    """
    image = Image.fromarray(source_HW3)
    for number in rng.choice(len(AUGMENTERS), NUM_AUGMENTERS, replace=False):
        image = AUGMENTERS[number](rng, image)
    return np.asarray(image)


def _gamma(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    levels = np.arange(256) / 255
    return _by_table(image, [255 * levels**gamma for gamma in rng.uniform(0.5, 2.0, 3)])


def _brightness(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    return _by_table(image, [np.arange(256) * rng.uniform(0.8, 1.2) + rng.uniform(-30, 30)] * 3)


def _sharpness(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    return _image(transforms.adjust_sharpness(image, rng.uniform(0.0, 2.0)))


def _hue_and_saturation(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    hue, saturation = rng.integers(-50, 51, 2)
    levels = np.arange(256)
    return _by_table(image.convert("HSV"), [(levels + hue) % 256, levels + saturation, levels]).convert("RGB")


def _solarize(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    return _image(transforms.solarize(image, rng.integers(32, 129))) if rng.random() < 0.5 else image


def _posterize(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    return _image(transforms.posterize(image, int(rng.integers(1, 9))))


def _invert(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    return _image(transforms.invert(image))


def _autocontrast(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    return ImageOps.autocontrast(image, cutoff=int(rng.integers(0, 21)))  # torchvision's version has no cutoff


def _equalize(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    return _image(transforms.equalize(image))


def _turn(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    return _image(transforms.rotate(image, rng.uniform(-45, 45), interpolation=InterpolationMode.BILINEAR))


AUGMENTERS: tuple[Callable[[np.random.Generator, Image.Image], Image.Image], ...] = (
    _gamma, _brightness, _sharpness, _hue_and_saturation, _solarize,
    _posterize, _invert, _autocontrast, _equalize, _turn,
)  # fmt: skip
NUM_AUGMENTERS = 3


def _by_table(image: Image.Image, channels: Sequence[NDArray[Any]]) -> Image.Image:
    """Map each channel's values through its table of 256."""
    return image.point([int(value) for value in np.clip(np.concatenate(channels), 0, 255)])


def _image(result: Any) -> Image.Image:
    return result  # type: ignore[no-any-return]
