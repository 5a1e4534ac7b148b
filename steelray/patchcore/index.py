"""FAISS indexes over slices of a bank, and their search; the only user of faiss.

Search is exact by default. An inverted file (IVF) is trained once on the whole bank and stored with it, empty. Every
slice fills a copy of it, so that answers do not depend on how the bank is cut.

Shapes: N bank vectors, D dimensions, Q queries, K neighbours.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from steelray.description import Read
from steelray.patchcore.bank import BankInfo, MemoryBank, read_trained, read_vectors

ID_BYTES = 8
"""Bytes of a vector's id in an inverted file."""
BLOCK_ROWS = 16_384
"""Vectors that are widened to float32 at a time."""

Neighbors = tuple[NDArray[np.float32], NDArray[np.int64]]
"""squared_distances_QK rising along K, and the ids_QK of the bank vectors."""


class IndexShard:
    """A squared L2 index over a slice of the bank.

    Args:
        vectors_ND: float32 or float16, finite. float16 stays in memory as such and is searched exactly.
        first_id: global id of the first vector.
        num_threads: CPU threads of a search.
        use_gpu: put the index on this process's CUDA device.
        trained: bytes from `train_index`; empty: exact search.
        num_probes: cells of an inverted file that a query looks into.

    Raises:
        ValueError: not a matrix of these types, or not finite.
    """

    def __init__(
        self,
        vectors_ND: NDArray[np.floating[Any]],
        *,
        first_id: int = 0,
        num_threads: int = 1,
        use_gpu: bool = False,
        trained: bytes = b"",
        num_probes: int = 1,
    ) -> None:
        if vectors_ND.ndim != 2 or vectors_ND.dtype not in (np.float32, np.float16):
            raise ValueError(f"bank vectors must be a float32 or float16 matrix: {vectors_ND.dtype} {vectors_ND.shape}")
        if not np.isfinite(vectors_ND).all():
            raise ValueError("bank vectors are not finite")
        self.first_id = first_id
        self._num_threads = num_threads
        self._index: Any
        if trained:
            self._index = faiss.deserialize_index(np.frombuffer(trained, np.uint8))
            if (cells := faiss.try_extract_index_ivf(self._index)) is not None:
                cells.nprobe = min(num_probes, cells.nlist)
        elif vectors_ND.dtype == np.float16 and not use_gpu:
            self._index = _HalfFlat(vectors_ND)
        else:
            self._index = faiss.IndexFlatL2(vectors_ND.shape[1])
        if not isinstance(self._index, _HalfFlat):
            for start in range(0, len(vectors_ND), BLOCK_ROWS):
                self._index.add(np.ascontiguousarray(vectors_ND[start : start + BLOCK_ROWS], dtype=np.float32))
        if use_gpu:
            self._index = _to_gpu(self._index, half=vectors_ND.dtype == np.float16)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(
        self, queries_QD: NDArray[np.float32], num_neighbors: int, without_M: NDArray[np.int64] | None = None
    ) -> Neighbors:
        """Return the nearest vectors of this slice by global id; if it has fewer than K, pad with -1 and infinity.

        Args:
            without_M: global ids of vectors to leave out, ascending.
        """
        faiss.omp_set_num_threads(self._num_threads)
        queries_QD = np.ascontiguousarray(queries_QD)
        out = np.empty(0, np.int64) if without_M is None else without_M - self.first_id
        out = out[(out >= 0) & (out < len(self))]
        if len(out) == 0:
            distances_QK, ids_QK = self._index.search(queries_QD, num_neighbors)
        else:
            distances_QK, ids_QK = self._search_others(queries_QD, num_neighbors, out)
        missing_QK = ids_QK < 0
        if missing_QK.any():
            distances_QK[missing_QK] = np.inf
        # the expansion |x|² + |c|² − 2x·c can round to just below zero
        return np.maximum(distances_QK, 0.0), np.where(missing_QK, -1, ids_QK + self.first_id)

    def _search_others(
        self, queries_QD: NDArray[np.float32], num_neighbors: int, out: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Search without some vectors of this slice. Flat indexes: a selector would turn off their matrix products."""
        cells: Any = faiss.try_extract_index_ivf(self._index) if isinstance(self._index, faiss.Index) else None
        if cells is not None:
            parameters: Any = faiss.SearchParametersIVF
            options = parameters(sel=faiss.IDSelectorNot(faiss.IDSelectorBatch(out)), nprobe=cells.nprobe)
            distances_QK, ids_QK = self._index.search(queries_QD, num_neighbors, params=options)
            return distances_QK, ids_QK
        kept = np.delete(np.arange(len(self)), out)
        if len(kept) == 0:
            shape = (len(queries_QD), num_neighbors)
            return np.full(shape, np.inf, np.float32), np.full(shape, -1)
        others_ND = np.delete(self._index.reconstruct_n(0, len(self)), out, axis=0)
        distances_QK, ids_QK = faiss.knn(queries_QD, others_ND, min(num_neighbors, len(kept)))
        distances_QK, ids_QK = _padded(distances_QK, kept[ids_QK], num_neighbors)
        return distances_QK, ids_QK

    def fewest_seen(self) -> int:
        """Return how many vectors a query looks at in the worst case: all, or those of the smallest cells."""
        cells: Any = faiss.try_extract_index_ivf(self._index) if isinstance(self._index, faiss.Index) else None
        if cells is None:
            return len(self)
        sizes = sorted(cells.invlists.list_size(cell) for cell in range(cells.nlist))
        return int(sum(sizes[: cells.nprobe]))


class _HalfFlat:
    """Exact search of float16 vectors, widened block by block, under the interface of a FAISS index."""

    def __init__(self, vectors_ND: NDArray[np.float16]) -> None:
        self._vectors_ND = vectors_ND
        self.ntotal = len(vectors_ND)

    def search(self, queries_QD: NDArray[np.float32], num_neighbors: int) -> Neighbors:
        best: Neighbors | None = None
        for start in range(0, self.ntotal, BLOCK_ROWS):
            block_ND = self._vectors_ND[start : start + BLOCK_ROWS].astype(np.float32)
            distances_QK, ids_QK = faiss.knn(queries_QD, block_ND, num_neighbors)
            answer = distances_QK, np.where(ids_QK < 0, -1, ids_QK + start)
            best = answer if best is None else merge_neighbors([best, answer], num_neighbors)
        assert best is not None
        return best

    def reconstruct_n(self, start: int, count: int) -> NDArray[np.float32]:
        return self._vectors_ND[start : start + count].astype(np.float32)


def _padded(distances_QK: NDArray[np.float32], ids_QK: NDArray[np.int64], num_neighbors: int) -> Neighbors:
    """Fill up columns with id -1 and infinity."""
    missing = ((0, 0), (0, num_neighbors - ids_QK.shape[1]))
    return (np.pad(distances_QK, missing, constant_values=np.inf), np.pad(ids_QK, missing, constant_values=-1))


def _to_gpu(index: Any, half: bool) -> Any:
    options = faiss.GpuClonerOptions()
    options.useFloat16 = half
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index, options)


def merge_neighbors(answers: Sequence[Neighbors], num_neighbors: int) -> Neighbors:
    """Return the `num_neighbors` nearest over all shards; equal distances are ordered by id, as in one flat index.

    Args:
        answers: of each shard, with global ids; a shard with fewer vectors than K pads with id -1.

    Raises:
        ValueError: the shards together hold fewer than `num_neighbors` vectors.
    """
    distances = np.concatenate([distances_QK for distances_QK, _ in answers], axis=1)
    ids = np.concatenate([ids_QK for _, ids_QK in answers], axis=1)
    distances = np.where(ids < 0, np.float32(np.inf), distances)
    if num_neighbors == 1 and len(answers) > 1:
        # the common case needs no sort: shards come by rising id, and argmin takes the first of equals
        columns = distances.argmin(axis=1)[:, None]
    else:
        columns = np.lexsort((ids, distances), axis=1)[:, :num_neighbors]
    merged = np.take_along_axis(distances, columns, axis=1), np.take_along_axis(ids, columns, axis=1)
    if merged[0].shape[1] < num_neighbors or (merged[1] < 0).any():
        raise ValueError(f"num_neighbors is {num_neighbors} but the memory bank holds fewer vectors")
    return merged


def train_index(vectors_ND: NDArray[np.float32], factory: str) -> tuple[bytes, int]:
    """Train an inverted file on a whole bank; return it, empty, and the bytes that it takes per vector.

    Raises:
        ValueError: FAISS cannot train it on these vectors.
    """
    try:
        index: Any = faiss.index_factory(vectors_ND.shape[1], factory)
        index.cp.min_points_per_centroid = 1  # no warning of few points: the recall is measured instead
        faiss.omp_set_num_threads(1)  # one order of sums, so that the same bank gives the same index
        index.train(np.ascontiguousarray(vectors_ND))
    except RuntimeError as error:
        reason = re.sub(r"^Error in .*?\.cpp:\d+: (Error: )?", "", " ".join(str(error).split()))
        raise ValueError(f"{reason} ({len(vectors_ND)} vectors of {vectors_ND.shape[1]} dimensions)") from None
    return faiss.serialize_index(index).tobytes(), index.sa_code_size() + ID_BYTES


def shard_of(bank: MemoryBank, *, num_threads: int = 1) -> IndexShard:
    """Return the index of a whole bank in memory, as its settings ask."""
    num_probes = bank.info.index.num_probes
    return IndexShard(bank.vectors_ND, num_threads=num_threads, trained=bank.trained, num_probes=num_probes)


def load_shard(
    read: Read, info: BankInfo, start: int = 0, stop: int | None = None, *, num_threads: int = 1, use_gpu: bool = False
) -> IndexShard:
    """Return the index of vectors `start` to `stop` of a stored bank, as its settings ask.

    Raises:
        ConfigError: a file is missing or damaged.
    """
    return IndexShard(
        read_vectors(read, info, start, stop),
        first_id=start,
        num_threads=num_threads,
        use_gpu=use_gpu,
        trained=read_trained(read, info),
        num_probes=info.index.num_probes,
    )


class PendingSearch(Protocol):
    """A search under way."""

    def result(self) -> Neighbors:
        """Wait for the answer of the whole bank. Raises `BankUnavailable` rather than return a part."""


class BankSearch(Protocol):
    """Search of the whole bank, wherever it lies."""

    def submit(
        self, queries_QD: NDArray[np.float32], num_neighbors: int, without_M: NDArray[np.int64] | None = None
    ) -> PendingSearch:
        """Start a search; several may be under way.

        Args:
            without_M: ids of vectors to leave out, ascending.
        """


class BankUnavailable(Exception):
    """A part of the bank did not answer. Distances to the rest would be too large, so there is no answer at all."""


@dataclass(frozen=True)
class FinishedSearch:
    """A search that already has its answer."""

    neighbors: Neighbors

    def result(self) -> Neighbors:
        return self.neighbors


class LocalSearch:
    """Search of a bank in this process, as one or several slices; a `BankSearch`."""

    def __init__(self, shards: Sequence[IndexShard]) -> None:
        self.shards = list(shards)

    def submit(
        self, queries_QD: NDArray[np.float32], num_neighbors: int, without_M: NDArray[np.int64] | None = None
    ) -> FinishedSearch:
        answers = [shard.search(queries_QD, num_neighbors, without_M) for shard in self.shards]
        return FinishedSearch(merge_neighbors(answers, num_neighbors))
