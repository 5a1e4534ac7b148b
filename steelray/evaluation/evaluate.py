"""Evaluation of a method on a labelled dataset, in a single process."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from steelray.config import AUTO, CalibrationConfig, ComputeConfig, ConfigError, Facts
from steelray.evaluation import metrics
from steelray.evaluation.choose import Candidate, choose
from steelray.evaluation.config import EvaluateConfig
from steelray.evaluation.datasets import NOMINAL, Dataset, Sample, load_dataset
from steelray.evaluation.power import PlantedScore, Power, plan_rounds, power_at, score_planted
from steelray.imaging.decode import Undecodable
from steelray.imaging.scorer import Evidence, Floats, Images, Scorer
from steelray.models.calibration import ALL_STRIPS, conformal_threshold, read_calibration, split_nominal
from steelray.models.model import Model, load_scorer, open_model
from steelray.patchcore.bank import BankInfo
from steelray.patchcore.config import EmbedderConfig
from steelray.patchcore.embedder import load_embedder
from steelray.patchcore.fit import bank_scorer, fit_memory_bank
from steelray.patchcore.portable_embedder import Embedder
from steelray.patchcore.recipe import CANDIDATES, with_recipe
from steelray.reconstruction.scorer import resize_map

QUARTERS = 4
TOP_PIXELS = 409
"""Number of largest map pixels whose mean is a quarter-strip's score: 0.4 % of 400x256."""


@dataclass(frozen=True)
class Predictions:
    """Scores and maps of a test set with its labels, one entry per image."""

    scores_N: NDArray[np.float32]
    anomaly_maps: list[NDArray[np.float32]]
    masks: list[NDArray[np.bool_]]
    defect_types: list[str]
    has_masks: bool


class LocalDeviation(Scorer):
    """Scorer by the standard deviation of the grey level in a window: a baseline that learns nothing."""

    min_size_px = 1

    def __init__(self, window_px: int = 15, sigma_px: float = 4.0) -> None:
        self._window_px, self._sigma_px = window_px, sigma_px

    def measure(self, images: Images, keys: Sequence[str] | None = None) -> list[Evidence]:
        evidence: list[Evidence] = []
        for image in images:
            grey_HW = image.astype(np.float32).mean(axis=2)
            mean_HW = ndimage.uniform_filter(grey_HW, self._window_px)
            variance_HW = ndimage.uniform_filter(grey_HW**2, self._window_px) - mean_HW**2
            evidence.append([ndimage.gaussian_filter(np.sqrt(np.maximum(variance_HW, 0)), self._sigma_px)])
        return evidence

    def anomaly_map(self, evidence: Evidence, size_px: tuple[int, int]) -> Floats:
        return evidence[0]

    def anomaly_score(self, evidence: Evidence) -> float:
        return top_mean(evidence[0])


def top_mean(map_HW: NDArray[np.float32], count: int = TOP_PIXELS) -> float:
    """Return the mean of the `count` largest values."""
    count = min(count, map_HW.size)
    return float(np.partition(map_HW, -count, axis=None)[-count:].mean())


def predict(
    scorer: Scorer, samples: Sequence[Sample], map_size_px: tuple[int, int] | None = None, *, nominal: bool = False
) -> Predictions:
    """Score labelled samples and resize their masks to the anomaly maps.

    Args:
        map_size_px: height and width to which the maps are resized first, so that scorers whose maps differ in size are
            judged on the same pixels; None keeps their size.
        nominal: compare each sample with what the scorer learned from other strips.

    Raises:
        ConfigError: an image cannot be read.
    """
    scores, maps, masks = [], [], []
    for sample in samples:
        image_maps, image_scores = scorer.score([_pixels(sample)], [str(sample.path)] if nominal else None)
        maps.append(resize_map(image_maps[0], map_size_px) if map_size_px else image_maps[0])
        scores.append(image_scores[0])
        masks.append(sample.load_mask((maps[-1].shape[0], maps[-1].shape[1])))
    return Predictions(
        np.array(scores),
        maps,
        masks,
        [sample.defect_type for sample in samples],
        any(mask_HW.any() for mask_HW in masks),
    )


def _pixels(sample: Sample) -> NDArray[np.uint8]:
    """Load an image. Raise `ConfigError` with the file's name if it cannot be read."""
    try:
        return sample.load()
    except Undecodable as error:
        raise ConfigError(f"{sample.path}: {error.status}: {error}; remove it from the dataset") from None


