"""Search of a stored bank against one index in memory."""

import numpy as np
import pytest

from steelray.config import ConfigError
from steelray.patchcore import bank as bank_format
from steelray.patchcore.bank import bank_files, read_info
from steelray.patchcore.index import IndexShard, LocalSearch
from steelray.patchcore.stored_search import StoredSearch
from tests.patchcore.samples import bank_of, gaussian

VECTORS = gaussian(100, 8, 0)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A bank of 100 vectors in three files."""
    monkeypatch.setattr(bank_format, "SHARD_BYTES", 4 * 8 * 40)
    return dict(bank_files(bank_of(VECTORS)))


def test_answers_are_those_of_one_index_and_every_file_is_read_once(files: dict[str, bytes]) -> None:
    reads: list[str] = []

    def read(name: str) -> bytes:
        reads.append(name)
        return files[name]

    info = read_info(files.__getitem__, "here")
    assert len(info.shards) == 3
    search = StoredSearch(read, info)
    queries = [gaussian(count, 8, count) for count in (5, 1, 9)]
    waiting = [search.submit(queries_QD, 1 + place) for place, queries_QD in enumerate(queries)]
    flat = LocalSearch([IndexShard(VECTORS)])
    for place, (pending, queries_QD) in enumerate(zip(waiting, queries, strict=True)):
        distances_QK, ids_QK = pending.result()
        expected = flat.submit(queries_QD, 1 + place).result()
        np.testing.assert_array_equal(ids_QK, expected[1])
        np.testing.assert_allclose(distances_QK, expected[0], rtol=1e-5)
    assert sorted(reads) == [file.name for file in info.shards]
    later = search.submit(queries[0], 1).result()
    np.testing.assert_array_equal(later[1], waiting[0].result()[1])


def test_a_damaged_file_is_no_answer(files: dict[str, bytes]) -> None:
    info = read_info(files.__getitem__, "here")
    damaged = {**files, info.shards[1].name: files[info.shards[1].name][:-1] + b"?"}
    with pytest.raises(ConfigError, match="digest"):
        StoredSearch(damaged.__getitem__, info).submit(np.zeros((1, 8), np.float32), 1).result()
