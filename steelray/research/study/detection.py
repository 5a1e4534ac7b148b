"""Figures of detection on whole strips. Single process, no Ray."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from steelray.evaluation.datasets import NOMINAL, Sample
from steelray.evaluation.metrics import image_auroc, pixel_ap, pixel_auroc
from steelray.imaging.scorer import Scorer
from steelray.reconstruction.scorer import smooth_map

MAP_STRIDE_PX = 4
"""Pixel figures are taken on every fourth pixel of both axes."""
STEP = slice(None, None, MAP_STRIDE_PX)


@dataclass(frozen=True)
class ScoredStrips:
    """Strips with a method's scores and maps.

    Attributes:
        labels_N: True where defective. scores_N: per strip. maps: float32 HW each. masks: bool, every fourth pixel.
    """

    labels_N: NDArray[np.bool_]
    scores_N: NDArray[np.float32]
    maps: Sequence[NDArray[np.float32]]
    masks: Sequence[NDArray[np.bool_]]

    def smoothed(self, sigma_px: float) -> "ScoredStrips":
        """Return the strips with maps smoothed as by `draem.map_sigma_px`, and the same scores; 0 changes nothing."""
        if sigma_px == 0:
            return self
        maps = [smooth_map(map_HW, sigma_px) for map_HW in self.maps]
        return ScoredStrips(self.labels_N, self.scores_N, maps, self.masks)

    def pixel_auroc(self) -> float:
        return pixel_auroc(self.masks, self._thinned())

    def figures(self) -> dict[str, float]:
        """Return pixel and image AUROC, pixel AP and the number of strips; needs clean and defective strips."""
        maps = self._thinned()
        return {
            "image_auroc": image_auroc(self.labels_N, self.scores_N),
            "pixel_auroc": pixel_auroc(self.masks, maps),
            "pixel_ap": pixel_ap(self.masks, maps),
            "num_test": float(len(self.labels_N)),
            "num_anomalous": float(self.labels_N.sum()),
        }

    def _thinned(self) -> list[NDArray[np.float32]]:
        return [map_HW[STEP, STEP] for map_HW in self.maps]


def share_beyond_tile(masks: Sequence[NDArray[np.bool_]], tile_px: tuple[int, int]) -> float:
    """Return the share of the defective pixels whose defect (connected region) is both higher and wider than a tile.

    A tile in the middle of such a defect shows nothing nominal. NaN without a defective pixel.
    """
    larger = total = 0
    for mask_HW in masks:
        regions_HW, _ = ndimage.label(mask_HW)
        for number, (rows, columns) in enumerate(ndimage.find_objects(regions_HW), start=1):
            area = int((regions_HW[rows, columns] == number).sum())
            total += area
            larger += area * (rows.stop - rows.start > tile_px[0] and columns.stop - columns.start > tile_px[1])
    return larger / total if total else math.nan


def score_strips(scorer: Scorer, samples: Sequence[Sample]) -> ScoredStrips:
    """Score whole strips, one after another."""
    scores, maps, masks = [], [], []
    for sample in samples:
        image_maps, image_scores = scorer.score([sample.load()])
        height_px, width_px = image_maps[0].shape
        scores.append(float(image_scores[0]))
        maps.append(image_maps[0])
        masks.append(sample.load_mask((height_px, width_px))[STEP, STEP])
    labels = [sample.defect_type != NOMINAL for sample in samples]
    return ScoredStrips(np.array(labels), np.array(scores, dtype=np.float32), maps, masks)