def figures(predictions: Predictions, *, quarters: bool, threshold: float | None = None) -> dict[str, float]:
    """Compute the metrics of a test set.

    Args:
        threshold: also report accuracy, recall and false alarm rate at this threshold.
        quarters: also judge each quarter of an image's width by itself, as the thesis does with whole strips.
    """
    labels_N = np.array([kind != NOMINAL for kind in predictions.defect_types])
    result = {
        "image_auroc": metrics.image_auroc(labels_N, predictions.scores_N),
        "best_accuracy": metrics.best_accuracy(labels_N, predictions.scores_N)[0],
    }
    if threshold is not None:
        flagged_N = predictions.scores_N > threshold
        result["accuracy"] = metrics.accuracy_at(labels_N, predictions.scores_N, threshold)
        result["recall"] = float(flagged_N[labels_N].mean())
        result["false_alarm_rate"] = float(flagged_N[~labels_N].mean())
    if predictions.has_masks:
        masks, maps = predictions.masks, predictions.anomaly_maps
        result["pixel_auroc"] = metrics.pixel_auroc(masks, maps)
        result["pixel_ap"] = metrics.pixel_ap(masks, maps)
        result["aupro"] = metrics.aupro(masks, maps)
        if quarters:
            quarter_maps = [part for map_HW in maps for part in np.array_split(map_HW, QUARTERS, axis=1)]
            quarter_masks = [part for mask_HW in masks for part in np.array_split(mask_HW, QUARTERS, axis=1)]
            quarter_labels = np.array([part.any() for part in quarter_masks])
            quarter_scores = np.array([top_mean(part) for part in quarter_maps])
            result["quarter_auroc"] = metrics.image_auroc(quarter_labels, quarter_scores)
            result["quarter_best_accuracy"] = metrics.best_accuracy(quarter_labels, quarter_scores)[0]
    return result


