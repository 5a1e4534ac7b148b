"""Exact merge of nearest-neighbour answers from several shards, in NumPy.

Shapes: S shards, Q queries, K neighbours.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Neighbors = tuple[NDArray[np.float32], NDArray[np.int64]]
"""squared_distances_QK rising along K, and the ids_QK of the bank vectors."""


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
