"""One slice of the bank as a FAISS index: the only user of faiss.

Shapes: N bank vectors, D dimensions, Q queries, K neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from steelray.memory_bank.merge import Neighbors, merge_neighbors


class IndexShard:
    """An exact (flat, squared L2) index over a slice of the bank.

    Args:
        vectors_ND: float32, finite.
        first_id: global id of the first vector.
        num_threads: CPU threads of a search.
        use_gpu: put the index on this process's CUDA device.

    Raises:
        ValueError: not a float32 matrix, or not finite.
    """

    def __init__(
        self, vectors_ND: NDArray[np.float32], *, first_id: int = 0, num_threads: int = 1, use_gpu: bool = False
    ) -> None:
        if vectors_ND.ndim != 2 or vectors_ND.dtype != np.float32:
            raise ValueError(f"bank vectors must be a float32 matrix, not {vectors_ND.dtype} of {vectors_ND.ndim} axes")
        if not np.isfinite(vectors_ND).all():
            raise ValueError("bank vectors are not finite")
        self.first_id = first_id
        self._num_threads = num_threads
        index = faiss.IndexFlatL2(vectors_ND.shape[1])
        index.add(np.ascontiguousarray(vectors_ND))
        self._index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index) if use_gpu else index

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(self, queries_QD: NDArray[np.float32], num_neighbors: int) -> Neighbors:
        """The nearest vectors of this slice, global ids; padded with id -1 and infinity where it has fewer than K."""
        faiss.omp_set_num_threads(self._num_threads)
        distances_QK, ids_QK = self._index.search(np.ascontiguousarray(queries_QD), num_neighbors)
        missing_QK = ids_QK < 0
        if missing_QK.any():
            distances_QK[missing_QK] = np.inf
        # the expansion |x|² + |c|² − 2x·c can end just below zero
        return np.maximum(distances_QK, 0.0), np.where(missing_QK, -1, ids_QK + self.first_id)


class PendingSearch(Protocol):
    """A search under way."""

    def result(self) -> Neighbors:
        """Waits for the answer: exact and complete. Raises `BankUnavailable` rather than give part of one."""


class BankSearch(Protocol):
    """Nearest neighbours in the whole bank, wherever it lies."""

    def submit(self, queries_QD: NDArray[np.float32], num_neighbors: int) -> PendingSearch:
        """Starts a search; several may be under way."""


class BankUnavailable(Exception):
    """A part of the bank did not answer. Without it distances would be too large, so there is no answer at all."""


@dataclass(frozen=True)
class FinishedSearch:
    """A search that was answered at once."""

    neighbors: Neighbors

    def result(self) -> Neighbors:
        return self.neighbors


class LocalSearch:
    """The whole bank in this process, as one or several slices."""

    def __init__(self, shards: Sequence[IndexShard]) -> None:
        self.shards = list(shards)

    def submit(self, queries_QD: NDArray[np.float32], num_neighbors: int) -> FinishedSearch:
        answers = [shard.search(queries_QD, num_neighbors) for shard in self.shards]
        return FinishedSearch(merge_neighbors(answers, num_neighbors))
