"""Several scorers fused into one: their sum is on the scale of nominal strips."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from steelray.imaging.scorer import AnomalyMaps, Evidence, Floats, Images, Scorer
from steelray.models.ensemble import FusedScorer, NominalScale, fuse_maps, fuse_scores, scale_of


class Brightness(Scorer):
    """A scorer whose answers are easy to compute: grey levels times a gain, at a fraction of the size."""

    def __init__(self, gain: float, step: int = 1) -> None:
        self.min_size_px = step
        self._gain, self._step = np.float32(gain), step

    def measure(self, images: Images, keys: Sequence[str] | None = None) -> list[Evidence]:
        return [[self._gain * image[:: self._step, :: self._step, 0].astype(np.float32)] for image in images]

    def anomaly_map(self, evidence: Evidence, size_px: tuple[int, int]) -> Floats:
        return evidence[0]

    def anomaly_score(self, evidence: Evidence) -> float:
        return float(evidence[0].max())


def images(count: int, seed: int) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 16, 32, 1), dtype=np.uint8))


def scale_from(maps: AnomalyMaps, scores_N: NDArray[np.float32]) -> NominalScale:
    means, peaks = (np.array([function(map_HW) for map_HW in maps], np.float32) for function in (np.mean, np.max))
    return scale_of(pa.table({"map_mean": means, "map_peak": peaks, "anomaly_score": scores_N}))


def test_a_member_counts_by_its_weight_and_not_by_its_units() -> None:
    nominal, tested = images(6, 0), images(3, 1)
    small, large = Brightness(0.01), Brightness(1000.0)
    scales = [scale_from(*member.score(nominal)) for member in (small, large)]
    maps, scores = FusedScorer([small, large], scales, [1.0, 1.0]).score(tested)
    [map_HW], [score] = small.score(tested[:1])
    twice, double = fuse_maps([map_HW], scales[:1], [2.0]), fuse_scores([float(score)], scales[:1], [2.0])
    np.testing.assert_allclose(maps[0], twice, atol=1e-3)
    assert scores[0] == pytest.approx(double, abs=1e-3)
    nominal_maps, nominal_scores = FusedScorer([small, large], scales, [0.5, 0.5]).score(nominal)
    assert np.concatenate(nominal_maps).mean() == pytest.approx(0, abs=1e-4)
    assert np.mean([map_HW.max() for map_HW in nominal_maps]) == pytest.approx(1, abs=1e-4)
    assert nominal_scores.std() == pytest.approx(1, abs=1e-4)
    assert nominal_scores.mean() == pytest.approx(0, abs=1e-4)


def test_maps_of_another_size_are_resized_to_the_first_ones() -> None:
    scale = NominalScale(0.0, 1.0, 0.0, 1.0)
    fused = FusedScorer([Brightness(1.0), Brightness(1.0, step=4)], [scale, scale], [1.0, 1.0])
    assert fused.min_size_px == 4
    grey = [np.full((16, 32, 1), 10, np.uint8)]
    [map_HW], _ = fused.score(grey)
    np.testing.assert_allclose(map_HW, np.full((16, 32), 20.0), rtol=1e-5)


def test_a_member_that_answers_the_same_for_every_strip_adds_nothing() -> None:
    constant = scale_from([np.full((4, 4), 7.0, np.float32)], np.array([7.0], np.float32))
    assert not fuse_maps([np.full((4, 4), 7.0, np.float32)], [constant], [1.0]).any()
    assert fuse_scores([7.0], [constant], [1.0]) == 0.0
