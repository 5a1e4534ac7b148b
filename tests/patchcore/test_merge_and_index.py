"""Sharded search equals one flat index: distances bit by bit where arithmetic is exact, ids also among ties."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from steelray.patchcore.index import IndexShard, LocalSearch, merge_neighbors
from steelray.patchcore.planner import shard_bounds
from tests.patchcore.samples import gaussian


def lattice(count: int, dim: int, seed: int) -> NDArray[np.float32]:
    """Whole coordinates 0 to 2: exact distances, many ties, many duplicates."""
    return np.random.default_rng(seed).integers(0, 3, (count, dim)).astype(np.float32)


def sharded(vectors_ND: NDArray[np.float32], bounds: list[tuple[int, int]]) -> LocalSearch:
    return LocalSearch([IndexShard(vectors_ND[start:stop], first_id=start) for start, stop in bounds])


def by_hand(queries_QD: NDArray[np.float32], vectors_ND: NDArray[np.float32], k: int) -> tuple[NDArray, NDArray]:
    """Squared distances and ids in float64, equal distances by rising id."""
    differences_QND = queries_QD[:, None].astype(np.float64) - vectors_ND[None]
    squared_QN = (differences_QND**2).sum(axis=2)
    ids_QK = np.argsort(squared_QN, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(squared_QN, ids_QK, axis=1), ids_QK


UNEVEN = [
    [(0, 200)],
    [(0, 100), (100, 200)],
    [(0, 1), (1, 200)],
    [(0, 66), (66, 133), (133, 200)],
    [(0, 2), (2, 5), (5, 6), (6, 198), (198, 200)],
]


@pytest.mark.parametrize("num_queries", [1, 7, 100])
@pytest.mark.parametrize("k", [1, 2, 5, 20])
@pytest.mark.parametrize("bounds", UNEVEN, ids=lambda bounds: "+".join(str(b - a) for a, b in bounds))
def test_shards_together_answer_as_one_flat_index(bounds: list[tuple[int, int]], k: int, num_queries: int) -> None:
    vectors, queries = gaussian(200, 24, 0), gaussian(num_queries, 24, 1)
    distances, ids = sharded(vectors, bounds).submit(queries, k).result()
    expected_distances, expected_ids = by_hand(queries, vectors, k)
    assert np.array_equal(ids, expected_ids)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-4)
    flat_distances, flat_ids = sharded(vectors, [(0, 200)]).submit(queries, k).result()
    assert np.array_equal(ids, flat_ids)
    np.testing.assert_allclose(distances, flat_distances, rtol=1e-5)
    assert (distances.dtype, ids.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("num_queries", [3, 25, 100])
@pytest.mark.parametrize("max_vectors", [40, 200])
def test_ties_are_ordered_by_id_in_any_number_of_shards(max_vectors: int, num_queries: int) -> None:
    rng = np.random.default_rng(max_vectors + num_queries)
    for seed in range(40):
        count, k = int(rng.integers(1, max_vectors)), int(rng.integers(1, 21))
        edges = [0, *sorted(rng.integers(0, count + 1, rng.integers(0, 6)).tolist()), count]
        vectors, queries = lattice(count, 3, seed), lattice(num_queries, 3, 100 + seed)
        search = sharded(vectors, [(a, b) for a, b in itertools.pairwise(edges) if b > a])
        if k > count:
            with pytest.raises(ValueError, match=f"num_neighbors is {k} but the memory bank holds"):
                search.submit(queries, k)
            continue
        for found, expected in zip(search.submit(queries, k).result(), by_hand(queries, vectors, k), strict=True):
            assert np.array_equal(found, expected)


def test_a_shard_smaller_than_k_pads_and_the_padding_never_wins() -> None:
    vectors = gaussian(5, 3, 0)
    distances, ids = IndexShard(vectors[:2], first_id=10).search(gaussian(4, 3, 1), 3)
    assert np.isinf(distances[:, 2]).all()
    assert (ids[:, 2] == -1).all()
    assert set(ids[:, :2].ravel()) == {10, 11}


def test_a_vector_of_the_bank_is_at_distance_zero() -> None:
    vectors = gaussian(300, 64, 0) * 40
    distances, ids = sharded(vectors, [(0, 150), (150, 300)]).submit(vectors, 1).result()
    assert ids[:, 0].tolist() == list(range(300))
    assert (distances >= 0).all()
    assert np.sqrt(distances.max()) < 1e-3 * np.linalg.norm(vectors, axis=1).max()


def test_the_answer_to_a_query_does_not_depend_on_threads() -> None:
    vectors, queries = gaussian(500, 32, 0), gaussian(200, 32, 1)
    one = IndexShard(vectors, num_threads=1).search(queries, 3)
    two = IndexShard(vectors, num_threads=2).search(queries, 3)
    assert np.array_equal(one[0], two[0])
    assert np.array_equal(one[1], two[1])


@pytest.mark.parametrize(
    ("vectors", "complaint"),
    [
        (np.zeros((3, 2)), "float16 matrix: float64"),
        (np.zeros(3, np.float32), r"float16 matrix: float32 \(3,\)"),
        (np.array([[np.nan, 0]], np.float32), "not finite"),
        (np.array([[np.inf, 0]], np.float32), "not finite"),
    ],
)
def test_unusable_vectors_are_refused(vectors: NDArray, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        IndexShard(vectors)


def test_merging_answers_by_hand() -> None:
    near = np.array([[1, 4]], np.float32), np.array([[0, 1]])
    far = np.array([[1, np.inf]], np.float32), np.array([[5, -1]])
    assert [part.tolist() for part in merge_neighbors([near, far], 3)] == [[[1, 1, 4]], [[0, 5, 1]]]
    assert [part.tolist() for part in merge_neighbors([near, far], 1)] == [[[1]], [[0]]]
    with pytest.raises(ValueError, match="num_neighbors is 4"):
        merge_neighbors([near, far], 4)


def test_bounds_cover_the_bank_in_even_slices() -> None:
    for num_vectors in (1, 2, 7, 100, 8193):
        for num_shards in range(1, min(num_vectors, 9) + 1):
            bounds = shard_bounds(num_vectors, num_shards)
            sizes = [stop - start for start, stop in bounds]
            assert len(bounds) == num_shards
            assert bounds[0][0] == 0
            assert bounds[-1][1] == num_vectors
            assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(bounds))
            assert max(sizes) - min(sizes) <= 1
            assert min(sizes) >= 1
