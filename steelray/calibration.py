"""Thresholds from held-out nominal strips, for a stated false-alarm rate (split conformal prediction).

With n held-out scores the ceil((n + 1)(1 - rate))-th smallest is exceeded by a fresh nominal strip with probability at
most `rate` (Vovk et al. 2005; exchangeable strips). Where n is too small for the rate, the largest score is all that
the data support, and the calibration says which rate that is.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelray.config import ConfigError


@dataclass(frozen=True)
class Calibration:
    """Stored with the bank.

    Attributes:
        threshold: a strip with a larger anomaly_score is flagged.
        pixel_threshold: a pixel with a larger anomaly_map value belongs to a defect; no more than `attained_rate` of
            nominal strips have one.
        false_alarm_rate: asked for.
        attained_rate: what `num_strips` strips support; larger than asked for where they are too few.
        scores: the held-out strips' anomaly scores, rising.
        map_peaks: the largest anomaly_map value of each, rising.
        map_median: median anomaly_map value of nominal pixels: where heatmaps begin.
    """

    threshold: float
    pixel_threshold: float
    false_alarm_rate: float
    attained_rate: float
    num_strips: int
    map_median: float
    scores: tuple[float, ...]
    map_peaks: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """For bank.json."""
        return asdict(self)

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> "Calibration":
        """From bank.json."""
        return Calibration(**{**raw, "scores": tuple(raw["scores"]), "map_peaks": tuple(raw["map_peaks"])})


def conformal_quantile(values_N: NDArray[np.floating[Any]], rate: float) -> tuple[float, float]:
    """The threshold that a fresh exchangeable value exceeds with probability at most `rate`.

    Returns:
        The threshold and the rate that it guarantees: `rate`, or 1 / (n + 1) where n values are too few for it.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    count = len(values_N)
    if count == 0 or not np.isfinite(values_N).all():
        raise ValueError("a threshold needs at least one finite score")
    rank = math.ceil((count + 1) * (1 - rate))
    return float(np.sort(values_N)[min(rank, count) - 1]), max(rate, 1 / (count + 1))


def calibrate(
    scores_N: NDArray[np.floating[Any]],
    map_peaks_N: NDArray[np.floating[Any]],
    map_median: float,
    false_alarm_rate: float,
) -> Calibration:
    """Sets both thresholds on held-out nominal strips.

    Raises:
        ConfigError: there are none, or their scores are not finite.
    """
    try:
        threshold, attained_rate = conformal_quantile(scores_N, false_alarm_rate)
        pixel_threshold, _ = conformal_quantile(map_peaks_N, false_alarm_rate)
    except ValueError as error:
        raise ConfigError(f"no threshold can be set on {len(scores_N)} held-out strips: {error}") from None
    return Calibration(
        threshold=threshold,
        pixel_threshold=pixel_threshold,
        false_alarm_rate=false_alarm_rate,
        attained_rate=attained_rate,
        num_strips=len(scores_N),
        map_median=map_median,
        scores=tuple(float(v) for v in np.sort(scores_N)),
        map_peaks=tuple(float(v) for v in np.sort(map_peaks_N)),
    )
