"""Nominal images to a memory bank in one process."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from steelray.patchcore.bank import MemoryBank
from steelray.patchcore.config import CoresetConfig, EmbedderConfig, ScoringConfig
from steelray.patchcore.fit import common_size, fit_memory_bank, patch_origins
from steelray.patchcore.portable_embedder import Embedder, EmbedFunction
from tests.patchcore.samples import strip

KEYS = ["a.jpg", "b.jpg", "c.jpg"]


def strips(*sizes: tuple[int, int]) -> list[NDArray[np.uint8]]:
    return [strip(*size, index) for index, size in enumerate(sizes)]


@pytest.fixture
def fit(eager: Embedder) -> Callable[..., MemoryBank]:
    def call(images: list[NDArray[np.uint8]], config: EmbedderConfig | None = None, **coreset: object) -> MemoryBank:
        return fit_memory_bank(
            KEYS[: len(images)],
            images,
            replace(eager, config=config or eager.config),
            coreset=CoresetConfig(**coreset),  # type: ignore[arg-type]
            scoring=ScoringConfig(),
        )

    return call


def test_every_vector_is_the_patch_that_its_origin_names(fit: Callable[..., MemoryBank], embed: EmbedFunction) -> None:
    images = strips((64, 160), (40, 96), (64, 160))
    bank = fit(images, ratio=0.2)
    num_patches = 2 * 8 * 20 + 5 * 12
    assert bank.info.num_vectors == round(0.2 * num_patches)
    assert bank.info.coreset.num_candidates == num_patches
    assert bank.image_keys == tuple(KEYS)
    assert bank.info.dim == 40
    embeddings = [embed(image[None])[0] for image in images]
    for vector_D, (image_index, row, column) in zip(bank.vectors_ND, bank.origins_N3, strict=True):
        assert np.array_equal(vector_D, embeddings[image_index][row, column])
    assert len({tuple(origin) for origin in bank.origins_N3.tolist()}) == bank.info.num_vectors
    every_ND = np.concatenate([e.reshape(-1, 40) for e in embeddings])
    distances_NM = np.linalg.norm(every_ND[:, None] - bank.vectors_ND[None], axis=2)
    assert bank.info.coreset.cover_radius == pytest.approx(distances_NM.min(axis=1).max(), rel=1e-4)


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


def test_origins_run_row_by_row_through_the_images() -> None:
    assert patch_origins([(1, 2), (2, 1)]).tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 1, 0]]
    assert patch_origins([(3, 4)]).dtype == np.int32
