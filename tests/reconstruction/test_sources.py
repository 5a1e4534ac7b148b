"""Textures from folders and buckets, generated textures, and the ten augmenters."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steelray.config import ConfigError
from steelray.reconstruction.sources import (
    AUGMENTERS,
    AnomalySource,
    GeneratedSource,
    ImageSource,
    augment_source,
    list_textures,
)
from steelray.storage.location import Location


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def texture(seed: int, shape: tuple[int, ...] = (30, 50, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def fill(uri: str, bodies: dict[str, bytes]) -> None:
    location = Location(uri)
    location.check_access(create=True)
    for key, body in bodies.items():
        location.write(key, body)


def draws(source: AnomalySource, count: int = 12) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [source.draw(rng, (16, 24)) for _ in range(count)]


LAYOUT = {
    "banded/banded_0001.png": png(texture(1)),
    "dotted/dotted_0001.png": png(texture(2)),
    "dotted/grey.PNG": png(texture(3, (20, 20))),
    "readme.txt": b"not an image",
}


def test_textures_lie_in_a_folder_or_bucket_at_any_depth(tmp_path: Path, s3_uri: str) -> None:
    fill(str(tmp_path), LAYOUT)
    fill(s3_uri, LAYOUT)
    here, there = draws(list_textures(str(tmp_path))), draws(list_textures(s3_uri))
    assert all(pixels.shape == (16, 24, 3) and pixels.dtype == np.uint8 for pixels in here)
    assert len({pixels.tobytes() for pixels in here}) == 3
    assert all((a == b).all() for a, b in zip(here, there, strict=True))


def test_channel_order_is_red_green_blue(tmp_path: Path) -> None:
    red = np.zeros((8, 8, 3), dtype=np.uint8)
    red[..., 0], red[0, 0, 0] = 200, 190
    fill(str(tmp_path), {"red.png": png(red)})
    (drawn,) = draws(list_textures(str(tmp_path)), 1)
    assert drawn[8, 12].tolist() == [200, 0, 0]


def test_no_textures_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(ConfigError, match="no images found to make anomalies from"):
        list_textures(str(tmp_path))
    with pytest.raises(ConfigError, match="no such folder"):
        list_textures(str(tmp_path / "absent"))


def test_a_broken_texture_is_skipped_unless_all_are(tmp_path: Path) -> None:
    fill(str(tmp_path), {"a.png": png(texture(1)), "b.png": b"broken"})
    assert len({pixels.tobytes() for pixels in draws(list_textures(str(tmp_path)))}) == 1
    (tmp_path / "a.png").unlink()
    with pytest.raises(ConfigError, match=r"no usable image among 1; .*not a JPEG"):
        draws(list_textures(str(tmp_path)), 1)


def test_an_image_is_read_once_per_size() -> None:
    loads: list[int] = []

    def load(number: int) -> np.ndarray:
        loads.append(number)
        return texture(number)

    draws(ImageSource(3, load, "test"), 20)
    assert sorted(loads) == [0, 1, 2]


def test_generated_textures_differ_and_have_colour() -> None:
    drawn = draws(GeneratedSource(), 30)
    assert len({pixels.tobytes() for pixels in drawn}) == 30
    assert all(pixels.shape == (16, 24, 3) and pixels.dtype == np.uint8 for pixels in drawn)
    assert np.mean([np.ptp(pixels.astype(int), axis=2).mean() > 10 for pixels in drawn]) > 0.7


@pytest.mark.parametrize("number", range(10))
def test_every_augmenter_keeps_the_size_and_does_something(number: int) -> None:
    image = Image.fromarray(texture(5, (32, 40, 3)))
    results = [np.asarray(AUGMENTERS[number](np.random.default_rng(seed), image)) for seed in range(8)]
    assert all(result.shape == (32, 40, 3) and result.dtype == np.uint8 for result in results)
    assert any((result != np.asarray(image)).any() for result in results)


def test_there_are_ten_augmenters_of_which_three_act() -> None:
    assert len(AUGMENTERS) == 10
    source = texture(5, (16, 16, 3))
    results = {augment_source(np.random.default_rng(seed), source).tobytes() for seed in range(20)}
    assert len(results) >= 19
    again = augment_source(np.random.default_rng(3), source)
    assert (again == augment_source(np.random.default_rng(3), source)).all()
