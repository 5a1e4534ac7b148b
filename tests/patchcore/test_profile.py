"""Distances compared with what held-out nominal strips show: the tables, their file, and what they do to scores."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from steelray.config import ConfigError
from steelray.models.model import load_profile, open_model
from steelray.patchcore.bank import INFO_FILE, MemoryBank, bank_files, identified, make_bank
from steelray.patchcore.config import EmbedderConfig, ScoringConfig
from steelray.patchcore.index import IndexShard, LocalSearch
from steelray.patchcore.meter import NominalMeter, measure_profile
from steelray.patchcore.own_strip import own_strip_distances
from steelray.patchcore.profile import (
    LEAST_SHARE,
    PROFILE_FILE,
    SHRINKAGE,
    TABLE_COLUMNS,
    TABLE_ROWS,
    Kind,
    NominalProfile,
    ProfileSums,
)
from steelray.patchcore.scorer import PatchCoreScorer
from steelray.storage.location import Location
from tests.patchcore.test_scorer import CELL_PX, image, mean_grey

KINDS: list[Kind] = ["row", "position", "neighborhood"]
RNG = np.random.default_rng


def sums_of(kind: Kind, *strips: NDArray[np.float32], num_vectors: int = 5) -> ProfileSums:
    """Of strips of which all patches count; patch number n is nearest to vector n modulo `num_vectors`."""
    sums = ProfileSums.empty(kind, num_vectors)
    for distances_hw in strips:
        nearest_hw = np.arange(distances_hw.size).reshape(distances_hw.shape) % num_vectors
        sums = sums.with_strip(distances_hw, nearest_hw, np.ones(distances_hw.shape, bool))
    return sums


def uniform(value: float, grid: tuple[int, int] = (16, 32)) -> NDArray[np.float32]:
    return np.full(grid, value, np.float32)


class TestTables:
    def test_an_average_is_drawn_towards_the_mean_of_all_by_how_few_patches_it_has(self) -> None:
        sums = ProfileSums.empty("neighborhood", 3)
        nearest_hw = np.array([[0] * 60 + [1] * 4])
        distances_hw = np.array([[2.0] * 60 + [10.0] * 4], np.float32)
        profile = sums.with_strip(distances_hw, nearest_hw, np.ones((1, 64), bool)).profile()
        mean = (60 * 2 + 4 * 10) / 64
        assert profile.mean == pytest.approx(mean)
        expected = [(120 + SHRINKAGE * mean) / (60 + SHRINKAGE), (40 + SHRINKAGE * mean) / (4 + SHRINKAGE), mean]
        np.testing.assert_allclose(profile.expected, expected, rtol=1e-6)

    @pytest.mark.parametrize("rows", [1, 4, 8, 16, 32, 48])
    def test_every_patch_counts_once_whatever_the_grid(self, rows: int) -> None:
        for kind in KINDS:
            sums = sums_of(kind, RNG(0).random((rows, 50)).astype(np.float32))
            assert sums.counts.sum() == pytest.approx(rows * 50)
            assert sums.sums.sum() == pytest.approx(RNG(0).random((rows, 50)).sum(), rel=1e-5)

    @pytest.mark.parametrize("rows", [8, 16])
    def test_a_row_is_compared_with_its_own_mean(self, rows: int) -> None:
        levels_h = np.arange(1, rows + 1, dtype=np.float32)
        strip_hw = np.repeat(levels_h[:, None], 20_000, axis=1)  # so many patches that little is drawn to the mean
        profile = sums_of("row", strip_hw).profile()
        flat_hw = profile.normalized(strip_hw, np.zeros(strip_hw.shape, np.int64))
        np.testing.assert_allclose(flat_hw, levels_h.mean(), rtol=0.02)

    def test_between_the_middles_of_two_cells_it_is_linear_and_beyond_the_last_it_is_constant(self) -> None:
        expected = np.ones((TABLE_ROWS, 1), np.float32)
        expected[5] = 3.0
        profile = NominalProfile("row", expected, 1.0)
        rows = 4 * TABLE_ROWS
        factor_h = 1 / profile.normalized(np.ones((rows, 1), np.float32), np.zeros((rows, 1), np.int64))[:, 0]
        np.testing.assert_allclose(factor_h[[0, 17, 63]], 1, rtol=1e-6)
        np.testing.assert_allclose(factor_h[[18, 19, 20, 21, 22, 25]], [1.25, 1.75, 2.25, 2.75, 2.75, 1.25], rtol=1e-6)

    def test_a_place_is_a_row_and_a_column(self) -> None:
        strip_hw = uniform(1.0)
        strip_hw[3, 7] = 9.0
        sums = sums_of("position", *[strip_hw] * 1000)
        assert sums.sums.shape == (TABLE_ROWS, TABLE_COLUMNS)
        profile = sums.profile()
        assert np.unravel_index(profile.expected.argmax(), profile.expected.shape) == (3, 7)
        flat_hw = profile.normalized(strip_hw, np.zeros(strip_hw.shape, np.int64))
        np.testing.assert_allclose(flat_hw, profile.mean, rtol=0.02)

    def test_what_is_the_same_everywhere_changes_nothing(self) -> None:
        strip_hw = RNG(1).random((12, 40)).astype(np.float32)
        for kind in KINDS:
            normalized_hw = sums_of(kind, uniform(2.5)).profile().normalized(strip_hw, np.zeros((12, 40), np.int64))
            assert normalized_hw.dtype == np.float32
            np.testing.assert_allclose(normalized_hw, strip_hw, rtol=1e-6)

    def test_nothing_is_divided_by_almost_nothing(self) -> None:
        profile = NominalProfile("neighborhood", np.array([0.0, 1.0], np.float32), 1.0)
        answer_hw = profile.normalized(uniform(1.0, (1, 2)), np.array([[0, 1]]))
        np.testing.assert_allclose(answer_hw, [[1 / LEAST_SHARE, 1.0]], rtol=1e-6)
        nothing = sums_of("row", uniform(0.0)).profile()
        np.testing.assert_array_equal(nothing.normalized(uniform(1.0), np.zeros((16, 32), np.int64)), uniform(1.0))

    def test_patches_that_do_not_count_may_hold_anything(self) -> None:
        counted_hw = np.ones((16, 32), bool)
        counted_hw[:, 20:] = False
        strip_hw = uniform(1.0)
        strip_hw[:, 20:] = np.inf
        for kind in KINDS:
            sums = ProfileSums.empty(kind, 1).with_strip(strip_hw, np.zeros((16, 32), np.int64), counted_hw)
            assert sums.counts.sum() == pytest.approx(16 * 20)
            assert sums.profile().mean == pytest.approx(1.0)

    def test_sums_are_added_and_come_back_from_bytes(self) -> None:
        strips = [RNG(n).random((10, 30)).astype(np.float32) for n in range(3)]
        for kind in KINDS:
            whole = sums_of(kind, *strips)
            parts = [ProfileSums.from_bytes(sums_of(kind, strip).to_bytes()) for strip in strips]
            added = parts[0] + parts[1] + parts[2]
            assert added.kind == kind
            np.testing.assert_allclose(added.sums, whole.sums)
            np.testing.assert_allclose(added.counts, whole.counts)

    def test_no_strip_no_profile(self) -> None:
        with pytest.raises(ConfigError, match=r"normalization 'row': no held-out nominal strip could be measured"):
            ProfileSums.empty("row", 3).profile()

    def test_a_grown_bank_expects_the_mean_at_new_vectors(self) -> None:
        profile = sums_of("neighborhood", RNG(0).random((16, 32)).astype(np.float32)).profile()
        grown = profile.grown(8)
        np.testing.assert_array_equal(grown.expected[:5], profile.expected)
        np.testing.assert_allclose(grown.expected[5:], profile.mean, rtol=1e-6)
        by_row = sums_of("row", uniform(1.0)).profile()
        assert by_row.grown(8) is by_row


class TestFile:
    def bank(self, kind: Kind = "row", num_vectors: int = 5) -> MemoryBank:
        return make_bank(
            RNG(0).standard_normal((num_vectors, 3)).astype(np.float32),
            np.zeros((num_vectors, 3), np.int32),
            ("a.jpg",),
            embedder=EmbedderConfig(),
            weights_digest="w",
            scoring=ScoringConfig(normalization=kind),
            input_size_px=None,
            coreset={},
        )

    def store(self, bank: MemoryBank, folder: Path) -> str:
        for name, body in bank_files(bank):
            Location(str(folder)).write(name, body)
        return str(folder)

    @pytest.mark.parametrize("kind", KINDS)
    def test_it_comes_back_with_the_bank(self, kind: Kind, tmp_path: Path) -> None:
        profile = sums_of(kind, RNG(0).random((16, 32)).astype(np.float32)).profile()
        assert profile.to_bytes() == profile.to_bytes()
        uri = self.store(identified(replace(self.bank(kind), profile=profile.to_bytes())), tmp_path)
        loaded = load_profile(open_model(uri))
        assert loaded is not None
        assert (loaded.kind, loaded.mean) == (kind, profile.mean)
        np.testing.assert_array_equal(loaded.expected, profile.expected)
        assert loaded.expected.dtype == np.float32

    def test_the_bank_s_id_covers_it(self) -> None:
        bank = self.bank()
        ids = {bank.info.bank_id}
        for value in (1.0, 2.0):
            ids.add(identified(replace(bank, profile=sums_of("row", uniform(value)).profile().to_bytes())).info.bank_id)
        assert len(ids) == 3

    def test_a_bank_without_the_profile_it_needs_is_refused(self, tmp_path: Path) -> None:
        uri = self.store(self.bank(), tmp_path)
        with pytest.raises(ConfigError, match=r"normalization is 'row' but bank.json names no profile") as caught:
            load_profile(open_model(uri))
        assert "\n" not in str(caught.value)

    def test_a_file_that_is_gone_or_changed_is_refused(self, tmp_path: Path) -> None:
        good, other = (sums_of("row", uniform(value)).profile().to_bytes() for value in (1.0, 2.0))
        uri = self.store(identified(replace(self.bank(), profile=good)), tmp_path)
        Location(uri).write(PROFILE_FILE, other)
        with pytest.raises(ConfigError, match=r"profile\.npz: digest differs from bank\.json's"):
            load_profile(open_model(uri))
        Location(uri).delete(PROFILE_FILE)
        with pytest.raises(ConfigError, match=r"profile\.npz is missing"):
            load_profile(open_model(uri))

    @pytest.mark.parametrize(
        ("kind", "num_vectors", "message"),
        [
            ("neighborhood", 4, r"by neighborhood of shape \(5,\), not one by neighborhood for 4 vectors"),
            ("row", 5, r"by neighborhood .*, not one by row"),
        ],
    )
    def test_the_profile_of_another_bank_is_refused(self, kind: Kind, num_vectors: int, message: str) -> None:
        body = sums_of("neighborhood", uniform(1.0)).profile().to_bytes()
        with pytest.raises(ConfigError, match=message):
            NominalProfile.from_bytes(body, kind, num_vectors)

    @pytest.mark.parametrize("body", [b"", b"PK\x03\x04", b"no zip at all", sums_of("row", uniform(1.0)).to_bytes()])
    def test_another_kind_of_file_is_refused(self, body: bytes) -> None:
        with pytest.raises(ConfigError, match="not a profile of nominal distances"):
            NominalProfile.from_bytes(body, "row", 5)


def search_of(*values: float, shards: int = 1) -> LocalSearch:
    """A bank of grey levels, as `mean_grey` embeds them."""
    vectors_ND = np.array([[value, -value] for value in values], dtype=np.float32)
    bounds = np.linspace(0, len(values), shards + 1).astype(int)
    cuts = pairwise(bounds.tolist())
    return LocalSearch([IndexShard(vectors_ND[start:stop], first_id=start) for start, stop in cuts])


def scorer(search: LocalSearch, profile: NominalProfile | None, **settings: object) -> PatchCoreScorer:
    kind = "none" if profile is None else profile.kind
    scoring = ScoringConfig(sigma_px=0, normalization=kind, **settings)  # type: ignore[arg-type]
    return PatchCoreScorer(mean_grey, search, EmbedderConfig(), scoring, CELL_PX, profile)


def cells_of(map_HW: NDArray[np.float32]) -> NDArray[np.float32]:
    """An upsampled map (no smoothing) at the middles of the patches, as far as it tells: between two pixels there."""
    half = CELL_PX // 2
    middle: NDArray[np.float32] = (
        map_HW[half - 1 :: CELL_PX, half - 1 :: CELL_PX] + map_HW[half::CELL_PX, half::CELL_PX]
    ) / 2
    return middle


class TestScores:
    def test_off_is_the_definition_bit_for_bit(self) -> None:
        picture = image(RNG(0).integers(0, 255, (6, 30)).tolist())
        search = search_of(*RNG(1).integers(0, 255, 9).tolist())
        options = {"own_strip_fraction": 0.1, "test_flips": "both", "num_neighbors": 2}
        _, scores = scorer(search, None, **options).score([picture])
        passes = []
        for axes in ((), (0,), (1,)):
            embeddings_hwD = mean_grey(np.flip(picture, axes)[None])[0]
            squared_QK, _ = search.submit(embeddings_hwD.reshape(-1, 2), 2).result()
            distances_hw = np.sqrt(squared_QK).mean(axis=1).reshape(6, 30)
            passes.append(np.flip(np.minimum(distances_hw, own_strip_distances(embeddings_hwD, 0.1)), axes))
        assert scores[0] == np.stack(passes).mean(axis=0).max()

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_distance_to_the_bank_is_divided_before_the_strip_is_its_own_reference(self, kind: Kind) -> None:
        picture = image(RNG(0).integers(0, 255, (16, 32)).tolist())
        search = search_of(40, 90, 200)
        profile = sums_of(kind, RNG(1).random((16, 32)).astype(np.float32), num_vectors=3).profile()
        embeddings_hwD = mean_grey(picture[None])[0]
        squared_QK, ids_QK = search.submit(embeddings_hwD.reshape(-1, 2), 1).result()
        bank_hw = profile.normalized(np.sqrt(squared_QK).reshape(16, 32), ids_QK.reshape(16, 32))
        expected = {0.0: bank_hw, 0.05: np.minimum(bank_hw, own_strip_distances(embeddings_hwD, 0.05))}
        for fraction, distances_hw in expected.items():
            _, scores = scorer(search, profile, own_strip_fraction=fraction).score([picture])
            assert scores[0] == distances_hw.max()

    def test_mirrored_passes_are_compared_with_the_place_that_they_show(self) -> None:
        picture = image(RNG(0).integers(0, 255, (16, 32)).tolist())
        search = search_of(40, 90, 200)
        for kind in KINDS:
            profile = sums_of(kind, RNG(1).random((16, 32)).astype(np.float32), num_vectors=3).profile()
            [plain_HW], _ = scorer(search, profile).score([picture])
            [map_HW], _ = scorer(search, profile, test_flips="both").score([picture])
            np.testing.assert_allclose(map_HW, plain_HW, rtol=1e-5)  # the embedder looks at each cell alone

    @pytest.mark.parametrize("shards", [1, 2, 3])
    def test_however_the_bank_is_cut_the_nearest_vectors_are_the_same(self, shards: int) -> None:
        pictures = [image(RNG(n).integers(0, 255, (6, 30)).tolist()) for n in range(3)]
        levels = RNG(1).choice(255, 12, replace=False).tolist()
        scoring = ScoringConfig(normalization="neighborhood")
        profiles = [
            measure_profile(mean_grey, search_of(*levels, shards=cut), EmbedderConfig(), scoring, 12, pictures)
            for cut in (1, shards)
        ]
        assert profiles[0] is not None
        assert profiles[1] is not None
        np.testing.assert_array_equal(profiles[0].expected, profiles[1].expected)
        scores = [
            scorer(search_of(*levels, shards=cut), profile).score(pictures)[1]
            for cut, profile in zip((1, shards), profiles, strict=True)
        ]
        np.testing.assert_array_equal(scores[0], scores[1])

    def test_measured_are_plain_distances_of_what_is_steel_and_finite(self) -> None:
        def embed(images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
            embeddings = mean_grey(images_BHWC)
            embeddings[embeddings[..., 0] == 66] = np.nan
            return embeddings

        options = {"own_strip_fraction": 0.3, "test_flips": "both", "background_level": 10}
        scoring = ScoringConfig(normalization="neighborhood", **options)  # type: ignore[arg-type]
        meter = NominalMeter(embed, search_of(50, 70), EmbedderConfig(), scoring, 2)
        sums = meter([image([[0, 0, 0, 20, 40, 71]]), image([[66] * 6])])
        assert sums.counts.tolist() == [3, 1]  # the black cell beside the steel counts as well
        np.testing.assert_allclose(sums.sums, np.sqrt(2) * np.array([50 + 30 + 10, 1]), rtol=1e-5)

    def test_a_scorer_without_its_profile_or_with_another_is_refused(self) -> None:
        profile = sums_of("row", uniform(1.0)).profile()
        for kind, given, message in (
            ("row", None, "'row' but the scorer has no profile"),
            ("none", profile, "'none' but the scorer has a profile by row"),
            ("position", profile, "'position' but the scorer has a profile by row"),
        ):
            scoring = ScoringConfig(normalization=kind)  # type: ignore[arg-type]
            with pytest.raises(ConfigError, match=message) as caught:
                PatchCoreScorer(mean_grey, search_of(1), EmbedderConfig(), scoring, CELL_PX, given)
            assert "\n" not in str(caught.value)


def noisy(seed: int, noise_hw: NDArray[np.float64], defect: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """A strip of one grey with noise that depends on the place, and perhaps a mild defect in one cell."""
    cells_hw = 120 + noise_hw * RNG(seed).uniform(-1, 1, noise_hw.shape)
    if defect is not None:
        cells_hw[defect] = 120 + 15
    return image(cells_hw.round().astype(int).tolist())


@pytest.mark.parametrize("kind", ["row", "position"])
def test_a_mild_defect_where_strips_are_quiet_outranks_the_usual_where_they_are_not(kind: Kind) -> None:
    noise_hw = np.full((16, 32), 3.0)
    noise_hw[:4] = 40.0  # the top of every strip is rougher
    search = search_of(120)
    scoring = ScoringConfig(normalization=kind)
    held_out = [noisy(seed, noise_hw) for seed in range(60)]  # a patch per place each
    profile = measure_profile(mean_grey, search, EmbedderConfig(), scoring, 1, held_out)
    nominal = [noisy(seed, noise_hw) for seed in range(100, 110)]
    defective = [noisy(seed, noise_hw, defect=(12, 5 + seed % 20)) for seed in range(200, 210)]
    _, plain_nominal = scorer(search, None).score(nominal)
    _, plain_defective = scorer(search, None).score(defective)
    assert plain_defective.max() <= plain_nominal.max()  # the scores tell nothing
    _, normalized_nominal = scorer(search, profile).score(nominal)
    maps, normalized_defective = scorer(search, profile).score(defective)
    assert normalized_defective.min() > 1.5 * normalized_nominal.max()
    for seed, map_HW in zip(range(200, 210), maps, strict=True):
        cells_hw = cells_of(map_HW)
        assert np.unravel_index(cells_hw.argmax(), cells_hw.shape) == (12, 5 + seed % 20)


def test_where_a_finish_is_rough_by_itself_its_own_vector_says_so() -> None:
    """Rough finishes lie around one bank vector, smooth ones around another, at any place."""
    rough_hw = np.full((16, 32), 30.0)
    smooth_hw = np.full((16, 32), 2.0)

    def strip(seed: int, defect: bool = False) -> NDArray[np.uint8]:
        cells_hw = 60 + rough_hw * RNG(seed).uniform(-1, 1, (16, 32))
        smooth = RNG(seed + 1000).random((16, 32)) < 0.5
        cells_hw[smooth] = (180 + smooth_hw * RNG(seed).uniform(-1, 1, (16, 32)))[smooth]
        if defect:
            cells_hw[8, 16] = 195
        return image(cells_hw.round().astype(int).tolist())

    search = search_of(60, 180)
    scoring = ScoringConfig(normalization="neighborhood")
    held_out = [strip(seed) for seed in range(10)]
    profile = measure_profile(mean_grey, search, EmbedderConfig(), scoring, 2, held_out)
    nominal, defective = strip(100), strip(101, defect=True)
    _, plain = scorer(search, None).score([nominal, defective])
    _, normalized = scorer(search, profile).score([nominal, defective])
    assert plain[1] < 1.1 * plain[0]
    assert normalized[1] > 2 * normalized[0]


def test_the_file_s_name_is_in_the_description(tmp_path: Path) -> None:
    bank = TestFile().bank()
    measured = identified(replace(bank, profile=sums_of("row", uniform(1.0)).profile().to_bytes()))
    names = [name for name, _ in bank_files(measured)]
    assert names == ["shard-00000.arrow", "images.arrow", PROFILE_FILE, INFO_FILE]
