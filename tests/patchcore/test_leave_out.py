"""A nominal strip is scored as if the bank had never seen it: without the vectors that it contributed."""

import numpy as np
import pytest

from steelray.patchcore.config import CoresetConfig, IndexConfig, ScoringConfig
from steelray.patchcore.fit import bank_scorer, fit_memory_bank
from steelray.patchcore.index import IndexShard, LocalSearch, train_index
from steelray.patchcore.leave_out import own_vectors
from steelray.patchcore.portable_embedder import Embedder
from tests.patchcore.samples import gaussian, strip

BOUNDS = [[(0, 300)], [(0, 100), (100, 220), (220, 300)], [(0, 1), (1, 2), (2, 300)]]


@pytest.mark.parametrize("bounds", BOUNDS, ids=len)
@pytest.mark.parametrize("kind", ["flat", "fp16", "ivf"])
@pytest.mark.parametrize("num_neighbors", [1, 5])
def test_the_answer_is_that_of_a_bank_without_the_vectors(
    bounds: list[tuple[int, int]], kind: str, num_neighbors: int
) -> None:
    vectors_ND, queries_QD = gaussian(300, 16, 0), gaussian(50, 16, 1)
    without_M = np.array([0, 1, 2, 57, 99, 100, 250, 299])
    trained = train_index(vectors_ND, "IVF8,Flat")[0] if kind == "ivf" else b""
    stored_ND = vectors_ND.astype(np.float16) if kind == "fp16" else vectors_ND
    search = LocalSearch([IndexShard(stored_ND[a:b], first_id=a, trained=trained, num_probes=8) for a, b in bounds])
    kept_N = np.delete(np.arange(300), without_M)
    others = LocalSearch([IndexShard(np.delete(stored_ND, without_M, axis=0))])
    distances, ids = search.submit(queries_QD, num_neighbors, without_M).result()
    expected, places = others.submit(queries_QD, num_neighbors).result()
    assert np.array_equal(ids, kept_N[places])
    np.testing.assert_allclose(distances, expected, rtol=1e-4)


def test_vectors_belong_to_strips_and_a_strip_that_is_the_whole_bank_keeps_them() -> None:
    origins_N3 = np.array([[2, 0, 0], [0, 1, 1], [2, 3, 3], [1, 0, 0], [0, 0, 0]], np.int32)
    own = own_vectors(origins_N3, ["a", "b", "a"])
    assert {key: ids.tolist() for key, ids in own.items()} == {"a": [0, 1, 2, 4], "b": [3]}
    assert own_vectors(origins_N3, ["a", "b", "a"], num_neighbors=2).keys() == {"b"}
    assert own_vectors(origins_N3[:2], ["a", "b", "a"]) == {}


@pytest.mark.parametrize("index", [None, IndexConfig(storage="fp16")], ids=["fp32", "fp16"])
def test_a_nominal_strip_scores_as_against_a_bank_without_its_vectors(
    eager: Embedder, index: IndexConfig | None
) -> None:
    keys, images = ["a", "b", "c", "d"], [strip(64, 96, number) for number in range(4)]
    coreset, scoring = CoresetConfig(ratio=0.3), ScoringConfig(num_neighbors=2, test_flips="vertical")
    bank = fit_memory_bank(keys, images, eager, coreset=coreset, scoring=scoring, index=index)
    scorer = bank_scorer(bank, eager)
    _, seen = scorer.score(images)
    maps, unseen = scorer.score(images, keys)
    for number, key in enumerate(keys):
        others = bank.origins_N3[:, 0] != number
        shard = IndexShard(bank.vectors_ND[others])
        alone = type(scorer)(eager, LocalSearch([shard]), scoring)
        [expected_map], [expected] = alone.score([images[number]])
        assert unseen[number] == pytest.approx(expected, rel=1e-4), key
        np.testing.assert_allclose(maps[number], expected_map, rtol=1e-3, atol=1e-3)
        assert unseen[number] > seen[number], "its own vectors had made it look more normal"
    assert scorer.score(images[:1], ["unknown"])[1][0] == seen[0]


def test_strips_that_are_all_alike_have_distance_zero(eager: Embedder) -> None:
    images = [strip(64, 96, 0)] * 3
    bank = fit_memory_bank(["a", "b", "c"], images, eager, coreset=CoresetConfig(ratio=1 / 3), scoring=ScoringConfig())
    _, scores = bank_scorer(bank, eager).score(images, ["a", "b", "c"])
    assert scores == pytest.approx([0, 0, 0], abs=0.1)
