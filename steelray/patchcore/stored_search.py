"""Search of a stored bank file by file, for a few images and without actors.

Shapes: Q queries, D dimensions, K neighbours.
"""

import numpy as np
from numpy.typing import NDArray

from steelray.description import Read
from steelray.patchcore.bank import BankInfo
from steelray.patchcore.index import IndexShard, Neighbors, load_shard, merge_neighbors


class StoredSearch:
    """Search of a bank of any size in storage; a `BankSearch`. It holds one file's vectors at a time.

    All submitted searches are answered when the first answer is asked for, so that every file is read once.
    """

    def __init__(self, read: Read, info: BankInfo, *, num_threads: int = 1) -> None:
        self._read = read
        self._info = info
        self._num_threads = num_threads
        self._waiting: list[_DeferredSearch] = []

    def submit(
        self, queries_QD: NDArray[np.float32], num_neighbors: int, without_M: NDArray[np.int64] | None = None
    ) -> "_DeferredSearch":
        self._waiting.append(_DeferredSearch(self, queries_QD, num_neighbors, without_M))
        return self._waiting[-1]

    def answer_all(self) -> None:
        """Answer all submitted searches. Raises `ConfigError` if a file is missing or damaged."""
        waiting, self._waiting = self._waiting, []
        start = 0
        for file in self._info.shards:
            stop = start + file.num_rows
            shard = load_shard(self._read, self._info, start, stop, num_threads=self._num_threads)
            for search in waiting:
                search.ask(shard)
            start = stop


class _DeferredSearch:
    def __init__(
        self,
        owner: StoredSearch,
        queries_QD: NDArray[np.float32],
        num_neighbors: int,
        without_M: NDArray[np.int64] | None,
    ) -> None:
        self._owner = owner
        self._without_M = without_M
        self._queries_QD = queries_QD
        self._num_neighbors = num_neighbors
        self._answers: list[Neighbors] = []

    def ask(self, shard: IndexShard) -> None:
        self._answers.append(shard.search(self._queries_QD, self._num_neighbors, self._without_M))

    def result(self) -> Neighbors:
        if not self._answers:
            self._owner.answer_all()
        return merge_neighbors(self._answers, self._num_neighbors)
