"""Charts as inline SVG, coloured by the page's style sheet so that they follow light and dark.

Matplotlib draws with placeholder colours, which CSS variables then replace. Every chart is small: the page sets charts
side by side, or one below another on a phone, without shrinking their text.
"""

import html
import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

WIDTH_IN, HEIGHT_IN = 5.0, 2.6
MAX_DOTS = 300
"""Dots of a sequence; of more values the medians of neighbours are drawn."""
_COLORS = {
    "#010101": "--ink",
    "#020202": "--muted",
    "#030303": "--line",
    "#040404": "--chart-current",
    "#050505": "--chart-reference",
    "#060606": "--look",
    "#070707": "--problem",
}
_PLACEHOLDER = {name: color for color, name in _COLORS.items()}
INK, MUTED, LINE, CURRENT, REFERENCE, REVIEW, REJECT = _PLACEHOLDER.values()
Mark = tuple[float, str, str]
"""Value, text and colour (`REVIEW` or `REJECT`) of a threshold."""
_STYLE: Any = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
}


def histogram(
    current_N: ArrayLike, reference_N: ArrayLike, marks: Sequence[Mark], label: str, description: str, chart_id: str
) -> Markup:
    """Draw this run's strips (filled) over the calibration strips (outline), as shares, with thresholds as lines.

    The share axis is a square root, which keeps a few outlying strips visible. The outermost bins also count the
    highest and the lowest thousandth.

    Args:
        marks: thresholds.
        label: title of the value axis.
        description: text for people who cannot see the chart.
        chart_id: a name, unique within the page.
    """
    current_N, reference_N = np.asarray(current_N, np.float64), np.asarray(reference_N, np.float64)
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": chart_id}):
        figure, axes = _figure()
        edges = _edges(current_N, reference_N, [value for value, _, _ in marks])
        if len(current_N):
            axes.stairs(_shares(current_N, edges), edges, fill=True, color=CURRENT, alpha=0.55, label="this run")
        if len(reference_N):
            shares = _shares(reference_N, edges)
            axes.stairs(shares, edges, color=REFERENCE, linewidth=1.6, label="calibration")
        axes.set_yscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
        highest = max(
            (_shares(sample_N, edges).max() for sample_N in (current_N, reference_N) if len(sample_N)), default=1
        )
        axes.set_ylim(0, (1.6 if marks else 1.1) * highest)  # room for the names of the thresholds
        ticks = [share for share in (0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0) if share <= 1.05 * highest]
        axes.set_yticks(ticks, [f"{100 * share:.0f}%" for share in ticks])
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        for value, text, color in marks:
            axes.axvline(value, color=color, linewidth=1.6, linestyle=(0, (4, 2)))
            leftwards = value > edges[0] + (0.25 if color == REVIEW else 0.7) * (edges[-1] - edges[0])
            axes.annotate(
                text,
                (value, 1.0 if color == REVIEW else 0.89),
                xycoords=("data", "axes fraction"),
                xytext=(-5 if leftwards else 5, 0),
                textcoords="offset points",
                ha="right" if leftwards else "left",
                va="top",
                color=color,
            )
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel(label)
        return _svg(figure, description)


def trend(values_N: ArrayLike, names: Sequence[str], description: str, chart_id: str, *, from_zero: bool) -> Markup:
    """Draw one value of the last runs, oldest first and this one last; runs without a value (NaN) leave a gap.

    Args:
        names: labels of the runs, such as their days.
        from_zero: start the axis at zero, as for a share; otherwise fit it to the values.
    """
    values_N = np.asarray(values_N, np.float64)
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": chart_id}):
        figure, axes = _figure(HEIGHT_IN * 0.8)
        places = np.arange(len(values_N))
        axes.plot(places, values_N, color=CURRENT, linewidth=2, marker="o", markersize=4)
        if len(values_N) and np.isfinite(values_N[-1]):
            axes.plot(places[-1:], values_N[-1:], color=INK, marker="o", markersize=7, linestyle="none")
        finite_N = values_N[np.isfinite(values_N)]
        if len(finite_N):
            room = max(
                0.35 * float(np.ptp(finite_N)), (0.2 if from_zero else 0.05) * float(np.abs(finite_N).max()), 1e-6
            )
            axes.set_ylim(0 if from_zero else float(finite_N.min()) - room, float(finite_N.max()) + room)
        step = max(1, -(-len(names) // 6))
        shown = [*places[::-1][::step]]
        axes.set_xticks(shown, [names[place] for place in shown])
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        return _svg(figure, description)


def sequence(values_N: ArrayLike, label: str, axis_label: str, description: str, chart_id: str) -> Markup:
    """Draw values in their order as dots, of neighbours the median if there are many, with a running median.

    Args:
        label: title of the value axis.
        axis_label: title of the other axis.
        description, chart_id: as of `histogram`.
    """
    values_N = np.asarray(values_N, np.float64)
    places = np.arange(len(values_N))
    blocks = np.array_split(places, max(1, min(MAX_DOTS, len(values_N))))
    medians = np.array([np.median(values_N[block]) for block in blocks])
    width = max(1, len(blocks) // 12)
    windows = [medians[max(0, place - width) : place + width + 1] for place in range(len(blocks))]
    centers = [float(block.mean()) + 1 for block in blocks]
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": chart_id}):
        figure, axes = _figure()
        axes.plot(centers, medians, color=CURRENT, marker="o", markersize=3, linestyle="none", alpha=0.6)
        axes.plot(centers, [np.median(window) for window in windows], color=INK, linewidth=1.6)
        axes.set_xlabel(axis_label)
        axes.set_ylabel(label)
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        return _svg(figure, description)


def _figure(height_in: float = HEIGHT_IN) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure, figure.add_subplot()


def _edges(
    current_N: NDArray[np.float64], reference_N: NDArray[np.float64], marks: Sequence[float]
) -> NDArray[np.float64]:
    samples = [sample_N for sample_N in (current_N, reference_N) if len(sample_N)]
    ends = [*marks, *(end for sample_N in samples for end in np.quantile(sample_N, (0.001, 0.999)))]
    if not ends:
        return np.linspace(0, 1, 2)
    low, high = min(ends), max(ends)
    room = max(0.03 * (high - low), 1e-6 * max(abs(high), 1.0))
    return np.linspace(low - room, high + room, 49)


def _shares(values_N: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    counts, _ = np.histogram(np.clip(values_N, edges[0], edges[-1]), edges)
    return counts / len(values_N)


def _svg(figure: Figure, description: str) -> Markup:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r"font-family: [^;\"]*; ?", "", text)
    text = re.sub(r' id="[a-z]+[.\w]*_\d+"| transform="rotate\(-0 [^"]*"', "", text)
    for placeholder, variable in _COLORS.items():
        text = text.replace(placeholder, f"var({variable})")
    text = re.sub(r"\s*\n\s*", " ", text)
    label = html.escape(description, quote=True)
    # every text is our own or escaped by matplotlib's XML writer
    return Markup(text.replace("<svg ", f'<svg class="chart" role="img" aria-label="{label}" ', 1))  # noqa: S704
