"""The figures of an ablation's row: by whole strips, parts of strips, pixels and defect class.

Shapes: N images or parts of images; maps HW.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steelray.evaluation import metrics
from steelray.evaluation.datasets import NOMINAL
from steelray.evaluation.evaluate import Predictions, top_mean

TOP_FRACTION = 0.004
"""A part's score is the mean of this share of its highest pixels; 409 of a 400x256 quarter, as in the thesis."""


@dataclass(frozen=True)
class Judged:
    """Labels and scores of strips (N), of their parts, and of a sample of their pixels."""

    labels_N: NDArray[np.bool_]
    scores_N: NDArray[np.float32]
    kinds: list[str]
    part_labels_N: NDArray[np.bool_]
    part_scores_N: NDArray[np.float32]
    part_kinds: list[str]
    masks: list[NDArray[np.bool_]]
    maps: list[NDArray[np.float32]]


def judge(predictions: Predictions, *, parts: int, pixel_step: int) -> Judged:
    """Cut strips into parts of their width, and take every `pixel_step`-th pixel."""
    step, kinds = pixel_step, predictions.defect_types
    masks = [p for mask_HW in predictions.masks for p in np.array_split(mask_HW, parts, axis=1)]
    maps = [p for map_HW in predictions.anomaly_maps for p in np.array_split(map_HW, parts, axis=1)]
    return Judged(
        np.array([kind != NOMINAL for kind in kinds], dtype=bool),
        predictions.scores_N,
        kinds,
        np.array([mask.any() for mask in masks], dtype=bool),
        np.array([top_mean(part, max(1, int(TOP_FRACTION * part.size))) for part in maps], dtype=np.float32),
        [kind for kind in kinds for _ in range(parts)],
        [mask_HW[step // 2 :: step, step // 2 :: step] for mask_HW in predictions.masks],
        [map_HW[step // 2 :: step, step // 2 :: step] for map_HW in predictions.anomaly_maps],
    )


def together(groups: Sequence[Judged]) -> Judged:
    """Join several groups of strips."""
    columns = zip(*(vars(group).values() for group in groups), strict=True)
    joined = [np.concatenate(c) if isinstance(c[0], np.ndarray) else [v for part in c for v in part] for c in columns]
    return Judged(*joined)  # type: ignore[arg-type]


def figures_of(judged: Judged, *, pixels: bool) -> dict[str, float]:
    """Return AUROC of strips, parts and pixels; with `pixels` also AP, AUPRO and the best accuracy of any threshold."""
    figures = {
        "image_auroc": metrics.image_auroc(judged.labels_N, judged.scores_N),
        "part_auroc": metrics.image_auroc(judged.part_labels_N, judged.part_scores_N),
        "pixel_auroc": metrics.pixel_auroc(judged.masks, judged.maps),
    }
    if pixels:
        figures["part_best_accuracy"] = metrics.best_accuracy(judged.part_labels_N, judged.part_scores_N)[0]
        figures["pixel_ap"] = metrics.pixel_ap(judged.masks, judged.maps)
        figures["aupro"] = metrics.aupro(judged.masks, judged.maps)
    return figures


def by_class(judged: Judged, part_threshold: float) -> dict[str, dict[str, float]]:
    """Return AUROC against nominal strips and recall of parts per defect class; a strip may have several classes."""
    result = {}
    nominal_N = ~judged.labels_N
    clean_N = np.array([kind == NOMINAL for kind in judged.part_kinds])
    for name in sorted({word for kind in judged.kinds if kind != NOMINAL for word in kind.split("+")}):
        strips_N = np.array([name in kind.split("+") for kind in judged.kinds])
        parts_N = np.array([name in kind.split("+") for kind in judged.part_kinds]) & judged.part_labels_N
        either_N, either_part_N = strips_N | nominal_N, parts_N | clean_N
        result[name] = {
            "num_strips": int(strips_N.sum()),
            "image_auroc": metrics.image_auroc(strips_N[either_N], judged.scores_N[either_N]),
            "part_auroc": metrics.image_auroc(parts_N[either_part_N], judged.part_scores_N[either_part_N]),
            "part_recall": float((judged.part_scores_N[parts_N] > part_threshold).mean()),
        }
    return result
