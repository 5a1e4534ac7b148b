"""Several scorers as one: a bank per feature level, several backbones, several input sizes.

Each member's map is brought to the scale of nominal strips that it has not seen (mean 0, standard deviation 1) before
the weighted sum, so that no member counts more because its distances are larger.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steelray.scoring import AnomalyMaps, Images, Scorer, upsample


@dataclass(frozen=True)
class NominalScale:
    """What a member gives nominal strips that it was not fitted on."""

    map_mean: float
    map_sd: float
    score_mean: float
    score_sd: float

    @staticmethod
    def of(maps: AnomalyMaps, scores_N: NDArray[np.float32]) -> "NominalScale":
        """From the maps and scores of nominal strips. A constant member gets scale 1 and so says nothing."""
        values = np.concatenate([map_HW.ravel() for map_HW in maps])
        return NominalScale(
            float(values.mean()), float(values.std()) or 1.0, float(scores_N.mean()), float(scores_N.std()) or 1.0
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
            total_HW += np.float32(weight) * ((resized_HW - scale.map_mean) / scale.map_sd)
        maps.append(total_HW)
    scores_N = np.zeros(len(maps), dtype=np.float32)
    for (_, own_N), scale, weight in zip(answers, scales, weights, strict=True):
        scores_N += np.float32(weight) * ((own_N - scale.score_mean) / scale.score_sd)
    return maps, scores_N


class FusedScorer:
    """A weighted sum of scorers; itself a `Scorer`."""

    def __init__(self, members: Sequence[Scorer], scales: Sequence[NominalScale], weights: Sequence[float]) -> None:
        self.min_size_px = max(member.min_size_px for member in members)
        self._members, self._scales, self._weights = list(members), list(scales), list(weights)

    def score(self, images: Images) -> tuple[AnomalyMaps, NDArray[np.float32]]:
        return fuse([member.score(images) for member in self._members], self._scales, self._weights)
