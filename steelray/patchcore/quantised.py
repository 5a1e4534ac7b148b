"""Banks in float16 or behind an inverted file, and the recall that this costs.

Shapes: N bank vectors, D dimensions, Q queries.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from steelray.config import ConfigError
from steelray.patchcore.bank import MemoryBank, identified
from steelray.patchcore.config import IndexConfig
from steelray.patchcore.index import IndexShard, train_index

RECALL_QUERIES = 4096
"""Most nominal patches that the recall is measured on."""
DUPLICATE = 1e-5
"""A vector counts as the nearest if its squared distance exceeds the least by at most this share: a duplicate."""


def recall_queries(num_candidates: int, picked_M: NDArray[np.int64], seed: int = 0) -> NDArray[np.int64]:
    """Return the rising global indices of patches to measure recall on: not in the bank, unless all patches are.

    Args:
        num_candidates: patches that the bank was selected from.
        picked_M: those that became bank vectors.
    """
    free = np.setdiff1d(np.arange(num_candidates), picked_M, assume_unique=True)
    pool = free if len(free) else np.arange(num_candidates)
    count = min(RECALL_QUERIES, len(pool))
    return np.sort(np.random.default_rng(seed).choice(pool, count, replace=False))


def index_bank(bank: MemoryBank, config: IndexConfig, queries_QD: NDArray[np.float32]) -> MemoryBank:
    """Return an exact bank as `config` asks to store and search it, under its new id and with its recall.

    Args:
        bank: float32, searched exactly.
        queries_QD: patches to measure the recall on; unused if the index is exact.

    Raises:
        ConfigError: values too large for float16, an index that cannot be trained on this bank, or one whose cells can
            hold fewer vectors than `scoring.num_neighbors`.
    """
    if config.is_exact:
        return bank
    vectors_ND, info = bank.vectors_ND, bank.info
    if config.storage == "fp16":
        largest = float(np.abs(vectors_ND).max())
        if largest > float(np.finfo(np.float16).max):
            raise ConfigError(f"index.storage fp16 ends at 65504 but the bank holds {largest:.4g}: use fp32")
        vectors_ND = vectors_ND.astype(np.float16)
    trained, bytes_per_vector = b"", vectors_ND.itemsize * info.dim
    if config.factory is not None:
        try:
            trained, bytes_per_vector = train_index(vectors_ND.astype(np.float32), config.factory)
        except ValueError as error:
            raise ConfigError(f"index.factory {config.factory!r}: {error}") from None
    shard = IndexShard(vectors_ND, trained=trained, num_probes=config.num_probes)
    if (fewest := shard.fewest_seen()) < info.scoring.num_searched:
        raise ConfigError(
            f"index.num_probes is {config.num_probes}: so many cells can hold as few as {fewest} vectors, but "
            f"{info.scoring.says_num_searched}: raise num_probes, or use fewer cells"
        )
    recall = measure_recall(shard, bank.vectors_ND.astype(np.float32), queries_QD)
    settled = replace(info, index=config, bytes_per_vector=bytes_per_vector, recall=recall)
    return identified(replace(bank, info=settled, vectors_ND=vectors_ND, trained=trained))


def measure_recall(
    shard: IndexShard, vectors_ND: NDArray[np.float32], queries_QD: NDArray[np.float32]
) -> dict[str, float]:
    """Measure how often an index finds the true nearest vector, and the error of its distances.

    Returns:
        recall_at_1: share of queries whose answer is the nearest vector. distance_error: mean of
        |reported − true| / true over queries that lie off the bank. num_queries.
    """
    reported_Q1, found_Q1 = shard.search(queries_QD, 1)
    least_Q1, nearest_Q1 = IndexShard(vectors_ND).search(queries_QD, 1)
    to_found_Q = np.square(queries_QD - vectors_ND[found_Q1[:, 0]]).sum(axis=1)
    hit_Q = (found_Q1 == nearest_Q1)[:, 0] | (to_found_Q <= least_Q1[:, 0] * (1 + DUPLICATE))
    reported_Q, true_Q = np.sqrt(reported_Q1[:, 0]), np.sqrt(least_Q1[:, 0])
    off_Q = true_Q > 0
    error_Q = np.abs(reported_Q[off_Q] - true_Q[off_Q]) / true_Q[off_Q]
    return {
        "recall_at_1": round(float(hit_Q.mean()), 6),
        "distance_error": round(float(error_Q.mean()), 6) if len(error_Q) else 0.0,
        "num_queries": len(queries_QD),
    }
