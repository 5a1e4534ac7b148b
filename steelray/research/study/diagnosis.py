"""Diagnosis of two labelled datasets side by side: a table, figures, and the predicted SSIM loss."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from steelray.config import ConfigError, DatasetConfig
from steelray.evaluation.datasets import load_dataset
from steelray.imaging.decode import resize
from steelray.imaging.tiling import tile_grid
from steelray.provenance import git_commit, package_versions
from steelray.research.study.config import DiagnoseConfig
from steelray.research.study.diagnostics import (
    FIGURE_TITLES,
    TileFigures,
    as_rows,
    grain_floor,
    measure_tile,
    summarize,
    to_markdown,
)
from steelray.research.study.figures import draw

Pixels = NDArray[np.uint8]
COLORS = ("#3b7a3b", "#b3261e")


def diagnose(config: DiagnoseConfig, report: Callable[[str], None]) -> dict[str, Any]:
    """Write diagnosis.json, diagnosis.md and figures/*.svg; return the summaries.

    Raises:
        ConfigError: a dataset cannot be read, has no nominal tiles, or its images are smaller than a tile.
    """
    pairs = ((config.first, config.first_size_px), (config.second, config.second_size_px))
    names = [_name(dataset) for dataset, _ in pairs]
    measured = []
    for name, (dataset, size_px) in zip(names, pairs, strict=True):
        measured.append(
            [measure_tile(tile) for tile in normal_tiles(dataset, config.tile_px, size_px, config.max_tiles)]
        )
        report(f"{name}: {len(measured[-1])} tiles")
    summaries = [summarize(tiles) for tiles in measured]
    folder = Path(config.output_dir)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    pictures = {"quantities": _histograms(names, measured), "floor_by_grain": _floor_by_grain(names, measured)}
    for picture, svg in pictures.items():
        (folder / "figures" / f"{picture}.svg").write_text(svg + "\n")
    size = f"{config.tile_px[1]}x{config.tile_px[0]}"
    record: dict[str, Any] = {
        "datasets": dict(zip(names, summaries, strict=True)), "tile_px": config.tile_px,
        "resized_px": [config.first_size_px, config.second_size_px],
        "git_commit": git_commit(), "packages": package_versions(),
        "tiles": {name: as_rows(tiles) for name, tiles in zip(names, measured, strict=True)},
    }  # fmt: skip
    text = json.dumps(record, default=str, allow_nan=True).replace("NaN", "null")
    (folder / "diagnosis.json").write_text(text + "\n")
    (folder / "diagnosis.md").write_text(
        f"# Before any training: {names[0]} and {names[1]}\n\nTiles of {size} px; median (5 % to 95 %).\n\n"
        + to_markdown(names, summaries)
        + "".join(f"\n![{picture}](figures/{picture}.svg)\n" for picture in pictures)
    )
    return {"output_dir": config.output_dir, **record["datasets"]}


def _name(dataset: DatasetConfig) -> str:
    folder = Path(dataset.root).expanduser().resolve().name
    return folder if folder == dataset.kind else f"{dataset.kind} {folder}"


def normal_tiles(
    config: DatasetConfig, tile_px: tuple[int, int], size_px: tuple[int, int] | None, max_tiles: int
) -> list[Pixels]:
    """Cut at most `max_tiles` tiles, evenly spread, from a dataset's nominal images."""
    dataset = load_dataset(config)
    samples = [*dataset.fit, *(sample for sample in dataset.test if not sample.is_anomalous)]
    if not samples:
        raise ConfigError(f"{config.root}: no nominal images in it; give a dataset that has some")
    tiles: list[Pixels] = []
    per_image = math.ceil(max_tiles / len(samples))
    for sample in samples:
        pixels_HWC = sample.load() if size_px is None else resize(sample.load(), size_px)
        grid = tile_grid((pixels_HWC.shape[0], pixels_HWC.shape[1]), tile_px)
        chosen = np.unique(np.linspace(0, len(grid) - 1, min(per_image, len(grid))).round().astype(int))
        tiles.extend(grid[number].cut(pixels_HWC) for number in chosen)
        if len(tiles) >= max_tiles:
            break
    return tiles[:max_tiles]


def _histograms(names: Sequence[str], measured: Sequence[Sequence[TileFigures]]) -> str:
    shown = [figure for figure in FIGURE_TITLES if figure != "formula_floor"]

    def plot(axes: Sequence[Axes]) -> None:
        for axis, figure in zip(axes, shown, strict=True):
            both = [np.array([getattr(tile, figure) for tile in tiles], dtype=float) for tiles in measured]
            both = [values[np.isfinite(values)] for values in both]
            edges = np.histogram_bin_edges(np.concatenate(both), 24).tolist()
            for values, name, color in zip(both, names, COLORS, strict=True):
                axis.hist(values, bins=edges, weights=np.full(len(values), 1 / len(values)), alpha=0.55, color=color,
                          label=name)  # fmt: skip
            axis.set(xlabel=FIGURE_TITLES[figure], ylabel="share of tiles")
        axes[0].legend(fontsize=8)

    return draw(plot, len(shown), (3.2, 2.6))


def _floor_by_grain(names: Sequence[str], measured: Sequence[Sequence[TileFigures]]) -> str:
    def plot(axes: Sequence[Axes]) -> None:
        for tiles, name, color in zip(measured, names, COLORS, strict=True):
            axes[0].scatter([tile.grain_sd for tile in tiles], [tile.floor for tile in tiles], s=10, alpha=0.6,
                            color=color, label=name)  # fmt: skip
        levels = np.linspace(0, 20, 100)
        axes[0].plot(
            levels, [grain_floor(level / 255) for level in levels], color="black", lw=0.8, label="s²/(s² + C2)"
        )
        axes[0].axhspan(0.05, 0.1, color="grey", alpha=0.25, label="the thesis's target total")
        axes[0].set(xlabel=FIGURE_TITLES["grain_sd"], ylabel=FIGURE_TITLES["floor"], ylim=(0, 1))
        axes[0].legend(fontsize=8)

    return draw(plot, 1, (5.2, 3.8))
