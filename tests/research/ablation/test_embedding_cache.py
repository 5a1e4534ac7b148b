"""Embeddings are computed once per image content, embedder and weights."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steelray.patchcore.config import EmbedderConfig
from steelray.research.ablation.embedding_cache import CachedEmbedding


class CountingEmbed:
    """Mean grey per cell of 8 pixels; counts the images it has seen."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.count += len(images_BHWC)
        batch, height, width, _ = images_BHWC.shape
        cells = images_BHWC.mean(axis=3).reshape(batch, height // 8, 8, width // 8, 8).mean(axis=(2, 4))
        return cells[..., None].astype(np.float32)


def test_an_image_is_embedded_once_whatever_it_is_called(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 32, 1), dtype=np.uint8)
    embed = CountingEmbed()
    cached = CachedEmbedding(embed, EmbedderConfig(), "w", tmp_path)
    first = cached(images)
    again = CachedEmbedding(embed, EmbedderConfig(), "w", tmp_path)(images[::-1])
    assert np.array_equal(again[::-1], first)
    assert embed.count == 3
    mirrored = cached(np.flip(images, 2))
    assert embed.count == 6
    assert np.array_equal(np.flip(mirrored, 2), first)


def test_other_settings_other_weights_and_other_shapes_are_other_embeddings(tmp_path: Path) -> None:
    embed = CountingEmbed()
    image = np.zeros((1, 16, 32, 1), dtype=np.uint8)
    for config, weights in ((EmbedderConfig(), "w"), (EmbedderConfig(levels=(4,)), "w"), (EmbedderConfig(), "v")):
        CachedEmbedding(embed, config, weights, tmp_path)(image)
    assert embed.count == 3
    assert CachedEmbedding(embed, EmbedderConfig(), "w", tmp_path)(image.reshape(1, 32, 16, 1)).shape[1:3] == (4, 2)
    assert embed.count == 4


def test_a_cache_from_before_there_were_tiles_is_found_again(tmp_path: Path) -> None:
    embed = CountingEmbed()
    CachedEmbedding(embed, EmbedderConfig(), "w", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a74e3fd8b02d47e5"]  # as the version before named it
    CachedEmbedding(embed, EmbedderConfig(tile_px=(256, 256)), "w", tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    embed = CountingEmbed()
    cached = CachedEmbedding(embed, EmbedderConfig(), "w", tmp_path)
    image = np.full((1, 16, 32, 1), 9, dtype=np.uint8)
    whole = cached(image)
    for size in (0, 100, 130):
        [path] = tmp_path.rglob("*.npy")
        path.write_bytes(path.read_bytes()[:size])
        assert np.array_equal(cached(image), whole)
    assert embed.count == 4
