"""The strip as its own reference: against a plain loop, and what it must and must not forgive."""

import numpy as np
import pytest
from numpy.typing import NDArray

from steelray.patchcore import own_strip
from steelray.patchcore.own_strip import own_strip_distances


def by_definition(embeddings_hwD: NDArray[np.float32], rank: int, margin: int) -> NDArray[np.float64]:
    rows, columns, _ = embeddings_hwD.shape
    result = np.full((rows, columns), np.inf)
    for row in range(rows):
        for column in range(columns):
            others = [
                np.linalg.norm(embeddings_hwD[row, column].astype(float) - embeddings_hwD[r, c])
                for r in range(rows)
                for c in range(columns)
                if abs(r - row) > margin or abs(c - column) > margin
            ]
            if len(others) >= rank:
                result[row, column] = sorted(others)[rank - 1]
    return result


@pytest.mark.parametrize(("fraction", "rank"), [(0.01, 1), (0.1, 5), (0.5, 28)])
@pytest.mark.parametrize("margin", [0, 2])
def test_it_is_the_distance_to_the_kth_nearest_patch_beyond_the_margin(
    monkeypatch: pytest.MonkeyPatch, fraction: float, rank: int, margin: int
) -> None:
    monkeypatch.setattr(own_strip, "CHUNK_ROWS", 10)  # several chunks, the last one short
    embeddings_hwD = np.random.default_rng(0).standard_normal((4, 14, 6)).astype(np.float32)
    found_hw = own_strip_distances(embeddings_hwD, fraction, margin)
    assert found_hw.dtype == np.float32
    np.testing.assert_allclose(found_hw, by_definition(embeddings_hwD, rank, margin), rtol=1e-4)


def test_what_repeats_is_near_and_what_is_rare_is_far() -> None:
    pattern_hwD = np.zeros((4, 40, 2), dtype=np.float32)
    pattern_hwD[:, ::2, 0] = 5.0  # two kinds of patch, each on half of the strip
    pattern_hwD[1, 20] = [0.0, 9.0]
    distances_hw = own_strip_distances(pattern_hwD, fraction=0.2)
    assert distances_hw[1, 20] >= 9.0
    distances_hw[1, 20] = 0.0
    assert distances_hw.max() == pytest.approx(0.0, abs=1e-3)


def test_a_defect_larger_than_the_fraction_hides_itself_and_a_smaller_one_does_not() -> None:
    strip_hwD = np.zeros((4, 50, 1), dtype=np.float32)
    strip_hwD[:, :15] = 7.0  # 30 % of the strip
    assert own_strip_distances(strip_hwD, fraction=0.1)[0, 0] == pytest.approx(0.0, abs=1e-3)
    assert own_strip_distances(strip_hwD, fraction=0.4)[0, 0] == pytest.approx(7.0)


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 2, 3), (3, 3, 3)])
def test_a_strip_too_small_to_compare_with_itself_says_nothing(shape: tuple[int, int, int]) -> None:
    assert np.isinf(own_strip_distances(np.ones(shape, dtype=np.float32), fraction=0.1)).all()
