"""Vectors that only one strip has: a defect is dropped, a finish is kept, and too few strips judge nothing."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from steelray.patchcore.bank import MemoryBank
from steelray.patchcore.config import CoresetConfig, EmbedderConfig, ScoringConfig
from steelray.patchcore.coreset import greedy_coreset
from steelray.patchcore.fit import coreset_limits, fit_memory_bank, patch_origins, select_patches
from steelray.patchcore.portable_embedder import Embedder
from steelray.patchcore.suspects import (
    APART_CELLS,
    MAX_SHOWN,
    MAX_SHOWN_PER_STRIP,
    MIN_STRIPS,
    LocalPatches,
    Suspect,
    judge,
    merged,
    sampled,
    shown,
)

DIM = 8
GRID = (12, 30)
Strips = list[NDArray[np.float32]]


def steel(seed: int, offset: float = 0.0) -> NDArray[np.float32]:
    """Return embeddings_hwD of a strip of ordinary steel, or of a finish that lies `offset` away from it."""
    rng = np.random.default_rng(seed)
    kinds = np.random.default_rng(99).standard_normal((12, DIM)) * 2
    return (kinds[rng.integers(0, 12, GRID)] + rng.standard_normal((*GRID, DIM)) + offset).astype(np.float32)


def defective(seed: int, distance: float = 25.0) -> NDArray[np.float32]:
    """Return a strip with a defect of its own."""
    strip_hwD = steel(seed)
    direction_D = np.random.default_rng([7, seed]).standard_normal(DIM)
    strip_hwD[4:7, 10:15] += distance * direction_D / np.linalg.norm(direction_D)
    return strip_hwD


def found(strips: Strips, names: Sequence[str] | None = None, count: int = 200) -> tuple[NDArray[np.int32], list[str]]:
    """Return the origins of the suspects among a coreset of these strips, and the names of the strips."""
    every_ND = np.concatenate([strip.reshape(-1, DIM) for strip in strips])
    picks = greedy_coreset(torch.from_numpy(every_ND), min(count, len(every_ND))).numpy()
    origins_M3 = patch_origins([strip.shape[:2] for strip in strips])[picks]
    names = list(names or map(str, range(len(strips))))
    rows, distances = judge(patches_of(strips), every_ND[picks], origins_M3, names)
    expected = [to_others(strips, names, origin) for origin in origins_M3[rows].tolist()]
    assert distances == pytest.approx(np.array(expected), rel=1e-3)
    return origins_M3[rows], names


def patches_of(strips: Strips, which: Sequence[int] | None = None) -> LocalPatches:
    which = range(len(strips)) if which is None else which
    images = {number: strips[number].reshape(-1, DIM) for number in which}
    return LocalPatches(images, {number: strip.shape[1] for number, strip in enumerate(strips)})


def to_others(strips: Strips, names: Sequence[str], origin: list[int]) -> float:
    """Return the distance of a patch to the nearest of other strips, by direct differences."""
    image, row, column = origin
    others = [strip.reshape(-1, DIM) for strip, name in zip(strips, names, strict=True) if name != names[image]]
    return float(np.linalg.norm(np.concatenate(others) - strips[image][row, column], axis=1).min())


def in_defect(origin: list[int]) -> bool:
    return 3 <= origin[1] <= 7 and 9 <= origin[2] <= 15


def test_clean_strips_keep_nearly_all_vectors() -> None:
    origins_M3, _ = found([steel(seed) for seed in range(20)])
    assert len(origins_M3) <= 4


def test_a_defect_that_one_strip_has_is_dropped_and_nothing_else() -> None:
    strips = [steel(seed) for seed in range(20)]
    strips[3], strips[11] = defective(3), defective(11)
    origins_M3, _ = found(strips)
    dropped = origins_M3.tolist()
    assert {origin[0] for origin in dropped if in_defect(origin)} == {3, 11}
    assert sum(not in_defect(origin) for origin in dropped) <= 4


def test_a_strip_that_is_unlike_the_others_is_a_finish() -> None:
    strips = [steel(seed) for seed in range(20)]
    strips[5] = steel(5, offset=20.0)
    origins_M3, _ = found(strips)
    assert 5 not in origins_M3[:, 0]


def test_a_finish_on_a_part_of_a_strip_is_kept() -> None:
    finish_hwD = 20 + np.random.default_rng(1).standard_normal((*GRID, DIM)).astype(np.float32)
    strips = [steel(seed) for seed in range(20)]
    strips[5][:, 18:] = finish_hwD[:, 18:]
    assert 5 not in found(strips)[0][:, 0]
    strips[5] = steel(5)
    strips[5][:3, 18:21] = finish_hwD[:3, 18:21]  # no finish: hardly a part of the strip
    assert 5 in found(strips)[0][:, 0]


def test_a_defect_that_is_far_from_a_new_finish_is_a_suspect() -> None:
    strips = [steel(seed) for seed in range(20)]
    strips[5] = defective(5, distance=80.0) + np.float32(10)
    dropped = [origin for origin in found(strips)[0].tolist() if origin[0] == 5]
    assert dropped
    assert all(in_defect(origin) for origin in dropped)


def test_a_patch_that_two_strips_have_is_kept() -> None:
    strips = [steel(seed) for seed in range(20)]
    strips[3] = defective(3)
    strips[8][4:7, 10:15] = strips[3][4:7, 10:15]
    assert not {3, 8} & {origin[0] for origin in found(strips)[0].tolist() if in_defect(origin)}
    names = [*map(str, range(20))]
    names[8] = names[3]  # two tiles of the same strip
    assert {3, 8} & {origin[0] for origin in found(strips, names)[0].tolist() if in_defect(origin)}


@pytest.mark.parametrize("num_defective", [10, 20])
def test_with_half_of_the_strips_defective_or_more_the_result_is_defined(num_defective: int) -> None:
    strips = [defective(seed) if seed < num_defective else steel(seed) for seed in range(20)]
    origins_M3, _ = found(strips)
    assert len(np.unique(origins_M3[:, 0])) <= 10, "half of the strips keep all of their vectors"


@pytest.mark.parametrize("num_strips", [1, 2, MIN_STRIPS - 1])
def test_too_few_strips_judge_nothing(num_strips: int) -> None:
    strips = [steel(seed) for seed in range(num_strips)]
    strips[0] = defective(0)
    assert len(found(strips)[0]) == 0
    copies = strips + [strips[-1]] * 20
    assert len(found(copies, count=300)[0]) == 0, "copies are no further evidence"


def test_strips_that_are_all_alike_keep_everything() -> None:
    assert len(found([steel(0)] * 12)[0]) == 0
    assert len(found([np.ones((*GRID, DIM), np.float32)] * 12, count=50)[0]) == 0
    nearly = [
        steel(0) + np.float32(1e-4) * np.random.default_rng(seed).standard_normal((*GRID, DIM)) for seed in range(12)
    ]
    assert len(found([strip.astype(np.float32) for strip in nearly], count=50)[0]) <= 2


@pytest.mark.parametrize("grid", [(1, 1), (1, 40), (5, 5)])
def test_small_images_are_judged_without_a_crash(grid: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    found([rng.standard_normal((*grid, DIM)).astype(np.float32) for _ in range(12)], count=300)


def test_a_comparison_on_shards_is_that_of_all_images() -> None:
    strips = [defective(seed) if seed == 4 else steel(seed) for seed in range(11)]
    vectors_MD, strips_M = np.concatenate([s[::3, ::3].reshape(-1, DIM) for s in strips]), np.repeat(np.arange(11), 40)
    whole = patches_of(strips).compare(vectors_MD, strips_M, range(11))
    shards = [patches_of(strips, range(start, 11, 3)) for start in range(3)] + [patches_of(strips, [])]
    parts = merged([shard.compare(vectors_MD, strips_M, range(11)) for shard in shards])
    np.testing.assert_array_equal(parts.nearest_M, whole.nearest_M)
    assert all(np.array_equal(parts.usual[image], whole.usual[image]) for image in range(11))
    origins_M3 = np.array([[4, 5, 11], [7, 0, 0], [4, 0, 0]], np.int32)
    answers = [shard.own_distances(origins_M3) for shard in shards]
    np.testing.assert_array_equal(np.fmin.reduce(answers), patches_of(strips).own_distances(origins_M3))


def test_the_list_for_a_person_shows_few_places_of_many_strips() -> None:
    everywhere = [
        Suspect(f"{s:02d}", r, c, 50.0 - s + r / 100) for s in range(30) for r in range(0, 20, 2) for c in range(9)
    ]
    listed = shown(everywhere)
    assert len(listed) == MAX_SHOWN
    assert [one.distance for one in listed] == sorted((one.distance for one in listed), reverse=True)
    for key in {one.image_key for one in listed}:
        same = [one for one in listed if one.image_key == key]
        assert len(same) <= MAX_SHOWN_PER_STRIP
        for one in same:
            cells = [
                max(abs(one.grid_row - o.grid_row), abs(one.grid_column - o.grid_column)) for o in same if o != one
            ]
            assert min(cells) > APART_CELLS
    assert shown([]) == ()
    assert sampled(3).tolist() == [0, 1, 2]
    assert len(sampled(6400)) == 64


def embedder_of(strips: Strips) -> Embedder:
    """Return a stand-in for a backbone: an image's only value is the number of a strip."""
    return Embedder(
        EmbedderConfig(neighborhood=1),
        lambda images_BHWC: np.stack([strips[int(image.flat[0])] for image in images_BHWC]),
        8,
        "w",
    )


