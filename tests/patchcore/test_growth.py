"""A grown bank against one that is rebuilt from everything at the same size."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from steelray.config import ConfigError
from steelray.patchcore.bank import MemoryBank, bank_files, read_bank
from steelray.patchcore.config import CoresetConfig, EmbedderConfig, GrowthConfig, IndexConfig, ScoringConfig
from steelray.patchcore.coreset import CoresetShard, select
from steelray.patchcore.fit import fit_memory_bank, grow_memory_bank
from steelray.patchcore.portable_embedder import Embedder

DIM = 8
IMAGE_PX = (20, 30)


def embed(images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Stands in for a backbone: an image's first pixels are the seed and the kind of its patch embeddings."""
    return np.stack([patches(int(image[0, 0, 0]), KINDS[int(image[0, 1, 0])]) for image in images_BHWC])


def patches(seed: int, kind: str) -> NDArray[np.float32]:
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    if kind == "nan":
        return np.full((*IMAGE_PX, DIM), np.nan, np.float32)
    if kind == "same everywhere":
        return np.ones((*IMAGE_PX, DIM), np.float32)
    centers = np.random.default_rng(KINDS.index(kind)).standard_normal((12, DIM)) * 2
    offset = {"steel": 0.0, "other finish": 0.0, "far away": 30.0}[kind]
    values = centers[rng.integers(0, 12, IMAGE_PX)] + rng.standard_normal((*IMAGE_PX, DIM)) + offset
    return values.astype(np.float32)


KINDS = ["steel", "other finish", "far away", "nan", "same everywhere"]


def image(seed: int, kind: str) -> NDArray[np.uint8]:
    pixels_HWC = np.zeros((8, 8, 1), np.uint8)
    pixels_HWC[0, :2, 0] = seed, KINDS.index(kind)
    return pixels_HWC


def images(count: int, kind: str, first: int = 0) -> list[NDArray[np.uint8]]:
    return [image(first + index, kind) for index in range(count)]


EMBEDDER = Embedder(EmbedderConfig(neighborhood=1), embed, 8, "w")


def build(shown: list[NDArray[np.uint8]], **changes: object) -> MemoryBank:
    settings: dict[str, object] = {"coreset": CoresetConfig(ratio=0.02), "scoring": ScoringConfig(), **changes}
    keys = [f"old/{place}" for place in range(len(shown))]
    return fit_memory_bank(keys, shown, EMBEDDER, **settings)  # type: ignore[arg-type]


def grow(bank: MemoryBank, shown: list[NDArray[np.uint8]], **limits: float) -> MemoryBank:
    keys = [f"new/{place}" for place in range(len(shown))]
    return grow_memory_bank(bank, keys, shown, EMBEDDER, GrowthConfig(**limits))  # type: ignore[arg-type]


def points(shown: list[NDArray[np.uint8]]) -> torch.Tensor:
    return torch.from_numpy(embed(np.stack(shown)).reshape(-1, DIM))


def cover_radius(points_ND: torch.Tensor, vectors_ND: NDArray) -> float:
    return float(torch.cdist(points_ND, torch.from_numpy(vectors_ND.astype(np.float32))).min(dim=1).values.max())


@pytest.mark.parametrize(("num_old", "num_new"), [(6, 3), (3, 6), (5, 1)])
@pytest.mark.parametrize("kind", ["steel", "other finish", "far away"])
def test_it_covers_nearly_as_well_as_a_rebuilt_bank_of_the_same_size(kind: str, num_old: int, num_new: int) -> None:
    old, new = images(num_old, "steel"), images(num_new, kind, first=50)
    bank = build(old)
    grown = grow(bank, new, ratio=1.0)
    everything = points(old + new)
    rebuilt = select([CoresetShard(everything)], grown.info.num_vectors)
    radius = cover_radius(everything, grown.vectors_ND)
    assert radius <= 1.1 * rebuilt.cover_radius
    assert radius <= grown.info.coreset.cover_radius * 1.001
    assert grown.info.num_vectors > bank.info.num_vectors
    assert grown.info.num_vectors - bank.info.num_vectors < 0.1 * len(points(new))


