"""Images embedded in overlapping tiles: the same grid as whole, nearly the same embeddings, and no seam."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from steelray.config import ComputeConfig, ConfigError
from steelray.models.model import load_embedder, portable_embedder
from steelray.patchcore.config import EmbedderConfig
from steelray.patchcore.embedder import PatchEmbedder, build_patch_embedder, compile_embedder
from steelray.patchcore.portable_embedder import EmbedFunction
from steelray.patchcore.tiles import tiled_embedding
from tests.patchcore.samples import strip

TILED = EmbedderConfig(levels=(2,), tile_px=(64, 128), tile_overlap_px=32)


def mean_grey(images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """An embedding that sees its own cell of 4 pixels alone, so that tiles lose nothing."""
    batch, height, width, _ = images_BHWC.shape
    filled = np.pad(images_BHWC[..., 0].astype(float), [(0, 0), (0, -height % 4), (0, -width % 4)], mode="edge")
    cells = filled.reshape(batch, -(-height // 4), 4, -(-width // 4), 4).mean(axis=(2, 4))
    return np.stack([cells, 255 - cells], axis=3).astype(np.float32)


@pytest.mark.parametrize("overlap_px", [0, 8, 16, 24])
@pytest.mark.parametrize("size_px", [(32, 40), (33, 41), (64, 200), (65, 203), (70, 40), (39, 47), (24, 300)])
def test_an_embedding_that_sees_its_own_cell_alone_is_the_same_in_tiles(
    size_px: tuple[int, int], overlap_px: int
) -> None:
    sizes: list[tuple[int, ...]] = []

    def seen(images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        sizes.append(images_BHWC.shape[1:3])
        return mean_grey(images_BHWC)

    tiled = tiled_embedding(seen, EmbedderConfig(tile_px=(32, 40), tile_overlap_px=overlap_px), stride_px=8)
    images = np.random.default_rng(0).integers(0, 256, (2, *size_px, 1), dtype=np.uint8)
    embeddings, expected = tiled(images), mean_grey(images)
    assert embeddings.shape == expected.shape
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, expected, rtol=1e-5, atol=1e-4)
    assert all(height <= 32 and width <= 40 for height, width in sizes)
    assert all(min(of_tile) >= min(8, *size_px) for of_tile in sizes), "no tile is too small to embed"


def test_weights_fall_linearly_over_the_overlap_and_add_up_to_one() -> None:
    values = iter([0.0, 1.0])

    def constant(images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.full((1, 5, images_BHWC.shape[2] // 8, 1), next(values), np.float32)

    tiled = tiled_embedding(constant, EmbedderConfig(tile_px=(40, 64), tile_overlap_px=32), stride_px=8)
    row, *_ = tiled(np.zeros((1, 40, 96, 1), np.uint8))[0, :, :, 0].tolist()
    assert row == [0, 0, 0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1, 1, 1]


@pytest.fixture(scope="module")
def tiled() -> EmbedFunction:
    return compile_embedder(build_patch_embedder(TILED), backend="eager")


@pytest.mark.parametrize("size_px", [(64, 128), (63, 127), (40, 50)])
@pytest.mark.parametrize("larger_px", [(0, 0), (0, 33), (37, 75), (86, 0)])
def test_the_grid_is_that_of_the_whole_image_and_a_tile_alone_the_same(
    embed: EmbedFunction, tiled: EmbedFunction, size_px: tuple[int, int], larger_px: tuple[int, int]
) -> None:
    image = strip(size_px[0] + larger_px[0], size_px[1] + larger_px[1])[None]
    embeddings, whole = tiled(image), embed(image)
    assert embeddings.shape == whole.shape
    if larger_px == (0, 0):
        assert np.array_equal(embeddings, whole)


def test_tiles_come_near_the_whole_image_and_overlap_leaves_no_seam(
    embed: EmbedFunction, embedder: PatchEmbedder
) -> None:
    image = strip(64, 448)[None]
    whole_hwD = embed(image)[0]
    norm = np.linalg.norm(whole_hwD, axis=2).mean()

    def off(overlap_px: int) -> NDArray[np.float32]:
        config = replace(TILED, tile_px=(128, 256), tile_overlap_px=overlap_px)
        tiled_hwD = tiled_embedding(embed, config, embedder.stride_px)(image)[0]
        return np.asarray(np.linalg.norm(tiled_hwD - whole_hwD, axis=2) / norm)

    blended_hw, butted_hw = off(64), off(0)
    assert np.median(blended_hw) < 1e-3, "most cells do not see a tile's edge"
    assert blended_hw[:, :16].max() < 1e-3, "far from the overlap nothing changes"
    assert blended_hw.max() < 0.2
    assert blended_hw.max() < 0.5 * butted_hw.max()


def test_an_embedding_does_not_depend_on_its_batch(tiled: EmbedFunction) -> None:
    images = np.stack([strip(64, 200, index) for index in range(3)])
    together = tiled(images)
    for index in range(3):
        assert np.array_equal(tiled(images[index : index + 1])[0], together[index])


def test_jobs_embed_in_tiles_too(tiled: EmbedFunction, embedder: PatchEmbedder) -> None:
    image = strip(64, 200)[None]
    expected = tiled(image)
    for backend in ("openvino", "eager"):
        compute = ComputeConfig(backend=backend)  # type: ignore[arg-type]
        portable = portable_embedder(TILED, embedder.weights_digest, compute, use_gpu=False)
        loaded = load_embedder(TILED, embedder.weights_digest, compute, 1, portable)
        assert loaded.stride_px == embedder.stride_px
        np.testing.assert_allclose(loaded.embed(image), expected, atol=5e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("tile_px", "overlap_px", "message"),
    [
        ((64, 100), 32, r"tile_px is \[64, 100\]: both must be multiples of 16, the coarsest.*\[2, 3\]"),
        ((16, 128), 0, r"tile_px is \[16, 128\]: .*at least 32"),
        ((64, 128), 24, r"tile_overlap_px is 24: it must be a multiple of 16"),
    ],
)
def test_tiles_that_do_not_suit_the_levels(tile_px: tuple[int, int], overlap_px: int, message: str) -> None:
    config = EmbedderConfig(levels=(2, 3), tile_px=tile_px, tile_overlap_px=overlap_px)
    with pytest.raises(ConfigError, match=message) as caught:
        build_patch_embedder(config)
    assert "\n" not in str(caught.value)
