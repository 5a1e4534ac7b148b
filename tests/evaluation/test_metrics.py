"""Metrics against hand-made cases and slow, literal implementations."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import average_precision_score

from steelray.evaluation import metrics


def pairwise_auroc(labels: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """Return the share of (anomalous, nominal) pairs in the right order, ties counted half."""
    above = scores[labels][:, None] - scores[~labels][None]
    return float(np.mean((above > 0) + 0.5 * (above == 0)))


def brute_aupro(masks: list[NDArray[np.bool_]], maps: list[NDArray[np.float64]], max_fpr: float) -> float:
    """Integrate the per-region overlap over all thresholds exactly."""
    nominal = np.concatenate([m[~mask] for mask, m in zip(masks, maps, strict=True)])
    regions = []
    for mask, one in zip(masks, maps, strict=True):
        labelled, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [one[labelled == number] for number in range(1, count + 1)]
    points = [(0.0, 0.0)]
    for threshold in np.unique(np.concatenate([m.ravel() for m in maps]))[::-1]:
        fpr = np.mean(nominal >= threshold)
        points.append((float(fpr), float(np.mean([np.mean(region >= threshold) for region in regions]))))
    fprs, overlaps = np.array(points).T
    last = np.searchsorted(fprs, max_fpr, side="right")
    end = np.interp(max_fpr, fprs, overlaps)
    return float(np.trapezoid([*overlaps[:last], end], [*fprs[:last], max_fpr]) / max_fpr)


def blobs(seed: int, count: int = 3, size: int = 40, signal: float = 1.5) -> tuple[list, list]:
    """Return masks with several regions (none in the first) and noisy maps that show some of them."""
    rng = np.random.default_rng(seed)
    masks, maps = [], []
    for number in range(count):
        mask = ndimage.gaussian_filter(rng.standard_normal((size, size)), 3) > (0.1 if number else 9)
        masks.append(mask)
        maps.append(rng.standard_normal((size, size)) + signal * ndimage.gaussian_filter(mask.astype(float), 1.5))
    return masks, maps


@pytest.mark.parametrize("seed", range(5))
def test_areas_equal_their_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.random(200) < 0.3
    scores = np.round(rng.standard_normal(200) + labels, 1)
    assert metrics.image_auroc(labels, scores) == pytest.approx(pairwise_auroc(labels, scores))


def test_pixel_figures_take_all_pixels_together() -> None:
    masks, maps = blobs(0)
    labels, scores = np.concatenate([m.ravel() for m in masks]), np.concatenate([m.ravel() for m in maps])
    assert metrics.pixel_auroc(masks, maps) == pytest.approx(pairwise_auroc(labels, scores))
    assert metrics.pixel_ap(masks, maps) == pytest.approx(average_precision_score(labels, scores))


def test_maps_of_different_sizes_go_together() -> None:
    masks = [np.array([[True, False]]), np.array([[False], [False], [True]])]
    maps = [np.array([[3.0, 1.0]]), np.array([[0.0], [2.0], [5.0]])]
    assert metrics.pixel_auroc(masks, maps) == 1.0
    assert metrics.pixel_ap(masks, maps) == 1.0


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("max_fpr", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("decimals", [0, 1, 3])
def test_aupro_equals_the_slow_way(seed: int, max_fpr: float, decimals: int) -> None:
    masks, maps = blobs(seed)
    maps = [np.round(one, decimals) for one in maps]
    assert metrics.aupro(masks, maps, max_fpr=max_fpr) == pytest.approx(brute_aupro(masks, maps, max_fpr), abs=0.003)


def test_aupro_of_perfect_blind_and_inverted_maps() -> None:
    masks, _ = blobs(1)
    for sign, area in ((1.0, 1.0), (-1.0, 0.0)):
        assert metrics.aupro(masks, [sign * mask for mask in masks]) == pytest.approx(area, abs=0.005)
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal(mask.shape) for mask in masks]
    assert metrics.aupro(masks, noise) == pytest.approx(0.15, abs=0.06)


def test_aupro_gives_a_small_region_the_weight_of_a_large_one() -> None:
    mask = np.zeros((40, 40), bool)
    mask[2:32, 2:32] = True
    mask[36:38, 36:38] = True
    large_only, small_only = np.zeros((2, 40, 40))
    large_only[2:32, 2:32] = 1
    small_only[36:38, 36:38] = 1
    large, small = (metrics.aupro([mask], [one]) for one in (large_only, small_only))
    assert large == pytest.approx(small, abs=1e-9)
    assert metrics.pixel_auroc([mask], [large_only]) > metrics.pixel_auroc([mask], [small_only]) + 0.3


def test_regions_that_touch_at_a_corner_are_one() -> None:
    mask = np.zeros((10, 10), bool)
    mask[2, 2] = mask[3, 3] = True
    one = np.zeros((10, 10))
    one[2, 2] = 1
    assert metrics.aupro([mask], [one]) == pytest.approx(brute_aupro([mask], [one], 0.3), abs=0.01)


def test_best_accuracy_is_that_of_the_best_threshold() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = rng.random(30) < 0.4
        labels[:2] = [True, False]
        scores = np.round(rng.standard_normal(30) + labels, 1)
        best, threshold = metrics.best_accuracy(labels, scores)
        candidates = [np.mean((scores >= cut) == labels) for cut in [*scores, np.inf]]
        assert best == pytest.approx(max(candidates))
        assert np.mean((scores >= threshold) == labels) == pytest.approx(best)


def test_accuracy_at_a_threshold_flags_what_is_above_it() -> None:
    labels = np.array([False, False, True, True])
    scores = np.array([1.0, 2, 2, 3])
    assert [metrics.accuracy_at(labels, scores, threshold) for threshold in (2.0, 1.5, 0.0)] == [0.75, 0.75, 0.5]


def test_accuracy_by_type() -> None:
    kinds = ["nominal", "nominal", "scratch", "scratch", "pit"]
    predicted = np.array([False, True, True, True, False])
    assert metrics.accuracy_by_type(kinds, predicted) == {"nominal": 0.5, "pit": 0.0, "scratch": 1.0}


@pytest.mark.parametrize("value", [True, False])
def test_one_kind_of_label_is_refused(value: bool) -> None:
    labels, scores = np.full(4, value), np.arange(4.0)
    for figure in (metrics.image_auroc, metrics.best_accuracy):
        with pytest.raises(ValueError, match="the metric needs both classes"):
            figure(labels, scores)
    for pixel_figure in (metrics.pixel_auroc, metrics.pixel_ap, metrics.aupro):
        with pytest.raises(ValueError, match="needs both classes"):
            pixel_figure([labels.reshape(2, 2)], [scores.reshape(2, 2)])


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        metrics.pixel_auroc([np.zeros((2, 3), bool)], [np.zeros((3, 2))])