def fit(strips: Strips, **coreset: object) -> MemoryBank:
    images = [np.full((8, 8, 1), number, np.uint8) for number in range(len(strips))]
    keys = [f"{number}.jpg" for number in range(len(strips))]
    config = CoresetConfig(max_centers=200, ratio=1.0, **coreset)  # type: ignore[arg-type]
    return fit_memory_bank(keys, images, embedder_of(strips), coreset=config, scoring=ScoringConfig())


def test_a_fitted_bank_no_longer_knows_the_defect_and_says_where_it_was() -> None:
    strips = [steel(seed) for seed in range(20)]
    strips[3] = defective(3)
    bank, whole = fit(strips), fit(strips, drop_suspects=False)
    assert whole.info.num_vectors == 200
    assert bank.info.num_vectors < 200

    def farthest(known: MemoryBank) -> float:
        queries = torch.from_numpy(strips[3][4:7, 10:15].reshape(-1, DIM))
        return float(torch.cdist(queries, torch.from_numpy(known.vectors_ND)).min(dim=1).values.min())

    assert farthest(whole) < 5 < 10 < farthest(bank)
    images = [np.full((8, 8, 1), number, np.uint8) for number in range(20)]
    keys = [f"{number}.jpg" for number in range(20)]
    limits = coreset_limits(CoresetConfig(max_centers=200, ratio=1.0))
    selection = select_patches(keys, images, embedder_of(strips), limits, drop_suspects=True)
    assert (len(selection.vectors_MD), selection.num_dropped) == (bank.info.num_vectors, 200 - bank.info.num_vectors)
    assert selection.suspects[0].image_key == "3.jpg"
    assert in_defect([3, selection.suspects[0].grid_row, selection.suspects[0].grid_column])
    np.testing.assert_array_equal(selection.vectors_MD, bank.vectors_ND)


def test_it_can_be_turned_off_and_judges_no_bank_of_few_strips() -> None:
    strips = [steel(seed) for seed in range(20)]
    strips[1] = defective(1)
    assert fit(strips, drop_suspects=False).info.num_vectors == 200
    assert fit(strips[:2]).info.num_vectors == 200
