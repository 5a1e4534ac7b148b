"""The study's figures as SVG text. Shapes: N tiles."""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from steelray.research.study.space import Axis
from steelray.research.study.verdicts import FIGURES, interval, values_by_seed

Row = dict[str, Any]
COLORS = {"baseline": "#b3261e", "fix": "#1b6ca8", "control": "#3b7a3b"}
OTHER = "#6b6b6b"
_STYLE: Any = {"svg.fonttype": "none", "font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False,
               "legend.frameon": False, "svg.hashsalt": "study", "text.parse_math": False}  # fmt: skip


def draw(plot: Callable[[Sequence[Axes]], None], panels: int = 1, size_in: tuple[float, float] = (4.6, 3.0)) -> str:
    """Draw panels side by side into an SVG element."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(size_in[0] * panels, size_in[1]), layout="constrained")
        plot([figure.add_subplot(1, panels, number + 1) for number in range(panels)])
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _of_arm(rows: Sequence[Row], arm: str) -> list[Row]:
    return [row for row in rows if row["arm"] == arm and row["status"] == "ok"]


def loss_curves(rows: Sequence[Row], steps_per_epoch: int) -> str:
    """Draw raw total, probe reconstruction loss and pixel AP of baseline and fix, one line per seed."""

    def plot(axes: Sequence[Axes]) -> None:
        for arm in ("baseline", "fix"):
            for number, row in enumerate(_of_arm(rows, arm)):
                label = arm if number == 0 else None
                totals = row["curves"]["train"]["total"]
                steps = steps_per_epoch * (np.arange(len(totals)) + 1)
                axes[0].plot(steps, totals, color=COLORS[arm], alpha=0.6, lw=1, label=label)
                probes = row["curves"]["probe"]
                for axis, name in ((axes[1], "reconstruction_loss"), (axes[2], "pixel_ap")):
                    values = [probed[name] for probed in probes]
                    axis.plot([p["step"] for p in probes], values, color=COLORS[arm], alpha=0.6, lw=1, label=label)
        floors = {row["probe"]["floor_loss"] for arm in COLORS for row in _of_arm(rows, arm)[:1] if arm != "control"}
        for floor in floors:
            axes[1].axhline(floor, color="black", lw=0.8, ls=":", label="blur floor")
        axes[0].axhline(0.1, color="black", lw=0.8, ls="--", label="the thesis's 0.10")
        axes[2].axhline(0.8, color="black", lw=0.8, ls=":", label="C2")
        titles = ("raw total (weights differ)", "probe reconstruction loss", "probe pixel AP")
        for axis, title in zip(axes, titles, strict=True):
            axis.set(xlabel="step", title=title, ylim=(0, None))
            axis.legend(fontsize=8)
        axes[0].set_ylim(0, 1)
        axes[1].set_ylim(0, 1)

    return draw(plot, 3)


def floor_against_reached(rows: Sequence[Row]) -> str:
    """Draw each probe tile's floor against the SSIM loss that baseline and fix reached on it (mean over seeds)."""

    def plot(axes: Sequence[Axes]) -> None:
        for arm in ("baseline", "fix"):
            found = _of_arm(rows, arm)
            if found:
                reached_N = np.mean([_numbers(row["curves"]["tile_ssim_loss"]) for row in found], axis=0)
                floor_N = _numbers(found[0]["curves"]["tile_floor"])
                axes[0].scatter(
                    floor_N, reached_N, s=12, color=COLORS[arm], alpha=0.7, label=f"{arm}, {len(found)} seeds"
                )
        axes[0].plot([0, 1], [0, 1], color="black", lw=0.8, ls=":")
        axes[0].set(xlabel="floor of the tile: 1 - SSIM of its own blur", ylabel="reached 1 - SSIM", xlim=(0, 1),
                    ylim=(0, 1))  # fmt: skip
        axes[0].legend(fontsize=8)

    return draw(plot, 1, (4.6, 4.2))


