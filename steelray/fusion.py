"""Several scorers as one: a bank per feature level, several backbones, several input sizes, several methods.

Each member is brought to the scale of nominal strips that it has not seen before the weighted sum, so that no member
counts more because its distances are larger.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelray.scoring import AnomalyMaps, Images, Scorer, upsample


@dataclass(frozen=True)
class NominalScale:
    """What a member gives nominal strips that it was not fitted on."""

    map_offset: float
    """Mean of its anomaly maps: becomes 0."""
    map_scale: float
    """How far above that offset the peak of such a strip's map lies on average: becomes 1."""
    score_offset: float
    """Mean of its anomaly scores: becomes 0."""
    score_sd: float
    """Standard deviation of its anomaly scores: becomes 1."""

    @staticmethod
    def of(
        map_means_N: NDArray[np.floating[Any]],
        map_peaks_N: NDArray[np.floating[Any]],
        scores_N: NDArray[np.floating[Any]],
    ) -> "NominalScale":
        """From what score rows keep of nominal strips. A constant member gets scale 1 and so says nothing.

        Args:
            map_means_N, map_peaks_N: mean and largest anomaly_map value of each strip.
        """
        means, peaks, scores = (values.astype(np.float64) for values in (map_means_N, map_peaks_N, scores_N))
        above = float(peaks.mean() - means.mean())
        spread = float(scores.std())
        return NominalScale(
            map_offset=float(means.mean()),
            map_scale=above if above > 0 else 1.0,
            score_offset=float(scores.mean()),
            score_sd=spread if spread > 0 else 1.0,
        )


def fuse(
    answers: Sequence[tuple[AnomalyMaps, NDArray[np.float32]]],
    scales: Sequence[NominalScale],
    weights: Sequence[float],
) -> tuple[AnomalyMaps, NDArray[np.float32]]:
    """The weighted sum of the members' answers for the same images, at the size of the first member's maps."""
    maps: AnomalyMaps = []
    for of_image in zip(*(answer[0] for answer in answers), strict=True):
        size = of_image[0].shape[:2]
        total_HW = np.zeros(size, dtype=np.float32)
        for map_HW, scale, weight in zip(of_image, scales, weights, strict=True):
            resized_HW = map_HW if map_HW.shape == size else upsample(map_HW, size, 0.0)
            total_HW += np.float32(weight) * ((resized_HW - scale.map_offset) / scale.map_scale)
        maps.append(total_HW)
    scores_N = np.zeros(len(maps), dtype=np.float32)
    for (_, own_N), scale, weight in zip(answers, scales, weights, strict=True):
        scores_N += np.float32(weight) * ((own_N - scale.score_offset) / scale.score_sd)
    return maps, scores_N


class FusedScorer:
    """A weighted sum of scorers; itself a `Scorer`."""

    def __init__(self, members: Sequence[Scorer], scales: Sequence[NominalScale], weights: Sequence[float]) -> None:
        self.min_size_px = max(member.min_size_px for member in members)
        self._members, self._scales, self._weights = list(members), list(scales), list(weights)

    def score(self, images: Images) -> tuple[AnomalyMaps, NDArray[np.float32]]:
        return fuse([member.score(images) for member in self._members], self._scales, self._weights)
