"""Figures of a dataset before any training: grain, blur floor, black, brightness, chroma and direction of its tiles.

Shapes: H height, W width, C channels (1 or 3) of a tile, pixels uint8; figures in grey levels of 255 unless said
otherwise.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steelray.config import ConfigError
from steelray.reconstruction.input import BLACK_LEVEL, black_fraction
from steelray.reconstruction.losses import SSIM_C2, ssim_map
from steelray.reconstruction.perlin import gaussian_blur

Pixels = NDArray[np.uint8]
SIGMA_PX = 2.0
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
THESIS_TOTALS = (0.05, 0.10)
FULLY_BLACK = 0.98


@dataclass(frozen=True)
class TileFigures:
    """Figures of one tile; all but `black_fraction` are of its foreground and NaN without one."""

    grain_sd: float
    """Standard deviation of the residual of a Gaussian blur of sigma 2."""
    floor: float
    """F = 1 - SSIM(tile, its blur of sigma 2)."""
    formula_floor: float
    """s² / (s² + C2) of the grain: the floor that the grain alone would cause."""
    black_fraction: float
    """Share of pixels that are not strip."""
    brightness: float
    """Mean grey level."""
    chroma: float
    """Mean over the pixels of the largest minus the smallest channel."""
    directionality: float
    """(λ1 - λ2) / (λ1 + λ2) of the structure tensor: 0 without direction, 1 with one only."""


FIGURE_TITLES = {
    "grain_sd": "grain sd (grey levels)",
    "floor": "blur floor F = 1 - SSIM",
    "formula_floor": "floor by the formula",
    "black_fraction": "black share",
    "brightness": "brightness (grey level)",
    "chroma": "chroma (grey levels)",
    "directionality": "directionality",
}


def measure_tile(pixels_HWC: Pixels) -> TileFigures:
    """Measure one tile."""
    grey_HW = pixels_HWC.mean(axis=2, dtype=np.float32)
    strip_HW = gaussian_blur(grey_HW, SIGMA_PX) >= BLACK_LEVEL
    black = black_fraction(pixels_HWC)
    if black > FULLY_BLACK:
        nan = float("nan")
        return TileFigures(nan, nan, nan, black, nan, nan, nan)
    blurred_HWC = gaussian_blur(pixels_HWC.astype(np.float32), SIGMA_PX)
    residual_HW = grey_HW - blurred_HWC.mean(axis=2)
    tile, blurred = (torch.from_numpy(values.transpose(2, 0, 1)[None] / np.float32(255))
                     for values in (pixels_HWC, blurred_HWC))  # fmt: skip
    losses_HW = 1 - ssim_map(blurred, tile)[0].mean(dim=0).numpy()
    grain_sd = float(residual_HW[strip_HW].std())
    down_HW, across_HW = np.gradient(grey_HW)
    a, b, c = (float((first * second)[strip_HW].mean())
               for first, second in ((down_HW, down_HW), (down_HW, across_HW), (across_HW, across_HW)))  # fmt: skip
    return TileFigures(
        grain_sd=grain_sd,
        floor=float(losses_HW[strip_HW].mean()),
        formula_floor=grain_floor(grain_sd / 255),
        black_fraction=black,
        brightness=float(grey_HW[strip_HW].mean()),
        chroma=float(np.ptp(pixels_HWC.astype(np.int16), axis=2)[strip_HW].mean()),
        directionality=float(np.hypot(a - c, 2 * b) / (a + c)) if a + c > 0 else 0.0,
    )


def summarize(tiles: Sequence[TileFigures]) -> dict[str, Any]:
    """Summarise tiles: quantiles of every figure, spread of the brightness, and the reach of a smooth reconstruction.

    Raises:
        ConfigError: not one tile with strip on it.
    """
    if not any(np.isfinite(tile.grain_sd) for tile in tiles):
        raise ConfigError("no nominal tiles to diagnose: there are none, or all of them are black")
    figures = {}
    for name in FIGURE_TITLES:
        values = np.array([getattr(tile, name) for tile in tiles], dtype=float)
        figures[name] = {f"q{quantile:g}": float(np.nanquantile(values, quantile)) for quantile in QUANTILES}
    floors = np.array([tile.floor for tile in tiles])
    floors = floors[np.isfinite(floors)]
    return {
        "num_tiles": len(tiles),
        "figures": figures,
        "brightness_spread": float(np.nanstd([tile.brightness for tile in tiles])),
        "mostly_black": float(np.mean([tile.black_fraction >= 0.25 for tile in tiles])),
        "reachable_ssim_loss": float(floors.mean()),
        "batch_sd": float(floors.std() / np.sqrt(8)),
        "tiles_above_thesis_total": {f"{total:g}": float((floors > total).mean()) for total in THESIS_TOTALS},
    }


def to_markdown(names: Sequence[str], summaries: Sequence[dict[str, Any]]) -> str:
    """Format datasets side by side: median (5 % to 95 %) of every figure, and the predicted SSIM loss."""
    lines = [f"| figure, per tile | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]

    def add(title: str, cells: Sequence[str]) -> None:
        lines.append(f"| {title} | {' | '.join(cells)} |")

    for figure, title in FIGURE_TITLES.items():
        quantiles = [summary["figures"][figure] for summary in summaries]
        add(title, [f"{q['q0.5']:.3g} ({q['q0.05']:.3g} to {q['q0.95']:.3g})" for q in quantiles])
    add("brightness spread between tiles", [f"{summary['brightness_spread']:.3g}" for summary in summaries])
    add("tiles at least a quarter black", [f"{summary['mostly_black']:.1%}" for summary in summaries])
    add("**SSIM loss a smooth reconstruction can reach** (mean floor)",
        [f"**{summary['reachable_ssim_loss']:.3f}**" for summary in summaries])  # fmt: skip
    add("sd of that between batches of 8", [f"{summary['batch_sd']:.3f}" for summary in summaries])
    for total in THESIS_TOTALS:
        cells = [f"{summary['tiles_above_thesis_total'][f'{total:g}']:.0%}" for summary in summaries]
        add(f"tiles whose floor alone is above {total:g}", cells)
    add("tiles", [str(summary["num_tiles"]) for summary in summaries])
    return "\n".join(lines) + "\n"


def as_rows(tiles: Sequence[TileFigures]) -> dict[str, list[float]]:
    """Return every figure as a list over the tiles."""
    return {name: [asdict(tile)[name] for tile in tiles] for name in FIGURE_TITLES}


def grain_floor(grain_sd: float) -> float:
    """Return the least 1 - SSIM that a smooth reconstruction of a grainy surface can reach: s² / (s² + C2).

    Args:
        grain_sd: s, the grain's standard deviation, for values in [0, 1]; not finite: 1 is returned.
    """
    return grain_sd**2 / (grain_sd**2 + SSIM_C2) if math.isfinite(grain_sd) else 1.0
