"""A strip's patch distances to its one anomaly score. Pure functions.

Shapes: h, w the patch grid; Q = h·w patches, K nearest vectors of each.
"""

import math

import numpy as np
from numpy.typing import NDArray

from steelray.patchcore_config import ScoringConfig

Floats = NDArray[np.float32]
MAX_BLOCKS = 16
"""Along the strip, for `extreme_value`: few enough that each holds many patches, enough to see their spread."""


def image_score(distances_hw: Floats, weights_hw: Floats | None, scoring: ScoringConfig) -> float:
    """The anomaly score of a strip, by `scoring.image_score`.

    Args:
        weights_hw: from `neighbor_weights`; for `reweighted` only.
    """
    if scoring.image_score == "top_mean":
        count = max(1, round(scoring.top_fraction * distances_hw.size))
        return float(np.partition(distances_hw, -count, axis=None)[-count:].mean())
    if scoring.image_score == "area":
        assert scoring.area_distance is not None, "a bank fills it in"
        return _area(distances_hw, scoring.area_distance)
    if scoring.image_score == "extreme_value":
        return _extreme_value(distances_hw)
    if scoring.image_score == "reweighted":
        assert weights_hw is not None
        place = int(distances_hw.argmax())
        return float(distances_hw.flat[place] * weights_hw.flat[place])
    return float(distances_hw.max())


def neighbor_weights(squared_QK: Floats) -> Floats:
    """PatchCore's equation 7, weights_Q in [0, 1): one minus the nearest vector's share among K, by exp(distance).

    Near one where the other vectors around are farther: a patch in a sparse part of the bank counts more. As in
    equation 7 but for whose neighbours count: the K nearest to the patch, where the paper takes those of its nearest
    vector, which a bank in several shards would have to be asked for a second time.
    """
    distances_QK = np.sqrt(squared_QK)
    shares_QK = np.exp(distances_QK - distances_QK.max(axis=1, keepdims=True))
    weights_Q: Floats = 1 - shares_QK[:, 0] / shares_QK.sum(axis=1)
    return weights_Q


def _area(distances_hw: Floats, limit: float) -> float:
    """Up to `limit` the largest distance; beyond, that limit times one plus the share of patches that exceed it."""
    if not np.isfinite(distances_hw).all():
        return math.nan
    share = float((distances_hw > limit).mean())
    return limit * (1 + share) if share else float(distances_hw.max())


def _extreme_value(distances_hw: Floats) -> float:
    """The expected largest of n block maxima under the Gumbel distribution that has their mean and deviation."""
    blocks = np.array_split(distances_hw, min(MAX_BLOCKS, distances_hw.shape[1]), axis=1)
    maxima_n = np.array([block_hw.max() for block_hw in blocks])
    scale = math.sqrt(6) / math.pi * float(maxima_n.std())
    return float(maxima_n.mean()) + scale * math.log(len(maxima_n))