def arms_beside(rows: Sequence[Row], arms: Sequence[str], figure: str) -> str:
    """Draw one figure of several arms: a dot per seed, and the mean with its interval."""
    title = FIGURES[figure][0]
    shown = [arm for arm in arms if values_by_seed(rows, arm, figure)]

    def plot(axes: Sequence[Axes]) -> None:
        for place, arm in enumerate(reversed(shown)):
            values = list(values_by_seed(rows, arm, figure).values())
            mean, low, high = interval(values)
            color = COLORS.get(arm, OTHER)
            if math.isfinite(low):
                axes[0].plot([low, high], [place, place], color=color, lw=1.5)
            axes[0].plot(values, [place] * len(values), "o", color=color, ms=3.5, alpha=0.6)
            axes[0].plot([mean], [place], "|", color=color, ms=12)
        axes[0].set_yticks(
            range(len(shown)), [f"{arm} ({len(values_by_seed(rows, arm, figure))})" for arm in reversed(shown)]
        )
        axes[0].set(xlabel=title)
        low, high = axes[0].get_xlim()
        every = [value for arm in shown for value in values_by_seed(rows, arm, figure).values()]
        spread = (max(every, default=1) - min(every, default=0)) or 0.1
        axes[0].set_xlim(max(low, min(every, default=0) - spread), min(high, max(every, default=1) + spread))

    return draw(plot, 1, (6.4, 0.7 + 0.32 * max(1, len(shown))))


def axis_importance(rows: Sequence[Row], axes_searched: Sequence[Axis], figure: str) -> str:
    """Draw the absolute rank correlation of each axis of the search with the figure, over its trials."""
    found = [row for row in rows if row["status"] == "ok" and row["arm"] == "search"]

    def strength(axis: Axis) -> float:
        pairs = [(axis.place(row["settings"][axis.name]), FIGURES[figure][1](row)) for row in found
                 if axis.name in row["settings"]]  # fmt: skip
        if len(pairs) < 4:
            return 0.0
        places, values = np.array(pairs).T
        if np.ptp(places) == 0 or np.ptp(values) == 0:
            return 0.0
        return abs(float(stats.spearmanr(places, values).statistic))

    ordered = sorted(axes_searched, key=strength)

    def plot(axes: Sequence[Axes]) -> None:
        axes[0].barh([axis.name for axis in ordered], [strength(axis) for axis in ordered], color=OTHER)
        axes[0].set(xlabel=f"rank correlation with {FIGURES[figure][0]}", xlim=(0, 1))

    return draw(plot, 1, (6.4, 0.8 + 0.3 * len(ordered)))


def parallel_coordinates(rows: Sequence[Row], axes_searched: Sequence[Axis], figure: str) -> str:
    """Draw every trial of the search as a line over its axes' values, coloured by the figure."""
    found = [row for row in rows if row["status"] == "ok" and row["arm"] == "search"]
    values = [FIGURES[figure][1](row) for row in found]
    colors = matplotlib.colormaps["viridis"]

    def plot(axes: Sequence[Axes]) -> None:
        low, high = min(values, default=0), max(values, default=1)
        for row, value in zip(found, values, strict=True):
            heights = [axis.place(row["settings"][axis.name]) if axis.name in row["settings"] else np.nan
                       for axis in axes_searched]  # fmt: skip
            share = (value - low) / (high - low) if high > low else 0.5
            axes[0].plot([*range(len(heights)), len(heights)], [*heights, share], color=colors(share), lw=1)
        names = [axis.name.rpartition(".")[2] for axis in axes_searched]
        axes[0].set_xticks(range(len(names) + 1), [*names, FIGURES[figure][0]], rotation=40, ha="right", fontsize=8)
        axes[0].set_yticks([])

    return draw(plot, 1, (max(5.0, 0.8 * (len(axes_searched) + 1)), 3.4))


def _numbers(values: Sequence[float | None]) -> np.ndarray[Any, Any]:
    return np.array([np.nan if value is None else value for value in values], dtype=float)
