"""The thesis's figures of maps, and its picture of predictions."""

import io

import numpy as np
import pytest
from PIL import Image

from steelray.research.thesis.judging import balanced_threshold, defect_shares, segmentation_accuracy, thesis_figures
from steelray.research.thesis.predictions import Example, predictions_png

MAPS = [np.array([[0.1, 0.2], [0.3, 0.9]], np.float32), np.array([[0.8, 0.9], [0.7, 0.1]], np.float32)] * 2
MASKS = [np.zeros((2, 2), bool), np.array([[1, 1], [1, 0]], bool)] * 2


def test_the_share_of_defect_pixels() -> None:
    assert defect_shares(MAPS[:2], 0.5).tolist() == [0.25, 0.75]
    assert segmentation_accuracy(MASKS[:2], MAPS[:2], 0.5) == 7 / 8


def test_the_thesis_averages_over_normal_images_and_defect_types() -> None:
    figures = thesis_figures(MASKS, MAPS, ["nominal", "1", "2", "2"], pixel_threshold=0.5, share_threshold=0.5)
    assert [figures[f"accuracy_{kind}"] for kind in ("nominal", "1", "2")] == [1, 1, 0.5]
    assert figures["classification"] == pytest.approx(2.5 / 3)
    assert figures["segmentation_accuracy"] == 7 / 8


def test_the_balanced_threshold_is_farthest_from_the_diagonal() -> None:
    labels = np.array([False, False, True, False, True, True])
    scores = np.array([0.1, 0.2, 0.3, 0.5, 0.6, 0.9], dtype=np.float32)
    threshold = balanced_threshold(labels, scores)
    flagged = scores > threshold
    gap = flagged[labels].mean() - flagged[~labels].mean()
    others = [(scores > t)[labels].mean() - (scores > t)[~labels].mean() for t in np.linspace(0, 1, 101)]
    assert gap == pytest.approx(max(others))


def test_predictions_have_a_column_per_example() -> None:
    rng = np.random.default_rng(0)
    examples = [
        Example(kind, 0.5, rng.integers(0, 255, (32, 32, 3), np.uint8), rng.random((32, 32)) > 0.9,
                rng.random((32, 32), np.float32))
        for kind in ("nominal", "broken_large", "1+3")
    ]  # fmt: skip
    three, one = (Image.open(io.BytesIO(predictions_png(some, 0.5, "a title"))) for some in (examples, examples[:1]))
    assert three.height == one.height
    assert three.width > 2 * one.width
