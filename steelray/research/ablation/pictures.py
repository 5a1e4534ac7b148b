"""Pictures of an ablation: its settings side by side, and the worst misses and false alarms of one setting.

Shapes: maps and masks HW, one per image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from steelray.evaluation.datasets import Sample
from steelray.evaluation.evaluate import Predictions, top_mean
from steelray.research.ablation.judging import TOP_FRACTION

FIGURES = {"image_auroc": "whole strip", "part_auroc": "part of a strip", "pixel_auroc": "pixel"}
SHOWN = 10


def draw_summaries(summaries: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the AUROC of every setting with its spread over the splits, as an SVG or PNG."""
    names = [summary["setting"] for summary in summaries]
    figure = Figure(figsize=(11, 1 + 0.28 * len(names)), layout="tight")
    axes: Any = figure.subplots(1, len(FIGURES), sharey=True)
    for axis, (key, title) in zip(axes, FIGURES.items(), strict=True):
        means = [summary["mean"][key] for summary in summaries]
        spreads = [summary["std"][key] for summary in summaries]
        axis.errorbar(means, range(len(names)), xerr=spreads, fmt="o", capsize=3)
        axis.set_title(f"AUROC, {title}")
        axis.grid(axis="x", alpha=0.4)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)


@dataclass(frozen=True)
class JudgedPart:
    """One part of a strip with its score and anomaly map."""

    key: str
    part: int
    """Number from the left, from 0."""
    defect_type: str
    """Defect type of the whole strip."""
    score: float
    image_HW: NDArray[np.uint8]
    map_HW: NDArray[np.float32]
    mask_HW: NDArray[np.bool_]


def worst_parts(
    samples: Sequence[Sample], predictions: Predictions, parts: int
) -> tuple[list[JudgedPart], list[JudgedPart]]:
    """Return the defective parts with the lowest scores and the nominal ones with the highest, at most ten each."""
    judged = []
    for sample, map_HW, mask_HW in zip(samples, predictions.anomaly_maps, predictions.masks, strict=True):
        columns = zip(
            np.array_split(sample.load().max(axis=2), parts, axis=1),
            np.array_split(map_HW, parts, axis=1),
            np.array_split(mask_HW, parts, axis=1),
            strict=True,
        )
        for part, (image, own_map, mask) in enumerate(columns):
            score = top_mean(own_map, max(1, int(TOP_FRACTION * own_map.size)))
            judged.append(JudgedPart(sample.key, part, sample.defect_type, score, image, own_map, mask))
    misses = sorted((one for one in judged if one.mask_HW.any()), key=lambda one: one.score)
    false_alarms = sorted((one for one in judged if not one.mask_HW.any()), key=lambda one: -one.score)
    return misses[:SHOWN], false_alarms[:SHOWN]


def draw_gallery(parts: Sequence[JudgedPart], threshold: float, path: Path) -> None:
    """Draw every part twice: with the labelled defect outlined, and as its anomaly map (threshold at mid scale)."""
    figure = Figure(figsize=(8, 2.75 * len(parts)), layout="tight")
    axes: Any = figure.subplots(len(parts), 2, squeeze=False)
    for row, part in zip(axes, parts, strict=True):
        row[0].imshow(part.image_HW, cmap="gray", vmin=0, vmax=255)
        if part.mask_HW.any():
            row[0].contour(part.mask_HW, levels=[0.5], colors="red", linewidths=0.8)
        row[0].set_title(f"{part.key}, part {part.part + 1} ({part.defect_type})", fontsize=9)
        row[1].imshow(part.map_HW, cmap="inferno", vmin=0, vmax=2 * threshold if threshold > 0 else None)
        row[1].set_title(f"score {part.score:.3g}, threshold {threshold:.3g}", fontsize=9)
        for axis in row:
            axis.set_axis_off()
    figure.savefig(path, dpi=70)
