"""Loss curves of a training run as a picture, in the style of the thesis's figures 16 and 17."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

TERMS = ("total", "l2", "ssim", "focal")
SMOOTH_ROWS = 10
"""Rows in the running mean; a tenth of the run if it has fewer than ten times as many."""
THESIS_RANGE = (0.05, 0.1)
"""Total loss at which the thesis calls DRAEM converged on MVTec."""


def loss_curves_png(rows: Sequence[Mapping[str, float]], title: str) -> bytes:
    """Plot the total loss and its terms over the epochs, with running means, on a logarithmic scale.

    Args:
        rows: the run's metrics: `epoch`, `total` and the terms of its network. With `ssim` among them (DRAEM) the
            thesis's range of convergence is shaded.
    """
    figure = Figure(figsize=(8, 4), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    epochs = np.array([row["epoch"] for row in rows])
    present = [
        term for term in TERMS if term in rows[0] and not (term == "total" and len(rows[0].keys() & {*TERMS}) == 2)
    ]
    for number, term in enumerate(present):
        values = np.array([row[term] for row in rows])
        axes.plot(epochs, values, color=f"C{number}", alpha=0.3, linewidth=0.8)
        axes.plot(epochs, _running_mean(values), color=f"C{number}", linewidth=1.6, label=term)
    if "ssim" in present:
        axes.axhspan(*THESIS_RANGE, color="0.85", zorder=0, label="thesis: converged (total)")
    axes.set(yscale="log", xlabel="epoch", ylabel="loss", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    body = io.BytesIO()
    figure.savefig(body, format="png")
    return body.getvalue()


def _running_mean(values_N: Any) -> Any:
    """Average each value with those before it, fewer at the start."""
    sums = np.cumsum(np.insert(values_N, 0, 0.0))
    ends = np.arange(1, len(values_N) + 1)
    starts = np.maximum(0, ends - max(1, min(SMOOTH_ROWS, len(values_N) // 10)))
    return (sums[ends] - sums[starts]) / (ends - starts)
