"""Nominal images to a memory bank in one process."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from steelray.config import ConfigError
from steelray.demo.synthetic import make_strip
from steelray.imaging.decode import resize
from steelray.patchcore.bank import MemoryBank
from steelray.patchcore.config import AugmentationConfig, CoresetConfig, EmbedderConfig, GrowthConfig, ScoringConfig
from steelray.patchcore.embedder import PatchEmbedder
from steelray.patchcore.fit import common_size, embed_images, fit_memory_bank, grow_memory_bank, patch_origins
from steelray.patchcore.index import LocalSearch, shard_of
from steelray.patchcore.portable_embedder import EmbedFunction
from steelray.patchcore.scorer import PatchCoreScorer

KEYS = ["a.jpg", "b.jpg", "c.jpg"]


def strips(*sizes: tuple[int, int]) -> list[NDArray[np.uint8]]:
    return [make_strip(0, index, size_px=size).pixels_HW[:, :, None] for index, size in enumerate(sizes)]


@pytest.fixture
def fit(embed: EmbedFunction, embedder: PatchEmbedder) -> Callable[..., MemoryBank]:
    def call(
        images: list[NDArray[np.uint8]],
        config: EmbedderConfig = embedder.config,
        augmentation: AugmentationConfig | None = None,
        **coreset: object,
    ) -> MemoryBank:
        return fit_memory_bank(
            KEYS[: len(images)],
            images,
            embed,
            embedder=config,
            weights_digest=embedder.weights_digest,
            coreset=CoresetConfig(**coreset),  # type: ignore[arg-type]
            scoring=ScoringConfig(),
            augmentation=augmentation,
        )

    return call


def test_every_vector_is_the_patch_that_its_origin_names(fit: Callable[..., MemoryBank], embed: EmbedFunction) -> None:
    images = strips((64, 160), (40, 96), (64, 160))
    bank = fit(images, ratio=0.2)
    num_patches = 2 * 8 * 20 + 5 * 12
    assert bank.info.num_vectors == round(0.2 * num_patches)
    assert bank.info.coreset["num_candidates"] == num_patches
    assert bank.image_keys == tuple(KEYS)
    assert bank.info.dim == 40
    embeddings = [embed(image[None])[0] for image in images]
    for vector_D, (image_index, row, column) in zip(bank.vectors_ND, bank.origins_N3, strict=True):
        assert np.array_equal(vector_D, embeddings[image_index][row, column])
    assert len({tuple(origin) for origin in bank.origins_N3.tolist()}) == bank.info.num_vectors
    every_ND = np.concatenate([e.reshape(-1, 40) for e in embeddings])
    distances_NM = np.linalg.norm(every_ND[:, None] - bank.vectors_ND[None], axis=2)
    assert bank.info.coreset["cover_radius"] == pytest.approx(distances_NM.min(axis=1).max(), rel=1e-4)


def test_the_first_limit_ends_the_selection(fit: Callable[..., MemoryBank]) -> None:
    images = strips((64, 160), (64, 160))
    assert fit(images, ratio=0.5, max_centers=7).info.num_vectors == 7
    assert fit(images, ratio=0.5, max_centers=10**6).info.num_vectors == fit(images, ratio=0.5).info.num_vectors
    wide = fit(images, ratio=0.5, cover_radius=1e9)
    assert wide.info.num_vectors == 1
    assert fit(images, ratio=0.001).info.num_vectors == 1


def test_the_same_strips_give_the_same_bank(fit: Callable[..., MemoryBank]) -> None:
    images = strips((64, 160), (64, 160))
    first, second = fit(images, ratio=0.1), fit(images, ratio=0.1)
    assert first.info.bank_id == second.info.bank_id
    assert fit(images[:1], ratio=0.1).info.bank_id != first.info.bank_id


def test_a_projection_selects_other_patches_in_full_dimension(fit: Callable[..., MemoryBank]) -> None:
    images = strips((64, 160), (64, 160))
    exact, projected = fit(images, ratio=0.1), fit(images, ratio=0.1, projection_dim=8, projection_seed=3)
    assert projected.vectors_ND.shape == exact.vectors_ND.shape
    assert projected.info.bank_id != exact.info.bank_id
    assert projected.info.coreset["projection_dim"] == 8
    assert projected.info.coreset["projection_seed"] == 3


def test_the_size_is_remembered_only_where_it_is_one(
    fit: Callable[..., MemoryBank], embedder_config: EmbedderConfig
) -> None:
    assert fit(strips((64, 160), (64, 160)), ratio=0.1).info.input_size_px == (64, 160)
    assert fit(strips((64, 160), (64, 168)), ratio=0.1).info.input_size_px is None
    resized = replace(embedder_config, resize_px=(32, 64))
    bank = fit(strips((64, 160), (64, 160)), resized, ratio=1.0)
    assert bank.info.input_size_px is None
    assert bank.info.num_vectors == 2 * 4 * 8
    assert common_size([(1, 2), (1, 2)], embedder_config) == (1, 2)


def test_images_are_resized_before_embedding(embed: EmbedFunction, embedder_config: EmbedderConfig) -> None:
    [image] = strips((64, 160))
    [embedded] = embed_images(embed, [image], replace(embedder_config, resize_px=(32, 64)))
    assert np.array_equal(embedded, embed(resize(image, (32, 64))[None])[0])


def test_origins_run_row_by_row_through_the_images() -> None:
    assert patch_origins([(1, 2), (2, 1)]).tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 1, 0]]
    assert patch_origins([(3, 4)]).dtype == np.int32
    assert patch_origins([(2, 1, 2), (1, 1, 1)]).tolist() == [*[[0, 0, 0], [0, 0, 1]] * 2, [1, 0, 0]]


def test_without_augmentation_nothing_changes(fit: Callable[..., MemoryBank]) -> None:
    images = strips((64, 160), (40, 96))
    plain, off = fit(images, ratio=0.2), fit(images, augmentation=AugmentationConfig(), ratio=0.2)
    assert np.array_equal(plain.vectors_ND, off.vectors_ND)
    assert np.array_equal(plain.origins_N3, off.origins_N3)
    assert plain.info.bank_id == off.info.bank_id


def test_vectors_of_a_mirrored_image_come_from_where_their_origin_points(
    fit: Callable[..., MemoryBank], embed: EmbedFunction
) -> None:
    images = strips((64, 160), (48, 96))
    bank = fit(images, augmentation=AugmentationConfig(flips="both"), ratio=1.0)
    assert bank.info.num_vectors == bank.info.coreset["num_candidates"] == 3 * (8 * 20 + 6 * 12)
    assert bank.image_keys == tuple(KEYS[:2])
    found = 0
    for axes in ((), (0,), (1,)):
        mirrored = [embed(np.flip(image, axes)[None])[0] for image in images]
        for vector_D, (image_index, row, column) in zip(bank.vectors_ND, bank.origins_N3, strict=True):
            rows, columns, _ = mirrored[image_index].shape
            place = (rows - 1 - row if 0 in axes else row, columns - 1 - column if 1 in axes else column)
            found += np.array_equal(vector_D, mirrored[image_index][place])
    assert found == bank.info.num_vectors


def test_the_crop_at_an_origin_looks_like_the_vector(fit: Callable[..., MemoryBank], embed: EmbedFunction) -> None:
    [image] = strips((64, 160))
    image = image.copy()
    image[8:24, 112:136] = 255  # unlike the rest, and on one side
    bank = fit([image], augmentation=AugmentationConfig(flips="horizontal"), ratio=1.0)
    seen_hwD = embed(image[None])[0]
    steel_D, spot_D = seen_hwD[6, 3], seen_hwD[1, 15]
    nearer_to_spot = np.linalg.norm(bank.vectors_ND - spot_D, axis=1) < np.linalg.norm(
        bank.vectors_ND - steel_D, axis=1
    )
    at_spot = [tuple(origin) in {(0, 1, 15), (0, 2, 15)} for origin in bank.origins_N3.tolist()]
    assert sum(at_spot) == 4
    assert nearer_to_spot[at_spot].all()
    far = [origin[2] < 10 for origin in bank.origins_N3.tolist()]
    assert not nearer_to_spot[far].any()


def test_a_mirrored_strip_is_nearer_to_a_bank_that_has_learned_mirrored_ones(
    fit: Callable[..., MemoryBank], embed: EmbedFunction, embedder: PatchEmbedder
) -> None:
    image = np.linspace(40, 220, 160)[None, :] + np.linspace(0, 30, 64)[:, None]
    slanted = image.astype(np.uint8)[:, :, None]
    slanted[::8] //= 2

    def score(bank: MemoryBank, of: NDArray[np.uint8]) -> float:
        scorer = PatchCoreScorer(embed, LocalSearch([shard_of(bank)]), embedder.config, ScoringConfig(), 8)
        return float(scorer.score([of])[1][0])

    plain = fit([slanted], ratio=0.5)
    for flips, axis in (("vertical", 0), ("horizontal", 1)):
        augmented = fit([slanted], augmentation=AugmentationConfig(flips=flips), ratio=0.5)  # type: ignore[arg-type]
        assert score(augmented, np.flip(slanted, axis)) < 0.8 * score(plain, np.flip(slanted, axis))


def test_a_bank_may_grow_by_mirrored_images_too(fit: Callable[..., MemoryBank], embed: EmbedFunction) -> None:
    first, second = strips((64, 160), (64, 160))
    bank = fit([first], ratio=0.1)
    growth = GrowthConfig(cover_radius=0.0, ratio=1.0)
    grown = grow_memory_bank(bank, ["new.jpg"], [second], embed, growth, augmentation=AugmentationConfig("both"))
    assert grown.info.num_vectors == bank.info.num_vectors + 3 * 8 * 20
    assert grown.origins_N3[:, 0].max() == 1


def test_nothing_to_learn_from(fit: Callable[..., MemoryBank]) -> None:
    with pytest.raises(ConfigError, match="no nominal images"):
        fit([])


def test_an_embedding_that_is_not_finite_is_named() -> None:
    def broken(images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        embeddings = np.zeros((len(images_BHWC), 2, 3, 4), np.float32)
        embeddings[0, 1, 1, 0] = np.nan
        return embeddings

    with pytest.raises(ConfigError, match="coreset: embedding 4 is not finite"):
        fit_memory_bank(
            KEYS[:1],
            strips((64, 160)),
            broken,
            embedder=EmbedderConfig(),
            weights_digest="",
            coreset=CoresetConfig(),
            scoring=ScoringConfig(),
        )


def test_a_projection_to_more_dimensions_than_there_are_is_one_clear_line(fit: Callable[..., MemoryBank]) -> None:
    images = [make_strip(0, 0, size_px=(64, 64)).pixels_HW[:, :, None]]
    with pytest.raises(ConfigError, match="projection_dim is 999"):
        fit(images, projection_dim=999)
