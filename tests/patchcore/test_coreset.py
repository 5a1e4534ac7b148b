"""The coreset against the textbook loop: the same picks, whatever the rounds and the shards."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch

from steelray.patchcore import coreset
from steelray.patchcore.coreset import Coreset, CoresetShard, greedy_coreset, select


def textbook(points_ND: torch.Tensor, num_centers: int, start_index: int = 0) -> list[int]:
    """Gonzalez' loop, one pass over all points per pick, by direct differences; ties to the lowest index."""
    picks = [start_index]
    distances_N = (points_ND - points_ND[start_index]).square().sum(dim=1)
    while len(picks) < num_centers:
        distances_N[picks] = -1.0
        picks.append(int(distances_N.argmax()))
        distances_N = torch.minimum(distances_N, (points_ND - points_ND[picks[-1]]).square().sum(dim=1))
    return picks


def cover_radius(points_ND: torch.Tensor, centers_MD: torch.Tensor) -> float:
    return float(torch.cdist(points_ND.double(), centers_MD.double()).min(dim=1).values.max())


def gaussian(count: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def lattice(count: int, dim: int, seed: int, side: int) -> torch.Tensor:
    """Points with small whole coordinates: exact arithmetic, and as many ties and duplicates as one could wish."""
    return torch.randint(0, side, (count, dim), generator=torch.Generator().manual_seed(seed)).double()


def cut(points_ND: torch.Tensor, parts: Sequence[torch.Tensor]) -> list[CoresetShard]:
    return [CoresetShard(points_ND[rows], rows) for rows in parts]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("count", "dim", "num_centers"), [(1, 3, 1), (2, 1, 2), (50, 2, 50), (300, 8, 40), (900, 64, 90)]
)
def test_picks_are_those_of_the_textbook(count: int, dim: int, num_centers: int, seed: int) -> None:
    points = gaussian(count, dim, seed)
    start = seed % count
    assert greedy_coreset(points, num_centers, start_index=start).tolist() == textbook(points, num_centers, start)


@pytest.mark.parametrize("num_candidates", [1, 2, 5, 17, 64, 1000])
@pytest.mark.parametrize("num_centers", [1, 120, 400])
def test_picks_and_radius_do_not_depend_on_the_rounds(num_candidates: int, num_centers: int) -> None:
    points = gaussian(400, 6, num_candidates)
    chosen = select([CoresetShard(points)], num_centers, num_candidates=num_candidates)
    assert chosen.indices_M.tolist() == textbook(points, num_centers)
    assert chosen.cover_radius == pytest.approx(cover_radius(points, points[chosen.indices_M]), rel=1e-9, abs=3e-7)


@pytest.mark.parametrize("num_candidates", [1, 2, 3, 10, 50, 1000])
@pytest.mark.parametrize(("dim", "side"), [(1, 3), (2, 2), (2, 5), (3, 4), (6, 2)])
@pytest.mark.parametrize("seed", range(2))
def test_ties_and_duplicates_go_to_the_lowest_index(dim: int, side: int, num_candidates: int, seed: int) -> None:
    points = lattice(120, dim, seed, side)
    for shards in ([CoresetShard(points)], cut(points, torch.arange(120).split([1, 50, 0, 69]))):
        chosen = select(shards, 120, start_index=7, num_candidates=num_candidates)
        assert chosen.indices_M.tolist() == textbook(points, 120, start_index=7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_candidates", [4, 60, 8192])
def test_picks_do_not_depend_on_the_shards(num_candidates: int, dtype: torch.dtype) -> None:
    points = gaussian(500, 12, 3, dtype)
    expected = select([CoresetShard(points)], 150, start_index=20, num_candidates=num_candidates)
    sizes = [[250, 250], [166, 167, 167], [71] * 6 + [74], [3, 490, 7], [0, 499, 0, 1], [0, 500]]
    contiguous = [torch.arange(500).split(of_shard) for of_shard in sizes]
    interleaved = [[torch.arange(number, 500, count) for number in range(count)] for count in (2, 3, 7)]
    for parts in [*contiguous, *interleaved]:
        chosen = select(cut(points, parts), 150, start_index=20, num_candidates=num_candidates)
        assert chosen.indices_M.tolist() == expected.indices_M.tolist()
        assert chosen.cover_radius == pytest.approx(expected.cover_radius, rel=1e-6)


def test_a_shard_without_points_need_not_know_their_dimension() -> None:
    points = gaussian(60, 5, 0)
    shards = [CoresetShard(torch.empty((0, 1))), CoresetShard(points)]
    assert select(shards, 20).indices_M.tolist() == textbook(points, 20)


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("seed", range(2))
def test_float32_covers_as_well_as_float64(seed: int, offset: float) -> None:
    points = gaussian(3000, 40, seed).relu() + offset
    exact = cover_radius(points, points[textbook(points, 90)])
    chosen = select([CoresetShard(points.float())], 90, num_candidates=256)
    assert len(set(chosen.indices_M.tolist())) == 90
    assert cover_radius(points, points[chosen.indices_M]) == pytest.approx(exact, rel=1e-4)
    assert chosen.cover_radius == pytest.approx(exact, rel=1e-3 if offset else 1e-4)


def test_more_picks_than_a_round_may_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coreset, "MAX_ROUND_PICKS", 50)
    points = gaussian(300, 2, 0)
    assert greedy_coreset(points, 270).tolist() == textbook(points, 270)


