"""Anomaly maps and scores of PatchCore against their definition, and the regions that a map flags."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

from steelray.config import ConfigError
from steelray.imaging.decode import resize
from steelray.patchcore import config
from steelray.patchcore.config import EmbedderConfig, ScoringConfig
from steelray.patchcore.index import IndexShard, LocalSearch
from steelray.patchcore.portable_embedder import Embedder, EmbedFunction
from steelray.patchcore.scorer import (
    MAX_BOXES,
    MIN_BOX_AREA_PX,
    PatchCoreScorer,
    find_regions,
    image_score,
    neighbor_weights,
    upsample,
)
from tests.patchcore.samples import strip

CELL_PX = 8


def mean_grey(images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """An embedder that can be worked out by hand: a cell's mean grey level, and its negative."""
    batch, height, width, _ = images_BHWC.shape
    cells = images_BHWC.mean(axis=3).reshape(batch, height // CELL_PX, CELL_PX, width // CELL_PX, CELL_PX)
    grey_Bhw = cells.mean(axis=(2, 4))
    return np.stack([grey_Bhw, -grey_Bhw], axis=3).astype(np.float32)


def scorer(
    *bank: float, embed: EmbedFunction = mean_grey, embedder: EmbedderConfig | None = None, **settings: object
) -> PatchCoreScorer:
    vectors_ND = np.array([[value, -value] for value in bank], dtype=np.float32)
    scoring = ScoringConfig(**settings)  # type: ignore[arg-type]
    search = LocalSearch([IndexShard(vectors_ND)])
    return PatchCoreScorer(Embedder(embedder or EmbedderConfig(), embed, CELL_PX, ""), search, scoring)


def image(cells: list[list[int]]) -> NDArray[np.uint8]:
    """An image whose cells have these grey levels."""
    return np.kron(np.array(cells, np.uint8), np.ones((CELL_PX, CELL_PX), np.uint8))[:, :, None]


def test_a_patch_counts_by_its_distance_to_the_nearest_vector() -> None:
    maps, scores = scorer(10, 20, sigma_px=0).score([image([[10, 20, 13], [12, 20, 30]])])
    assert scores.dtype == np.float32
    assert scores.tolist() == pytest.approx([10 * np.sqrt(2)])
    assert maps[0].shape == (2 * CELL_PX, 3 * CELL_PX)
    assert maps[0].dtype == np.float32
    assert maps[0][0, 0] == pytest.approx(0, abs=1e-4)
    assert maps[0][-1, -1] == pytest.approx(10 * np.sqrt(2))
    assert maps[0][-1, 0] == pytest.approx(2 * np.sqrt(2))


def test_the_strip_is_its_own_reference_only_where_it_repeats_itself() -> None:
    cells = [[50] * 30] * 6
    cells[2] = [50] * 15 + [90] + [50] * 14
    far_maps, far_scores = scorer(10, sigma_px=0).score([image(cells)])
    own_maps, own_scores = scorer(10, sigma_px=0, own_strip_fraction=0.1).score([image(cells)])
    assert far_maps[0].min() == pytest.approx(40 * np.sqrt(2))
    assert own_maps[0].min() == pytest.approx(0, abs=1e-3)
    assert own_scores.tolist() == pytest.approx([40 * np.sqrt(2)])  # from the strip; the bank would say 80
    assert far_scores.tolist() == pytest.approx([80 * np.sqrt(2)])
    _, near_scores = scorer(50, sigma_px=0, own_strip_fraction=0.1).score([image(cells)])
    assert near_scores.tolist() == pytest.approx([40 * np.sqrt(2)])


def cell_number(images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """An embedder that is not symmetric: a cell's grey level plus its column, and its row."""
    embeddings = mean_grey(images_BHWC)
    rows, columns = embeddings.shape[1:3]
    embeddings[..., 0] += np.arange(columns)
    embeddings[..., 1] = np.arange(rows)[:, None]
    return embeddings


@pytest.mark.parametrize(("flips", "axes"), [("vertical", [0]), ("horizontal", [1]), ("both", [0, 1])])
def test_mirrored_passes_are_turned_back_and_averaged(flips: str, axes: list[int]) -> None:
    picture = image([[10, 20, 30], [40, 50, 60]])
    passes = []
    for axis in [None, *axes]:
        mirrored = picture if axis is None else np.flip(picture, axis)
        [map_HW], _ = scorer(10, 20, embed=cell_number, sigma_px=0).score([mirrored])
        passes.append(map_HW if axis is None else np.flip(map_HW, axis))
    [map_HW], scores = scorer(10, 20, embed=cell_number, sigma_px=0, test_flips=flips).score([picture])
    np.testing.assert_allclose(map_HW, np.mean(passes, axis=0), rtol=1e-4, atol=1e-3)
    assert np.abs(map_HW - passes[0]).max() > 0.1
    assert scores[0] == pytest.approx(map_HW.max(), rel=1e-4)


def test_several_neighbours_count_by_the_mean_of_their_distances() -> None:
    _, scores = scorer(10, 20, 40, num_neighbors=2).score([image([[10, 12]])])
    assert scores.tolist() == pytest.approx([np.sqrt(2) * 5])
    _, scores = scorer(10, 20, 40, num_neighbors=3).score([image([[10, 12]])])
    assert scores.tolist() == pytest.approx([np.sqrt(2) * 40 / 3])


def test_top_mean_is_the_mean_of_the_largest_patch_distances() -> None:
    cells = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    for fraction, largest in [(0.004, [9]), (0.2, [9, 8]), (0.5, [9, 8, 7, 6, 5]), (1.0, list(range(10)))]:
        _, scores = scorer(0, image_score="top_mean", top_fraction=fraction).score([image(cells)])
        assert scores.tolist() == pytest.approx([np.sqrt(2) * np.mean(largest)])


def test_a_reweighted_score_uses_the_vectors_around_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "REWEIGHT_NEIGHBORS", 3)
    _, plain = scorer(10, 11, 40).score([image([[10, 20]])])
    _, sparse = scorer(10, 60, 90, image_score="reweighted").score([image([[10, 20]])])
    _, dense = scorer(10, 10, 10, image_score="reweighted").score([image([[10, 20]])])
    assert plain[0] == pytest.approx(9 * np.sqrt(2))
    assert sparse[0] == pytest.approx(10 * np.sqrt(2), rel=1e-6)
    assert dense[0] == pytest.approx(10 * np.sqrt(2) * 2 / 3)
    _, mirrored = scorer(10, 10, 10, image_score="reweighted", test_flips="both").score([image([[10, 20]])])
    assert mirrored.tolist() == pytest.approx(dense.tolist())


def test_a_bank_must_hold_as_many_vectors_as_a_search_asks_for() -> None:
    ScoringConfig(image_score="reweighted").check_bank(9)
    with pytest.raises(ConfigError, match=r"scoring\.image_score reweighted compares 9 vectors but the bank has 8"):
        ScoringConfig(image_score="reweighted").check_bank(8)
    with pytest.raises(ConfigError, match=r"scoring\.num_neighbors is 9 but the bank has 8 vectors"):
        ScoringConfig(num_neighbors=9).check_bank(8)


def test_the_extreme_value_is_that_of_the_fitted_gumbel_distribution() -> None:
    """Maxima of many blocks from a known Gumbel distribution give back its expected largest."""
    rng = np.random.default_rng(0)
    location, scale = 10.0, 2.0
    scores = []
    for _ in range(400):
        maxima_n = rng.gumbel(location, scale, 16)
        distances_hw = np.repeat(np.stack([maxima_n, np.zeros(16)]), 4, axis=1).astype(np.float32)
        scores.append(image_score(distances_hw, None, ScoringConfig(image_score="extreme_value")))
    expected = location + scale * (np.euler_gamma + math.log(16))
    assert np.mean(scores) == pytest.approx(expected, rel=0.03)
    for columns in (1, 40):
        flat_hw = np.full((3, columns), 4.0, dtype=np.float32)
        assert image_score(flat_hw, None, ScoringConfig(image_score="extreme_value")) == pytest.approx(4.0)


def test_a_patch_in_a_dense_part_of_the_bank_weighs_less() -> None:
    squared_QK = np.array([[4.0, 4.0, 4.0], [4.0, 25.0, 36.0], [4.0, 4.0, 1e10]], dtype=np.float32)
    weights_Q = neighbor_weights(squared_QK)
    shares = np.exp([2.0, 5.0, 6.0])
    assert weights_Q.tolist() == pytest.approx([2 / 3, 1 - shares[0] / shares.sum(), 1.0])
    assert weights_Q.dtype == np.float32
    distances_hw = np.array([[2.0, 3.0]], dtype=np.float32)
    weights_hw = np.array([[1.0, 0.5]], dtype=np.float32)
    assert image_score(distances_hw, weights_hw, ScoringConfig(image_score="reweighted")) == 1.5


def test_images_of_several_sizes_keep_their_order() -> None:
    images = [image([[n] * width]) for n, width in enumerate([2, 2, 3, 2, 3, 3])]
    maps, scores = scorer(0, sigma_px=0).score(images)
    assert scores.tolist() == pytest.approx([np.sqrt(2) * n for n in range(6)], abs=1e-4)
    assert [one.shape[1] for one in maps] == [width * CELL_PX for width in [2, 2, 3, 2, 3, 3]]
    assert [one.mean() for one in maps] == pytest.approx(list(scores), abs=1e-4)


def test_no_images_give_no_scores() -> None:
    maps, scores = scorer(0).score([])
    assert (maps, scores.shape, scores.dtype) == ([], (0,), np.float32)


def test_a_score_depends_on_its_image_alone(eager: Embedder) -> None:
    images = [strip(64, 160, n) for n in range(4)]
    vectors_ND = eager.embed(images[0][None]).reshape(-1, 40)
    search = LocalSearch([IndexShard(vectors_ND)])
    one = PatchCoreScorer(eager, search, ScoringConfig())
    maps, scores = one.score(images)
    for n in (3, 1, 0, 2):
        alone_maps, alone_scores = one.score([images[n]])
        assert alone_scores[0] == scores[n]
        assert np.array_equal(alone_maps[0], maps[n])
    assert scores[0] < scores[1]


def test_images_are_resized_before_embedding() -> None:
    pixels = strip(64, 160)
    resized = scorer(100, embedder=EmbedderConfig(resize_px=(32, 64)), sigma_px=0)
    maps, scores = resized.score([pixels])
    expected_maps, expected_scores = scorer(100, sigma_px=0).score([resize(pixels, (32, 64))])
    assert maps[0].shape == (32, 64)
    assert scores == expected_scores
    assert np.array_equal(maps[0], expected_maps[0])


def test_an_embedding_that_is_not_finite_spoils_its_own_image_only() -> None:
    def embed(images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        embeddings = mean_grey(images_BHWC)
        embeddings[embeddings[..., 0] == 66] = np.nan
        return embeddings

    maps, scores = scorer(0, embed=embed).score([image([[1, 2]]), image([[66, 2]]), image([[3, 3]])])
    assert np.isfinite(scores).tolist() == [True, False, True]
    assert [bool(np.isfinite(one).all()) for one in maps] == [True, False, True]
    assert scores[2] == pytest.approx(3 * np.sqrt(2))


@pytest.mark.parametrize("sigma_px", [0.0, 0.7, 4.0])
@pytest.mark.parametrize(
    ("grid", "size"),
    [
        ((4, 6), (32, 48)),
        ((32, 20), (256, 160)),
        ((5, 7), (33, 50)),
        ((1, 9), (8, 70)),
        ((3, 1), (30, 9)),
        ((8, 8), (8, 8)),
    ],
)
def test_upsampling_equals_torch_and_scipy(grid: tuple[int, int], size: tuple[int, int], sigma_px: float) -> None:
    grid_hw = np.random.default_rng(0).random(grid).astype(np.float32)
    bilinear = functional.interpolate(torch.from_numpy(grid_hw)[None, None], size, mode="bilinear")[0, 0].numpy()
    expected = ndimage.gaussian_filter(bilinear, sigma_px, mode="nearest") if sigma_px else bilinear
    answer = upsample(grid_hw, size, sigma_px)
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, expected, atol=2e-6)


def test_upsampling_keeps_a_constant() -> None:
    np.testing.assert_allclose(upsample(np.full((4, 9), 3.5, np.float32), (40, 80), 4.0), 3.5, rtol=1e-6)


class TestRegions:
    def test_nothing_above_the_threshold(self) -> None:
        assert find_regions(np.ones((20, 30), np.float32), 1.0, (20, 30)) == (0.0, [])

    def test_boxes_are_tight_and_the_highest_peak_comes_first(self) -> None:
        map_HW = np.zeros((40, 60), np.float32)
        map_HW[2:10, 5:25] = 2.0
        map_HW[20:30, 30:35] = 3.0
        map_HW[25, 32] = 5.0
        fraction, boxes = find_regions(map_HW, 1.0, (40, 60))
        assert fraction == pytest.approx((8 * 20 + 10 * 5) / 2400)
        assert boxes == [
            {"left_px": 30, "top_px": 20, "width_px": 5, "height_px": 10, "peak_score": 5.0},
            {"left_px": 5, "top_px": 2, "width_px": 20, "height_px": 8, "peak_score": 2.0},
        ]

    def test_boxes_are_in_pixels_of_the_stored_image(self) -> None:
        map_HW = np.zeros((128, 800), np.float32)
        map_HW[10:20, 100:130] = 2.0
        _, boxes = find_regions(map_HW, 1.0, (256, 1600))
        assert boxes == [{"left_px": 200, "top_px": 20, "width_px": 60, "height_px": 20, "peak_score": 2.0}]

    def test_boxes_never_leave_the_image(self) -> None:
        map_HW = np.full((64, 100), 2.0, np.float32)
        for size in [(64, 100), (63, 99), (65, 101), (900, 900), (1, 1), (7, 1600)]:
            _, boxes = find_regions(map_HW, 1.0, size)
            for box in boxes:
                assert 0 <= box["left_px"] < box["left_px"] + box["width_px"] <= size[1]
                assert 0 <= box["top_px"] < box["top_px"] + box["height_px"] <= size[0]

    def test_specks_count_as_area_but_get_no_box(self) -> None:
        map_HW = np.zeros((40, 40), np.float32)
        map_HW[0, : MIN_BOX_AREA_PX - 1] = 2.0
        map_HW[5, :MIN_BOX_AREA_PX] = 2.0
        fraction, boxes = find_regions(map_HW, 1.0, (40, 40))
        assert fraction == pytest.approx((2 * MIN_BOX_AREA_PX - 1) / 1600)
        assert [box["top_px"] for box in boxes] == [5]

    def test_there_are_never_too_many_boxes(self) -> None:
        map_HW = np.zeros((100, 200), np.float32)
        for number in range(100):
            row, column = divmod(number, 20)
            map_HW[row * 10 : row * 10 + 5, column * 10 : column * 10 + 5] = 2.0 + number
        _, boxes = find_regions(map_HW, 1.0, (100, 200))
        assert len(boxes) == MAX_BOXES
        assert [box["peak_score"] for box in boxes] == [101.0 - number for number in range(MAX_BOXES)]


@pytest.mark.parametrize(("size_px", "seen_px"), [((16, 24), (16, 24)), ((17, 24), (24, 24)), ((15, 19), (16, 24))])
def test_an_image_is_lengthened_to_the_cells_of_the_bank_and_its_map_is_not(
    size_px: tuple[int, int], seen_px: tuple[int, int]
) -> None:
    embedder = Embedder(EmbedderConfig(), mean_grey, CELL_PX, "", nominal_px=(16, 24))
    pixels = strip(*size_px)
    seen = embedder.resized(pixels)
    assert seen.shape[:2] == seen_px
    assert np.array_equal(seen[: size_px[0], : size_px[1]], pixels)
    search = LocalSearch([IndexShard(mean_grey(seen[None]).reshape(-1, 2))])
    [map_HW], [score] = PatchCoreScorer(embedder, search, ScoringConfig()).score([pixels])
    assert (map_HW.shape, score) == (size_px, pytest.approx(0, abs=1e-3))


@pytest.mark.parametrize(("size_px", "seen_px"), [((16, 24), (8, 16)), ((30, 40), (16, 24)), ((33, 50), (24, 32))])
def test_scaled_images_in_whole_cells_have_maps_of_their_own_size(
    size_px: tuple[int, int], seen_px: tuple[int, int]
) -> None:
    embedder = Embedder(EmbedderConfig(scale=0.5, whole_cells=True), mean_grey, CELL_PX, "")
    assert embedder.min_size_px == 2 * CELL_PX
    pixels = strip(*size_px)
    seen = embedder.resized(pixels)
    assert seen.shape[:2] == embedder.seen_px(size_px) == seen_px
    assert embedder.covered_px(size_px) == (2 * seen_px[0], 2 * seen_px[1])
    search = LocalSearch([IndexShard(mean_grey(seen[None]).reshape(-1, 2))])
    [map_HW], [score] = PatchCoreScorer(embedder, search, ScoringConfig()).score([pixels])
    assert (map_HW.shape, score) == (size_px, pytest.approx(0, abs=1e-3))


def test_whole_cells_give_strips_of_any_width_the_same_embeddings(eager: Embedder) -> None:
    whole = replace(eager, config=replace(eager.config, whole_cells=True))
    long = strip(64, 320)
    for missing in (1, 3, 7):
        cells_hwD, other_hwD = (one.embed_image(long[:, : 320 - missing]) for one in (whole, eager))
        assert cells_hwD.shape[:2] == (8, 40)
        expected_hwD = whole.embed_image(long)[:, :20]
        np.testing.assert_allclose(cells_hwD[:, :20], expected_hwD, rtol=1e-3, atol=1e-3)
        if missing != 7:
            assert not np.allclose(other_hwD[:, :20], expected_hwD, rtol=1e-3, atol=1e-3), (
                "the padding had shifted them"
            )
