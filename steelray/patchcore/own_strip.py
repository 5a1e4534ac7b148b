"""Distances of patches to their own strip, by which a strip serves as its own reference.

Rolled steel repeats itself along the strip, even if no nominal strip has shown its finish (a tread pattern, a stain,
scale). A patch that resembles many others of its strip is therefore not anomalous, however far it is from the memory
bank. A patch that is rare on its strip keeps its distance.

Shapes: h, w the patch grid, D dimensions, Q = h·w patches.
"""

import numpy as np
from numpy.typing import NDArray

CHUNK_ROWS = 1024
"""Rows of one matrix product: memory is CHUNK_ROWS x Q floats."""


def own_strip_distances(
    embeddings_hwD: NDArray[np.float32], fraction: float, margin_cells: int = 2
) -> NDArray[np.float32]:
    """Return the distance of each patch to its k-th nearest of the same strip, with k = `fraction` of all patches.

    Args:
        embeddings_hwD: the strip's patch embeddings.
        fraction: share of the strip that has to resemble a patch. A larger defect hides itself.
        margin_cells: patches within this many cells are ignored; they overlap the patch itself.

    Returns:
        distances_hw, Euclidean; infinite if a patch has fewer than k others beyond the margin.
    """
    rows, columns, dim = embeddings_hwD.shape
    points_QD = np.ascontiguousarray(embeddings_hwD.reshape(-1, dim), dtype=np.float32)
    count = len(points_QD)
    rank = max(1, int(fraction * count))
    if rank >= count:
        return np.full((rows, columns), np.inf, dtype=np.float32)
    row_Q, column_Q = (place.ravel() for place in np.mgrid[:rows, :columns])
    norms_Q = np.einsum("qd,qd->q", points_QD, points_QD)
    distances_Q = np.empty(count, dtype=np.float32)
    for start in range(0, count, CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        squared_CQ = norms_Q[part, None] + norms_Q - 2 * (points_QD[part] @ points_QD.T)
        near_CQ = np.abs(row_Q[part, None] - row_Q) <= margin_cells
        near_CQ &= np.abs(column_Q[part, None] - column_Q) <= margin_cells
        squared_CQ[near_CQ] = np.inf
        nearest_C = np.partition(squared_CQ, rank - 1, axis=1)[:, rank - 1]
        # the expansion |x|² + |c|² − 2x·c can round to just below zero
        distances_Q[part] = np.sqrt(np.maximum(nearest_C, 0))
    return distances_Q.reshape(rows, columns)