def test_it_keeps_what_it_had_and_says_where_the_rest_came_from() -> None:
    old, new = images(3, "steel"), images(2, "far away", first=50)
    bank = build(old)
    grown = grow(bank, new)
    count = bank.info.num_vectors
    np.testing.assert_array_equal(grown.vectors_ND[:count], bank.vectors_ND)
    np.testing.assert_array_equal(grown.origins_N3[:count], bank.origins_N3)
    assert grown.image_keys == ("old/0", "old/1", "old/2", "new/0", "new/1")
    for vector_D, (image_index, row, column) in zip(grown.vectors_ND[count:], grown.origins_N3[count:], strict=True):
        assert image_index in (3, 4)
        np.testing.assert_array_equal(vector_D, embed(np.stack(new))[image_index - 3, row, column])
    assert grown.info.bank_id != bank.info.bank_id
    assert grown.info.coreset.grown_from == (bank.info.bank_id,)
    assert grown.info.coreset.num_candidates == 5 * 600
    again = grow(grown, images(1, "other finish", first=70))
    assert again.info.coreset.grown_from == (bank.info.bank_id, grown.info.bank_id)
    assert again.image_keys[-1] == "new/0"
    files = dict(bank_files(again))
    assert read_bank(files.__getitem__, "").image_keys == again.image_keys


def test_the_picks_are_those_of_the_textbook_that_goes_on() -> None:
    bank, new = build(images(2, "steel")), images(2, "far away", first=50)
    grown = grow(bank, new, max_centers=40, cover_radius=0.0)
    candidates, centers = points(new).double(), torch.from_numpy(bank.vectors_ND).double()
    nearest = torch.cdist(candidates, centers).min(dim=1).values
    for vector_D in grown.vectors_ND[bank.info.num_vectors :]:
        pick = int(nearest.argmax())
        np.testing.assert_array_equal(vector_D, candidates[pick].float().numpy())
        nearest = torch.minimum(nearest, (candidates - candidates[pick]).norm(dim=1))
    assert grown.info.num_vectors - bank.info.num_vectors == 40


def test_strips_that_are_covered_already_add_nothing() -> None:
    bank = build(images(4, "steel"))
    grown = grow(bank, images(2, "steel"))
    assert grown.info.num_vectors == bank.info.num_vectors
    assert grown.info.bank_id == bank.info.bank_id
    assert len(grown.image_keys) == 6


def test_a_bank_of_all_patches_learns_no_duplicate() -> None:
    bank = build(images(1, "steel"), coreset=CoresetConfig(ratio=1.0))
    assert bank.info.coreset.cover_radius == 0
    assert grow(bank, images(1, "steel"), ratio=1.0).info.num_vectors == 600
    flat = grow(bank, images(2, "same everywhere"), ratio=1.0)
    assert flat.info.num_vectors == 601


@pytest.mark.parametrize(("limits", "added"), [({"max_centers": 7}, 7), ({"ratio": 0.005}, 6), ({"ratio": 1e-9}, 1)])
def test_limits_hold_and_the_radius_tells(limits: dict[str, float], added: int) -> None:
    bank, new = build(images(3, "steel")), images(2, "far away", first=50)
    grown = grow(bank, new, **limits)
    assert grown.info.num_vectors - bank.info.num_vectors == added
    assert grown.info.coreset.cover_radius > bank.info.coreset.cover_radius
    assert cover_radius(points(new), grown.vectors_ND) == pytest.approx(grown.info.coreset.cover_radius, rel=1e-3)


@pytest.mark.parametrize("index", [IndexConfig("fp16"), IndexConfig(factory="IVF4,Flat", num_probes=2)])
def test_a_quantised_bank_stays_one(index: IndexConfig) -> None:
    bank = build(images(4, "steel"), index=index)
    grown = grow(bank, images(2, "far away", first=50))
    assert grown.info.index == index
    assert grown.vectors_ND.dtype == bank.vectors_ND.dtype
    assert grown.info.recall is not None
    assert bool(grown.trained) == bool(bank.trained)
    assert grown.trained != bank.trained or not bank.trained
    np.testing.assert_array_equal(grown.vectors_ND[: bank.info.num_vectors], bank.vectors_ND)


@pytest.mark.parametrize("learn", [build, lambda shown: grow(build(images(2, "steel")), shown)], ids=["build", "grow"])
def test_nothing_and_nan_are_refused(learn: Callable[[list[NDArray[np.uint8]]], MemoryBank]) -> None:
    with pytest.raises(ConfigError, match="no nominal images"):
        learn([])
    with pytest.raises(ConfigError, match="coreset: embedding 600 is not finite"):
        learn([image(0, "steel"), image(0, "nan")])