class TestStop:
    points = gaussian(400, 5, 1)

    def test_by_count_ratio_or_whichever_is_first(self) -> None:
        expected = textbook(self.points, 400)
        assert greedy_coreset(self.points, 30).tolist() == expected[:30]
        assert greedy_coreset(self.points, ratio=0.1).tolist() == expected[:40]
        assert greedy_coreset(self.points, 30, ratio=0.1).tolist() == expected[:30]
        assert greedy_coreset(self.points, 50, ratio=0.1).tolist() == expected[:40]
        assert greedy_coreset(self.points, ratio=1e-9).tolist() == expected[:1]
        assert greedy_coreset(self.points, ratio=1.0).tolist() == expected

    @pytest.mark.parametrize("num_candidates", [3, 8192])
    def test_by_cover_radius_at_the_first_pick_that_reaches_it(self, num_candidates: int) -> None:
        expected = textbook(self.points, 400)
        for radius in (0.4, 0.9, 2.5):
            enough = next(m for m in range(1, 401) if cover_radius(self.points, self.points[expected[:m]]) <= radius)
            shards = [CoresetShard(self.points)]
            chosen = select(shards, 400, cover_radius=radius, num_candidates=num_candidates)
            assert chosen.indices_M.tolist() == expected[:enough]
            assert chosen.cover_radius <= radius
        assert greedy_coreset(self.points, cover_radius=1e9).tolist() == [0]
        assert len(greedy_coreset(self.points, 5, cover_radius=0.4)) == 5


class TestGrowing:
    def test_continuing_gives_the_picks_of_one_run(self) -> None:
        points = gaussian(500, 8, 2)
        expected = textbook(points, 80)
        rest = torch.tensor(sorted(set(range(500)) - set(expected[:30])))
        shards = [CoresetShard(points[rest][:200], rest[:200]), CoresetShard(points[rest][200:], rest[200:])]
        grown = select(shards, 50, centers_KD=points[expected[:30]], num_candidates=64)
        assert grown.indices_M.tolist() == expected[30:]
        assert grown.cover_radius == pytest.approx(cover_radius(points, points[expected]), rel=1e-9)

    def test_many_existing_centres_are_taken_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(coreset, "MAX_ROUND_PICKS", 50)
        points = gaussian(300, 3, 0)
        expected = textbook(points, 290)
        rest = torch.tensor(sorted(set(range(300)) - set(expected[:240])))
        grown = select([CoresetShard(points[rest], rest)], 50, centers_KD=points[expected[:240]])
        assert grown.indices_M.tolist() == expected[240:]

    def test_points_that_are_covered_add_nothing(self) -> None:
        points = gaussian(100, 4, 0)
        grown = select([CoresetShard(points)], 50, centers_KD=points, cover_radius=0.01)
        assert grown == Coreset(grown.indices_M, 0.0, 1)
        assert grown.indices_M.tolist() == []


class TestOddInput:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
    def test_a_value_that_is_not_finite_is_named(self, value: float) -> None:
        points = gaussian(20_000, 3, 0, torch.float32)
        points[12_345, 1] = value
        with pytest.raises(ValueError, match="embedding 12345 is not finite"):
            greedy_coreset(points, 5)
        with pytest.raises(ValueError, match="embedding 32345 is not finite"):
            CoresetShard(points, torch.arange(20_000, 40_000))

    @pytest.mark.parametrize(
        ("ask", "complaint"),
        [
            (lambda ten: greedy_coreset(ten, 11), "num_centers is 11 but there are 10 embeddings"),
            (lambda ten: greedy_coreset(ten[:0], 1), "there are 0 embeddings"),
            (lambda ten: greedy_coreset(ten), "give num_centers, ratio or cover_radius"),
            (lambda ten: greedy_coreset(ten, 2, start_index=-1), "start_index -1 is outside the 10"),
            (lambda ten: greedy_coreset(ten, 2, start_index=10), "start_index 10 is outside the 10"),
            (lambda ten: select([CoresetShard(ten)], 2, start_index=10), "start_index 10 names 0 points"),
            (lambda ten: CoresetShard(ten[0]), "two axes"),
        ],
    )
    def test_what_cannot_be_done_is_refused(self, ask: Callable[[torch.Tensor], object], complaint: str) -> None:
        with pytest.raises(ValueError, match=complaint):
            ask(gaussian(10, 3, 0))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_duplicates_only(self, dtype: torch.dtype) -> None:
        points = gaussian(1, 30, 0, dtype).expand(50, -1) * 17
        chosen = select([CoresetShard(points)], 20, start_index=4, num_candidates=8)
        assert chosen.indices_M.tolist() == [4, 0, 1, 2, 3, *range(5, 20)]
        assert chosen.cover_radius == 0.0
        assert greedy_coreset(points, cover_radius=1e-6).tolist() == [0]

    def test_duplicates_are_picked_only_when_nothing_else_is_left(self) -> None:
        points = gaussian(40, 16, 0, torch.float32)
        twice = torch.cat([points, points])
        assert sorted(greedy_coreset(twice, 40).tolist()) == list(range(40))
        assert sorted(greedy_coreset(twice, 80).tolist()) == list(range(80))

    def test_a_feature_without_variance(self) -> None:
        points = gaussian(200, 8, 0)
        points[:, 3] = 1e3
        assert greedy_coreset(points, 40).tolist() == textbook(points, 40)
        points[:] = points[:, :1]
        assert greedy_coreset(points, 40).tolist() == textbook(points, 40)


def test_progress_ends_with_what_was_reached() -> None:
    calls: list[tuple[int, int, float]] = []
    points = gaussian(300, 4, 0)
    greedy_coreset(points, 50, progress=lambda *call: calls.append(call))
    assert calls[-1][:2] == (50, 50)
    assert calls[-1][2] == pytest.approx(cover_radius(points, points[greedy_coreset(points, 50)]), rel=1e-6)
    assert [call[0] for call in calls] == sorted(call[0] for call in calls)
