"""Timing of stages: what is timed gives the same answers."""

import time

import numpy as np
import pytest

from steelray.patchcore.index import IndexShard, LocalSearch
from steelray.patchcore.timing import TimedSearch, stage, timed_embed
from tests.patchcore.samples import gaussian


class Seen(dict[str, list[float]]):
    def __call__(self, name: str, seconds: float) -> None:
        self.setdefault(name, []).append(seconds)


def test_a_block_is_timed_and_one_that_fails_is_not_counted() -> None:
    seen = Seen()
    with stage("decode", seen):
        time.sleep(0.02)
    assert 0.02 <= seen["decode"][0] < 1
    with pytest.raises(OSError, match="gone"), stage("decode", seen):
        raise OSError("gone")
    assert len(seen["decode"]) == 1


def test_a_timed_search_gives_the_same_answers() -> None:
    queries_QD = gaussian(7, 4, 1)
    plain, seen = LocalSearch([IndexShard(gaussian(50, 4, 0))]), Seen()
    timed = TimedSearch(plain, seen)
    first, second = timed.submit(queries_QD, 2), timed.submit(queries_QD[:3], 1)
    assert seen == {}, "counted when the answer is there"
    for found, expected in zip(first.result(), plain.submit(queries_QD, 2).result(), strict=True):
        np.testing.assert_array_equal(found, expected)
    second.result()
    assert [len(seen["search"]), min(seen["search"]) > 0] == [2, True]


def test_a_timed_embedder_gives_the_same_embeddings() -> None:
    seen = Seen()
    embed = timed_embed(lambda images_BHWC: images_BHWC.mean(axis=3, keepdims=True).astype(np.float32), seen)
    images_BHWC = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)
    np.testing.assert_array_equal(embed(images_BHWC), images_BHWC.mean(axis=3, keepdims=True))
    assert len(seen["embed"]) == 1