def evaluate(config: EvaluateConfig, num_threads: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Fit on a dataset's nominal images (or load a model) and score its test images, once per split seed.

    Args:
        report: receives lines of progress.

    Returns:
        The metrics (mean over seeds) at the top level, their standard deviation under `std`, baselines, counts and
        seconds.

    Raises:
        ConfigError: the dataset or the model cannot be used.
    """
    stored = open_model(config.model_uri) if config.model_uri is not None else None
    fit = Fitting(config, num_threads) if stored is None else None
    seeds = config.seeds if config.data.kind != "mvtec" else config.seeds[:1]
    rows: list[dict[str, float]] = []
    baseline_rows: list[dict[str, float]] = []
    counts: Mapping[str, object] = {}
    for seed in seeds:
        dataset = load_dataset(replace(config.data, seed=seed))
        if not any(sample.is_anomalous for sample in dataset.test):
            raise ConfigError(f"{config.data.root}: no anomalous images to test on")
        if all(sample.is_anomalous for sample in dataset.test):
            raise ConfigError(f"{config.data.root}: no nominal images to test on")
        report(f"seed {seed}: fitting on {len(dataset.fit)} images, testing on {len(dataset.test)}")
        start_s = time.perf_counter()
        scorer, threshold, facts = fit(dataset) if fit is not None else _load(stored, config, num_threads)
        fit_s = time.perf_counter() - start_s
        quarters = config.data.kind == "severstal" and config.data.tiling == "none"
        start_s = time.perf_counter()
        predictions = predict(scorer, dataset.test)
        score_s = time.perf_counter() - start_s
        rows.append(figures(predictions, quarters=quarters, threshold=threshold))
        report("  " + ", ".join(f"{name} {value:.4f}" for name, value in rows[-1].items()))
        if config.baselines:
            baseline_rows.append(figures(predict(LocalDeviation(), dataset.test), quarters=quarters))
        counts = {
            "num_fit": len(dataset.fit),
            "num_test": len(dataset.test),
            "num_anomalous": sum(sample.is_anomalous for sample in dataset.test),
            **facts,
            "fit_s": round(fit_s, 2),
            "images_per_s": round(len(dataset.test) / score_s, 2),
        }
    result: dict[str, Any] = {**_means(rows), "std": _spreads(rows), "seeds": list(seeds), **counts}
    if baseline_rows:
        result["local_standard_deviation"] = {**_means(baseline_rows), "std": _spreads(baseline_rows)}
    return {**result, "method": stored.method if stored else "patchcore", "dataset": asdict(config.data)}


def split_samples(samples: Sequence[Sample], config: CalibrationConfig) -> tuple[list[Sample], list[Sample]]:
    """Split nominal samples by strip into those to fit on and those held out: tiles of one strip are too alike."""
    fit_rows, held_out_rows = split_nominal([str(sample.path) for sample in samples], config)
    return [samples[row] for row in fit_rows], [samples[row] for row in held_out_rows]


@dataclass(frozen=True)
class _Fitted:
    """A bank fitted on a dataset, its scorer and what is known of it without test images."""

    recipe: str
    scorer: Scorer
    threshold: float | None
    power: Power | None
    facts: Facts


class Fitting:
    """Fitting of PatchCore on each split; an embedder is built once for all of them."""

    def __init__(self, config: EvaluateConfig, num_threads: int) -> None:
        self._config, self._num_threads = config, num_threads
        self._embedders: dict[EmbedderConfig, Embedder] = {}

    def __call__(self, dataset: Dataset) -> tuple[Scorer, float | None, Mapping[str, object]]:
        if self._config.recipe != AUTO:
            fitted = self._fit(dataset, self._config)
            return fitted.scorer, fitted.threshold, {"recipe": self._config.recipe, **fitted.facts}
        found, candidates = {}, []
        for name in CANDIDATES:
            start_s = time.perf_counter()
            found[name] = self._fit(dataset, with_recipe(self._config, name))
            power = found[name].power
            assert power is not None
            candidates.append(Candidate(name, power.share, time.perf_counter() - start_s))
        chosen = found[choose(candidates).recipe]
        facts = {"recipe": chosen.recipe, "candidates": [asdict(candidate) for candidate in candidates]}
        return chosen.scorer, chosen.threshold, {**facts, **chosen.facts}

    def _fit(self, dataset: Dataset, config: EvaluateConfig) -> _Fitted:
        settings, fit, held_out = config.calibration, dataset.fit, list[Sample]()
        if settings is not None:
            fit, held_out = split_samples(fit, settings)
        first_HWC = _pixels(fit[0])
        settled = config.embedder.for_images((first_HWC.shape[0], first_HWC.shape[1]))
        if settled not in self._embedders:
            embedder = load_embedder(settled, backend=config.backend, num_threads=self._num_threads)
            self._embedders[settled] = embedder
        embedder = self._embedders[settled]
        strips = [str(sample.path) for sample in fit]
        bank = fit_memory_bank(
            [sample.key for sample in fit],
            [_pixels(sample) for sample in fit],
            embedder,
            coreset=config.coreset,
            scoring=config.scoring,
            index=config.index,
            strips=strips,
        )
        scorer = bank_scorer(bank, embedder, self._num_threads, strips)
        facts = {**_bank_facts(bank.info), "held_out": len(held_out)}
        if settings is None:
            return _Fitted(config.recipe, scorer, None, None, facts)
        scores_N = predict(scorer, held_out, nominal=True).scores_N
        threshold = conformal_threshold(scores_N, settings.false_alarm_rate).value
        power = power_at(_planted(scorer, held_out), lambda _: threshold)
        limits = [asdict(limit) for limit in power.limits]
        facts |= {"power": power.share, "can_decide": power.can_decide, "detection_limits": limits}
        return _Fitted(config.recipe, scorer, threshold, power, facts)


def _planted(scorer: Scorer, samples: Sequence[Sample]) -> list[PlantedScore]:
    """Score defects planted in nominal samples."""
    images = {str(sample.path): sample for sample in samples}
    foreign_HWC = _pixels(samples[len(samples) // 2])
    sizes_px = [(one.shape[0], one.shape[1]) for one in (_pixels(sample) for sample in images.values())]
    planted: list[PlantedScore] = []
    for key, rounds in plan_rounds(list(images), sizes_px).items():
        planted += score_planted(scorer, _pixels(images[key]), key, rounds, foreign_HWC)
    return planted


def _load(
    model: Model | None, config: EvaluateConfig, num_threads: int
) -> tuple[Scorer, float | None, Mapping[str, object]]:
    assert model is not None
    scorer = load_scorer(model, ComputeConfig(backend=config.backend), num_threads=num_threads)
    threshold = read_calibration(model.uri)[0].groups[ALL_STRIPS].review.value
    return scorer, threshold, _bank_facts(model.bank) if model.bank is not None else {}


def _bank_facts(info: BankInfo) -> Facts:
    facts: Facts = {"bank_vectors": info.num_vectors, "cover_radius": info.coreset.cover_radius}
    return facts if info.recall is None else {**facts, "index_recall": info.recall}


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}


def _spreads(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.stdev(row[name] for row in rows) if len(rows) > 1 else 0.0 for name in rows[0]}


def to_markdown(result: dict[str, Any]) -> str:
    """Format an evaluation's result as a table."""
    methods = {result["method"]: result}
    if "local_standard_deviation" in result:
        methods["local standard deviation"] = result["local_standard_deviation"]
    names = list(result["std"])
    lines = [
        f"{result['dataset']['kind']}: {result['num_fit']} images to fit, {result['num_test']} to test",
        f"({result['num_anomalous']} anomalous), {len(result['seeds'])} split(s); mean ± standard deviation of splits",
        "",
        "| method | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for method, row in methods.items():
        cells = (f"{row[name]:.4f} ± {row['std'][name]:.4f}" if name in row else "–" for name in names)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
