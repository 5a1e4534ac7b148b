"""Detection metrics on raw scores. Labels are boolean, True = anomalous; a larger score is more anomalous.

Shapes: N images or pixels; maps and masks are sequences of HW arrays, one per image.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]

AUPRO_POINTS = 500


def image_auroc(labels_N: Bools, scores_N: Floats) -> float:
    """Return the area under the ROC curve. Raise `ValueError` unless both classes occur."""
    _check_both(labels_N)
    return float(roc_auc_score(labels_N, scores_N))


def pixel_auroc(masks: Sequence[Bools], anomaly_maps: Sequence[Floats]) -> float:
    """Return the area under the ROC curve over all pixels of all images."""
    return image_auroc(*_flat(masks, anomaly_maps))


def pixel_ap(masks: Sequence[Bools], anomaly_maps: Sequence[Floats]) -> float:
    """Return the average precision over all pixels of all images."""
    labels_N, scores_N = _flat(masks, anomaly_maps)
    _check_both(labels_N)
    return float(average_precision_score(labels_N, scores_N))


def aupro(masks: Sequence[Bools], anomaly_maps: Sequence[Floats], *, max_fpr: float = 0.3) -> float:
    """Return the area under the per-region overlap curve up to a false-positive rate, scaled to [0, 1].

    See Bergmann et al. 2020. A region is an 8-connected component of a mask; its overlap is the share of its pixels
    above the threshold. The curve is sampled at `AUPRO_POINTS` false-positive rates and is linear between thresholds,
    as a ROC curve is.
    """
    labels_N, scores_N = _flat(masks, anomaly_maps)
    _check_both(labels_N)
    negatives = np.sort(scores_N[~labels_N])
    fprs = np.linspace(0, max_fpr, AUPRO_POINTS)
    ranks = np.clip(len(negatives) - 1 - np.floor(fprs * len(negatives)).astype(np.int64), 0, len(negatives) - 1)
    thresholds = negatives[ranks]
    # if nominal pixels tie, interpolate between the rate of the pixels above the tie and that including the tie
    above, at_least = (1 - np.searchsorted(negatives, thresholds, side) / len(negatives) for side in ("right", "left"))
    share = np.clip((fprs - above) / (at_least - above), 0, 1)
    overlaps = []
    for mask_HW, map_HW in zip(masks, anomaly_maps, strict=True):
        regions_HW, count = ndimage.label(mask_HW, structure=np.ones((3, 3)))
        for region in range(1, count + 1):
            values = np.sort(map_HW[regions_HW == region])
            at_most, below = (np.searchsorted(values, thresholds, side) / len(values) for side in ("right", "left"))
            overlaps.append(1 - (1 - share) * at_most - share * below)
    return float(np.trapezoid(np.mean(overlaps, axis=0), fprs) / max_fpr)


def best_accuracy(labels_N: Bools, scores_N: Floats) -> tuple[float, float]:
    """Return the highest accuracy of any threshold on these labels (optimistic), and that threshold."""
    _check_both(labels_N)
    fpr, tpr, thresholds = roc_curve(labels_N, scores_N, drop_intermediate=False)
    positives = int(labels_N.sum())
    accuracies = (tpr * positives + (1 - fpr) * (len(labels_N) - positives)) / len(labels_N)
    best = int(np.argmax(accuracies))
    return float(accuracies[best]), float(thresholds[best])


def accuracy_at(labels_N: Bools, scores_N: Floats, threshold: float) -> float:
    """Return the accuracy of `score > threshold`."""
    return float(np.mean((scores_N > threshold) == labels_N))


def accuracy_by_type(defect_types: Sequence[str], predicted_N: Bools, nominal: str = "nominal") -> dict[str, float]:
    """Return the accuracy among nominal images and among each defect type; the thesis averages these."""
    kinds = np.array(defect_types)
    return {kind: float(np.mean(predicted_N[kinds == kind] == (kind != nominal))) for kind in sorted(set(defect_types))}


def _flat(masks: Sequence[Bools], anomaly_maps: Sequence[Floats]) -> tuple[Bools, Floats]:
    for mask_HW, map_HW in zip(masks, anomaly_maps, strict=True):
        if mask_HW.shape != map_HW.shape:
            raise ValueError(f"mask of shape {mask_HW.shape} does not fit anomaly map of shape {map_HW.shape}")
    return (
        np.concatenate([mask_HW.ravel() for mask_HW in masks]),
        np.concatenate([map_HW.ravel() for map_HW in anomaly_maps]),
    )


def _check_both(labels_N: Bools) -> None:
    positives = int(np.sum(labels_N))
    if positives in (0, len(labels_N)):
        raise ValueError(f"{positives} of {len(labels_N)} labels are anomalous: the metric needs both classes")
