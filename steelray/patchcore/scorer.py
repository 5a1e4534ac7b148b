"""PatchCore's scorer: anomaly maps and scores from distances to the memory bank, and the boxes of regions.

Shapes: H height, W width, C channels of an image as the network sees it; h, w the patch grid; Q = h·w queries.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from steelray.imaging.scorer import Evidence, Floats, Images, Scorer
from steelray.patchcore.config import OWN_STRIP_MARGIN_CELLS, ScoringConfig
from steelray.patchcore.index import BankSearch, PendingSearch
from steelray.patchcore.leave_out import OwnVectors
from steelray.patchcore.own_strip import own_strip_distances
from steelray.patchcore.portable_embedder import Embedder
from steelray.schema import Row

FLIPS: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "vertical": ((), (1,)),
    "horizontal": ((), (2,)),
    "both": ((), (1,), (2,)),
}
"""Axes of BHWC along which an image is mirrored, for each of its passes."""

MAX_BOXES = 50
MIN_BOX_AREA_PX = 16
MAX_BLOCKS = 16
"""Blocks along the strip for `extreme_value`: few enough that each holds many patches, enough to see their spread."""


class PatchCoreScorer(Scorer):
    """Scores images by the distances of patches to their nearest vectors in the memory bank (PatchCore, section 3.3).

    Differs from the paper: the image score is re-weighted only on request, and distances are Euclidean, not squared.
    The options of `ScoringConfig` beyond the paper's (the strip as its own reference, mirrored passes) change the
    distances from which map and score are made. An image whose embedding is not finite gets NaN for both.

    Args:
        own: vectors by nominal strip, which are left out when `measure` is given its key.
    """

    def __init__(
        self, embedder: Embedder, search: BankSearch, scoring: ScoringConfig, own: OwnVectors | None = None
    ) -> None:
        self.min_size_px = embedder.min_size_px
        self.num_grids = 2 if scoring.image_score == "reweighted" else 1
        self.embedder = embedder
        self._search = search
        self._scoring = scoring
        self._own = own or {}

    def measure(self, images: Images, keys: Sequence[str] | None = None) -> list[Evidence]:
        """Return distances_hw of each image and, if its score is `reweighted`, weights_hw."""
        left_out = [None] * len(images) if keys is None else [self._own.get(key) for key in keys]
        views: list[tuple[_View, ...]] = []
        # all searches of a batch start before the first answer is awaited
        resized = zip((self.embedder.resized(image) for image in images), left_out, strict=True)
        for _, group in groupby(resized, key=lambda pair: pair[0].shape):
            stack, without = zip(*group, strict=True)
            stack_BHWC = np.stack(stack)
            passes = [self._submit(stack_BHWC, without, axes) for axes in FLIPS[self._scoring.test_flips]]
            views.extend(zip(*passes, strict=True))
        evidence = []
        for of_image in views:
            answers = [self._distances(view) for view in of_image]
            evidence.append([np.mean(grids, axis=0) for grids in zip(*answers, strict=True)])
        return evidence

    def anomaly_map(self, evidence: Evidence, size_px: tuple[int, int]) -> Floats:
        if self.embedder.config.resize_px is not None:
            return upsample(evidence[0], self.embedder.config.resize_px, self._scoring.sigma_px)
        sigma_px = self._scoring.sigma_px / self.embedder.scale
        return upsample(evidence[0], self.embedder.covered_px(size_px), sigma_px)[: size_px[0], : size_px[1]]

    def covered_px(self, size_px: tuple[int, int]) -> list[tuple[int, int]]:
        return [self.embedder.covered_px(size_px)] * self.num_grids

    def anomaly_score(self, evidence: Evidence) -> float:
        return image_score(evidence[0], evidence[1] if len(evidence) > 1 else None, self._scoring)

    def _submit(
        self, stack_BHWC: NDArray[np.uint8], without: Sequence[NDArray[np.int64] | None], axes: tuple[int, ...]
    ) -> "list[_View]":
        """Embed images mirrored along axes of BHWC and start their searches."""
        views = []
        for embeddings_hwD, without_M in zip(self.embedder.embed(np.flip(stack_BHWC, axes)), without, strict=True):
            finite = bool(np.isfinite(embeddings_hwD).all())
            if not finite:
                embeddings_hwD = np.zeros_like(embeddings_hwD)  # no index can search NaN
            rows, columns, dim = embeddings_hwD.shape
            queries_QD = embeddings_hwD.reshape(-1, dim)
            future = self._search.submit(queries_QD, self._scoring.num_searched, without_M)
            own_hw = None
            if self._scoring.own_strip_fraction > 0:
                fraction, margin = self._scoring.own_strip_fraction, OWN_STRIP_MARGIN_CELLS
                own_hw = own_strip_distances(embeddings_hwD, fraction, margin)
            views.append(_View(future, (rows, columns), finite, axes, own_hw))
        return views

    def _distances(self, view: "_View") -> Evidence:
        """Return distances_hw of a view and, if the score needs them, weights_hw; both mirrored back."""
        axes = tuple(axis - 1 for axis in view.axes)
        squared_QK, _ = view.search.result()
        distances_Q = np.sqrt(squared_QK[:, : self._scoring.num_neighbors]).mean(axis=1)
        distances_hw: Floats = np.flip(distances_Q.reshape(view.grid), axes)
        if view.own_hw is not None:
            distances_hw = np.minimum(distances_hw, np.flip(view.own_hw, axes))
        if not view.finite:
            distances_hw = np.full_like(distances_hw, np.nan)
        if self._scoring.image_score != "reweighted":
            return [distances_hw]
        return [distances_hw, np.flip(neighbor_weights(squared_QK).reshape(view.grid), axes)]


@dataclass(frozen=True)
class _View:
    """An image, perhaps mirrored, whose search is under way."""

    search: PendingSearch
    grid: tuple[int, int]
    finite: bool
    axes: tuple[int, ...]
    own_hw: NDArray[np.float32] | None


def upsample(grid_hw: NDArray[np.float32], size_px: tuple[int, int], sigma_px: float) -> NDArray[np.float32]:
    """Upsample a grid bilinearly and smooth it with a Gaussian, as PatchCore does: map_HW.

    Both steps are linear and separable, so each axis is one small matrix, and the whole two matrix products.
    """
    rows_Hh = _axis_matrix(grid_hw.shape[0], size_px[0], sigma_px)
    columns_Ww = _axis_matrix(grid_hw.shape[1], size_px[1], sigma_px)
    return (rows_Hh @ grid_hw.astype(np.float32)) @ columns_Ww.T


@lru_cache(maxsize=32)
def _axis_matrix(cells: int, pixels: int, sigma_px: float) -> NDArray[np.float32]:
    centers = np.clip((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0, cells - 1)
    lower = np.minimum(np.floor(centers).astype(int), max(cells - 2, 0))
    weight = centers - lower
    matrix = np.zeros((pixels, cells))
    matrix[np.arange(pixels), lower] += 1 - weight
    matrix[np.arange(pixels), np.minimum(lower + 1, cells - 1)] += weight
    if sigma_px > 0:
        matrix = ndimage.gaussian_filter1d(matrix, sigma_px, axis=0, mode="nearest")
    return matrix.astype(np.float32)


def find_regions(
    map_HW: NDArray[np.float32], threshold: float, image_size_px: tuple[int, int]
) -> tuple[float, list[Row]]:
    """Find the regions in which an anomaly map exceeds a threshold.

    Args:
        image_size_px: height and width of the image as stored; boxes are in its pixels.

    Returns:
        The share of pixels above the threshold, and boxes (schema `BOX`) of the connected regions of at least
        `MIN_BOX_AREA_PX`, highest peak first, at most `MAX_BOXES`.
    """
    above_HW = map_HW > threshold
    fraction = float(above_HW.mean())
    if fraction == 0:
        return 0.0, []
    row_scale, column_scale = image_size_px[0] / map_HW.shape[0], image_size_px[1] / map_HW.shape[1]
    labels_HW, _ = ndimage.label(above_HW)
    boxes = []
    for number, place in enumerate(ndimage.find_objects(labels_HW), start=1):
        inside = labels_HW[place] == number
        if inside.sum() * row_scale * column_scale < MIN_BOX_AREA_PX:
            continue
        rows, columns = place
        top, bottom = int(rows.start * row_scale), int(np.ceil(rows.stop * row_scale))
        left, right = int(columns.start * column_scale), int(np.ceil(columns.stop * column_scale))
        boxes.append(
            {
                "left_px": left,
                "top_px": top,
                "width_px": right - left,
                "height_px": bottom - top,
                "peak_score": float(map_HW[place][inside].max()),
            }
        )
    return fraction, sorted(boxes, key=lambda box: -box["peak_score"])[:MAX_BOXES]


def image_score(distances_hw: Floats, weights_hw: Floats | None, scoring: ScoringConfig) -> float:
    """Return the anomaly score of a strip, by `scoring.image_score`.

    Args:
        weights_hw: from `neighbor_weights`; None unless the score is `reweighted`.
    """
    if scoring.image_score == "top_mean":
        count = max(1, round(scoring.top_fraction * distances_hw.size))
        return float(np.partition(distances_hw, -count, axis=None)[-count:].mean())
    if scoring.image_score == "extreme_value":
        return _extreme_value(distances_hw)
    if scoring.image_score == "reweighted":
        assert weights_hw is not None
        place = int(distances_hw.argmax())
        return float(distances_hw.flat[place] * weights_hw.flat[place])
    return float(distances_hw.max())


def neighbor_weights(squared_QK: Floats) -> Floats:
    """Return weights_Q in [0, 1): one minus the nearest vector's share among K, by exp(distance).

    A weight is near one if the other vectors are farther, so a patch in a sparse part of the bank counts more. Differs
    from PatchCore's equation 7: the K vectors are the nearest to the patch, not to its nearest vector, which would take
    a second search of the bank.
    """
    distances_QK = np.sqrt(squared_QK)
    shares_QK = np.exp(distances_QK - distances_QK.max(axis=1, keepdims=True))
    weights_Q: Floats = 1 - shares_QK[:, 0] / shares_QK.sum(axis=1)
    return weights_Q


def _extreme_value(distances_hw: Floats) -> float:
    """Return the expected largest of n block maxima under the Gumbel distribution with their mean and deviation."""
    blocks = np.array_split(distances_hw, min(MAX_BLOCKS, distances_hw.shape[1]), axis=1)
    maxima_n = np.array([block_hw.max() for block_hw in blocks])
    scale = math.sqrt(6) / math.pi * float(maxima_n.std())
    return float(maxima_n.mean()) + scale * math.log(len(maxima_n))
