"""Criteria of convergence: C1 to C6 and the thesis's own. Pure functions of a trial's logs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LAST = 0.2
"""Share of a run, at its end, on which convergence is judged."""
MAX_CHANGE = 0.02
MAX_FOCAL_SHARE = 0.25
MIN_PIXEL_AP = 0.80
MAX_CV = 0.10
MAX_OVER_MEDIAN = 1.5
MAX_NORM_RATIO = 10.0
MAX_GAP = 0.10
SOON_STEPS, EVENTUALLY_STEPS = 1_500, 20_000
THESIS_TOTAL, THESIS_EPOCHS = 0.10, 50
STEPS_PER_THESIS_EPOCH = 228 / 8
CLAIM_SHARE, SCREEN_SHARE = 0.9, 0.8


def reconstruction_converged(losses: Sequence[float], steps: Sequence[int], floor: float) -> bool:
    """Check C1: the probe's reference reconstruction loss is at or below the blur floor and has stopped changing.

    Args:
        losses: one per look at the probe, on the unmasked foreground. steps: their steps; the last one is the run's
            length.
        floor: loss of the image blurred with sigma 2 as its own reconstruction.
    """
    late = tail(losses, steps)
    if not late or not all(map(math.isfinite, late)):
        return False
    return late[-1] <= floor and abs(late[-1] - late[0]) < MAX_CHANGE * late[0]


def segmentation_converged(focal: float, constant_focal: float, pixel_ap: float) -> bool:
    """Check C2: focal loss far below the best constant predictor's, and a pixel AP of at least 0.80."""
    return focal <= MAX_FOCAL_SHARE * constant_focal and pixel_ap >= MIN_PIXEL_AP


@dataclass(frozen=True)
class Stability:
    """The three figures of C3, over the last fifth of the steps."""

    cv: float
    max_over_median: float
    norm_p99_over_p50: float

    @property
    def holds(self) -> bool:
        figures = (self.cv, self.max_over_median, self.norm_p99_over_p50)
        limits = (MAX_CV, MAX_OVER_MEDIAN, MAX_NORM_RATIO)
        return all(figure <= limit for figure, limit in zip(figures, limits, strict=True))  # NaN is not <=


def stability(totals: Sequence[float], gradient_norms: Sequence[float], steps_per_epoch: int) -> Stability:
    """Measure C3 on a run's raw total and gradient norm per step.

    Args:
        steps_per_epoch: number of steps over which totals are averaged before their spread is taken.
    """
    count = max(steps_per_epoch, round(LAST * len(totals)))
    late = np.asarray(totals[-count:], dtype=float)
    norms = np.asarray(gradient_norms[-count:], dtype=float)
    if len(late) < steps_per_epoch or not (np.isfinite(late).all() and np.isfinite(norms).all()):
        return Stability(math.nan, math.nan, math.nan)
    late = late[len(late) % steps_per_epoch :].reshape(-1, steps_per_epoch).mean(axis=1)
    p50, p99 = np.percentile(norms, (50, 99))
    return Stability(
        cv=float(late.std() / late.mean()),
        max_over_median=float(late.max() / np.median(late)),
        norm_p99_over_p50=float(p99 / p50) if p50 > 0 else math.inf,
    )


def gap(train_mode_loss: float, eval_mode_loss: float) -> float:
    """Return the figure of C4: difference of the probe's loss between the modes, relative to training mode."""
    return abs(eval_mode_loss - train_mode_loss) / train_mode_loss if train_mode_loss > 0 else math.nan


def gap_closed(relative_gap: float) -> bool:
    """Check C4."""
    return relative_gap <= MAX_GAP


def first_step_below(losses: Sequence[float], steps: Sequence[int], limit: float) -> int | None:
    """Return the first probed step from which on the loss stays at or below `limit`; None if it never does."""
    first = None
    for loss, step in zip(losses, steps, strict=True):
        first = (first or step) if loss <= limit else None
    return first


def speed(step: int | None) -> str:
    """Classify C5: `soon` (as on MVTec), `eventually`, or `never` within the run."""
    if step is None or step > EVENTUALLY_STEPS:
        return "never"
    return "soon" if step <= SOON_STEPS else "eventually"


def share_of_seeds(converged: Sequence[bool]) -> Mapping[str, bool | float]:
    """Check C6: enough seeds converged to screen (4 of 5) or to claim (9 of 10, of at least ten)."""
    share = sum(converged) / len(converged) if converged else 0.0
    return {
        "share": share,
        "screened": len(converged) >= 3 and share >= SCREEN_SHARE,
        "claimed": len(converged) >= 10 and share >= CLAIM_SHARE,
    }


def thesis_converged(totals: Sequence[float], steps_per_epoch: int) -> bool:
    """Check the thesis's criterion: a smoothed raw total of at most 0.10 by epoch 50 (1,425 steps of its 228 tiles)."""
    horizon = round(THESIS_EPOCHS * STEPS_PER_THESIS_EPOCH)
    seen = np.asarray(totals[:horizon], dtype=float)
    if len(seen) < steps_per_epoch:
        return False
    means = np.convolve(seen, np.full(steps_per_epoch, 1 / steps_per_epoch), mode="valid")
    return bool((means <= THESIS_TOTAL).any())


def tail(values: Sequence[float], steps: Sequence[int]) -> list[float]:
    """Return the values probed in the last fifth of the steps, its beginning included."""
    if not steps:
        return []
    start = (1 - LAST) * steps[-1]
    return [value for value, step in zip(values, steps, strict=True) if step >= start - 1e-6]
