"""A strip as its own reference: how far each patch is from what the strip shows often.

Rolled steel repeats itself along the strip, also where its finish (a tread pattern, a stain, a scale) is one that no
nominal strip has shown. A patch that resembles many others of its own strip is therefore not anomalous, however far it
is from the memory bank. What is rare on its strip keeps its distance.

Shapes: h, w the patch grid, D dimensions, Q = h·w patches.
"""

import numpy as np
from numpy.typing import NDArray

CHUNK_ROWS = 1024
"""Rows of one matrix product: memory is CHUNK_ROWS x Q floats."""


def own_strip_distances(
    embeddings_hwD: NDArray[np.float32], fraction: float, margin_cells: int = 2
) -> NDArray[np.float32]:
    """Distance of each patch to the k-th nearest patch of the same strip, k = `fraction` of all its patches.

    Args:
        embeddings_hwD: the strip's patch embeddings.
        fraction: share of the strip that has to resemble a patch: a defect that covers more of it than this hides
            itself.
        margin_cells: patches no farther than this in both directions do not count: they overlap the patch itself.

    Returns:
        distances_hw, Euclidean; infinite where a patch has no k others beyond the margin.
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
        # the expansion |x|² + |c|² − 2x·c can end just below zero
        distances_Q[part] = np.sqrt(np.maximum(nearest_C, 0))
    return distances_Q.reshape(rows, columns)
