"""Thresholds for false-alarm rates below 1 / (n + 1), extrapolated from the tail of n scores.

A generalised Pareto distribution is fitted to the excesses of the highest quarter over the score below it (Pickands
1975; Coles 2001, chapter 4). Probability-weighted moments (Hosking and Wallis 1987) give its shape, which a few
excesses determine badly, so it is shrunk towards 0, the exponential tail. On simulated normal, gamma and lognormal
scores this was steadier than the unshrunk shape; a Gumbel distribution of all scores was wrong for the normal ones.

Of the interval of the true rate, the lower end comes from a bootstrap: the rates, under the fitted tail, of thresholds
from resampled scores. The upper end takes no tail for granted: it is Clopper and Pearson's for the number of scores
above the threshold, because no fit knows of strips unlike all of these.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import betaincinv

MIN_STRIPS = 10
"""Fewer scores have no tail to fit."""
TAIL_SHARE, MIN_TAIL, MAX_TAIL = 0.25, 5, 100
"""Share of the scores in the tail, and limits of their number."""
SHRINKAGE = 20
"""The shape counts as if it had been 0 in so many further excesses."""
MAX_SHAPE = 0.5
RESAMPLES = 400
CHUNK = 1_000_000
"""Scores that are resampled at once."""

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Tail:
    """A generalised Pareto tail, or one per row of a batch.

    Attributes:
        share: share of the scores above `start`.
        start, shape, scale: parameters of the distribution of the scores above `start`.
    """

    share: float
    start: Floats
    shape: Floats
    scale: Floats

    def value(self, rate: float) -> Floats:
        """Return the score that a strip exceeds at this rate."""
        excess = stats.genpareto.isf(min(rate / self.share, 1.0), self.shape)
        return np.asarray(self.start + self.scale * excess)

    def rate(self, value: Floats) -> Floats:
        """Return the share of strips with a higher score, for scores in the tail; `share` for those below it."""
        excess = (value - self.start) / np.maximum(self.scale, 1e-100)
        return np.asarray(self.share * stats.genpareto.sf(excess, self.shape))


def fit_tail(scores: Floats) -> Tail:
    """Fit the tail of at least `MIN_STRIPS` scores, or of every row of a batch of as many."""
    ordered = np.sort(np.asarray(scores, np.float64), axis=-1)
    count = ordered.shape[-1]
    size = min(max(MIN_TAIL, round(TAIL_SHARE * count)), MAX_TAIL)
    start = ordered[..., count - size - 1]
    excesses = ordered[..., count - size :] - start[..., None]
    mean = excesses.mean(axis=-1)
    weighted = (excesses * (np.arange(size)[::-1] / (size - 1))).mean(axis=-1)
    safe = np.where(mean > 0, mean, 1.0)  # the scores of a tail may all be the same
    shape = 2 - safe / np.maximum(safe - 2 * weighted, 1e-3 * safe)
    shape = np.clip(np.where(mean > 0, shape, 0.0) * size / (size + SHRINKAGE), -MAX_SHAPE, MAX_SHAPE)
    return Tail(size / count, start, shape, mean * (1 - shape))


def extrapolated(scores_N: Floats, rate: float) -> tuple[float, float, float]:
    """Return the threshold of a rate below 1 / (n + 1), and the 95 % interval of its true rate."""
    tail = fit_tail(scores_N)
    value = float(tail.value(rate))
    low, high = interval(scores_N, value, rate)
    return value, low, high


def interval(scores_N: Floats, value: float, rate: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of the true rate of an extrapolated threshold, made with a fixed seed."""
    edge = (1 - confidence) / 2
    count, above = len(scores_N), int((np.asarray(scores_N, np.float64) > value).sum())
    high = float(betaincinv(above + 1, count - above, 1 - edge))
    tail, rng = fit_tail(scores_N), np.random.default_rng(0)
    rates: list[Floats] = []
    step = max(1, CHUNK // count)
    for first in range(0, RESAMPLES, step):
        drawn = rng.integers(count, size=(min(step, RESAMPLES - first), count))
        refitted = fit_tail(scores_N[drawn])
        rates.append(np.stack([tail.rate(refitted.value(rate)), refitted.rate(np.asarray(value))]))
    low = np.quantile(np.concatenate(rates, axis=1), edge, axis=1).min()
    return min(float(low), rate), high
