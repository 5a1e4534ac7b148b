"""The thesis's own figures: its image score, its two accuracies and its threshold rule."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from steelray.evaluation.metrics import accuracy_by_type
from steelray.reconstruction.scorer import Map


def defect_shares(anomaly_maps: Sequence[Map], pixel_threshold: float) -> NDArray[np.float32]:
    """Return shares_N, the thesis's score of an image: the share of its pixels above the threshold."""
    return np.array([(map_HW > pixel_threshold).mean() for map_HW in anomaly_maps], dtype=np.float32)


def segmentation_accuracy(
    masks: Sequence[NDArray[np.bool_]], anomaly_maps: Sequence[Map], pixel_threshold: float
) -> float:
    """Return the share of all pixels in which binarised maps and masks agree (the thesis's figure 10)."""
    pairs = zip(masks, anomaly_maps, strict=True)
    right = [((map_HW > pixel_threshold) == mask_HW).ravel() for mask_HW, map_HW in pairs]
    return float(np.concatenate(right).mean())


def balanced_threshold(labels_N: NDArray[np.bool_], scores_N: NDArray[np.floating[Any]]) -> float:
    """Return the threshold with the largest true- minus false-positive rate on these very labels (optimistic).

    The thesis takes "the threshold that maximizes this area"; an area has no threshold, so this takes the point of the
    ROC curve farthest from the diagonal. Works for pixels and for images.
    """
    fpr, tpr, thresholds = roc_curve(labels_N, scores_N)
    # roc_curve uses `score >= threshold`, this project `score > threshold`
    return float(np.nextafter(thresholds[np.argmax(tpr - fpr)].astype(np.float32), np.float32(-np.inf)))


def thesis_figures(
    masks: Sequence[NDArray[np.bool_]],
    anomaly_maps: Sequence[Map],
    defect_types: Sequence[str],
    *,
    pixel_threshold: float,
    share_threshold: float,
) -> dict[str, float]:
    """Judge maps as the thesis does its autoencoder's: binarise them, then flag images by their share of defect pixels.

    Args:
        defect_types: `nominal`, or the kind of defect.

    Returns:
        `segmentation_accuracy` over pixels, `accuracy_TYPE` of nominal images and of each defect type, and
        `classification`, their plain mean.
    """
    by_type = accuracy_by_type(defect_types, defect_shares(anomaly_maps, pixel_threshold) > share_threshold)
    return {
        "classification": float(np.mean(list(by_type.values()))),
        "segmentation_accuracy": segmentation_accuracy(masks, anomaly_maps, pixel_threshold),
        **{f"accuracy_{kind}": accuracy for kind, accuracy in by_type.items()},
    }
