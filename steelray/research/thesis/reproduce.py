"""Reproduction of the thesis's two tables: three methods on MVTec bottle and on Severstal, by its protocol. No Ray.

Every cell (dataset, method) is stored in a JSON file, and a rerun computes only the missing ones. The caller supplies
the training; all else runs in one process.
"""

import hashlib
import json
import resource
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelray.config import ComputeConfig
from steelray.evaluation import metrics
from steelray.evaluation.datasets import NOMINAL, Dataset, Sample, load_dataset
from steelray.evaluation.evaluate import Predictions, predict, split_samples
from steelray.imaging.decode import resize
from steelray.imaging.scorer import Scorer
from steelray.models.calibration import conformal_threshold, read_calibration
from steelray.models.model import load_scorer, open_model
from steelray.patchcore.config import identity
from steelray.patchcore.embedder import load_embedder
from steelray.patchcore.fit import bank_scorer, fit_memory_bank
from steelray.provenance import git_commit, hardware, package_versions
from steelray.reconstruction.config import TrainConfig
from steelray.research.thesis.config import CELLS, ThesisConfig
from steelray.research.thesis.judging import balanced_threshold, defect_shares, thesis_figures
from steelray.research.thesis.predictions import Example, predictions_png
from steelray.research.thesis.tables import to_markdown

Report = Callable[[str], None]
MAP_SIZE_PX = (256, 256)
"""Height and width at which every map is judged, as in the thesis, whatever the network's input."""
TUNED_THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
"""Quantiles of the nominal test images' pixels that are tried as pixel thresholds of the autoencoder."""
Train = Callable[[TrainConfig], dict[str, Any]]
"""jobs/train.py as a function: trains, calibrates and returns its summary."""


def reproduce(config: ThesisConfig, num_threads: int, train: Train, report: Report) -> dict[str, Any]:
    """Compute the missing cells, then write the tables of all that there are.

    Returns:
        The cells computed now, the missing ones, the main figures of each cell, and the path of the tables.

    Raises:
        ConfigError: a dataset cannot be used.
    """
    folder = Path(config.output_dir)
    (folder / "thesis").mkdir(parents=True, exist_ok=True)
    computed, cells = [], {}
    for cell in CELLS:
        path = folder / "thesis" / f"{cell.replace('/', '_')}.json"
        found = json.loads(path.read_text()) if path.is_file() else None
        settings = cell_settings(config, cell)
        if found is not None and not _agrees(found["settings"], settings):
            report(f"{cell}: was computed with other settings; computing it again")
            found = None
        if found is None and (not config.only or cell in config.only):
            report(f"{cell}: {config.label}")
            found = _compute(config, cell, settings, num_threads, train, folder / "thesis")
            path.write_text(json.dumps(found, indent=2) + "\n")
            computed.append(cell)
        if found is not None:
            cells[cell] = found
    result = {"label": config.label, "cells": cells, "missing": [cell for cell in CELLS if cell not in cells]}
    (folder / "thesis.md").write_text(to_markdown(result))
    summary = {cell: {name: found["figures"][name] for name in ("classification", "pixel_auroc", "image_auroc")}
               for cell, found in cells.items()}  # fmt: skip
    return {"computed": computed, "missing": result["missing"], "cells": summary, "table": str(folder / "thesis.md")}


def cell_settings(config: ThesisConfig, cell: str) -> dict[str, Any]:
    """Return all settings that a cell's figures depend on, as JSON."""
    dataset, method = cell.split("/")
    if method == "patchcore":
        recipe: Any = {**identity(config.patchcore), "calibration": asdict(config.calibration)}
    else:
        training = asdict(config.training(dataset, method, "cell"))  # type: ignore[arg-type]
        free = ("output_uri", "num_workers", "cpus_per_worker", "gpus_per_worker", "data")
        recipe = {name: value for name, value in training.items() if name not in free}
        recipe["synthesis"] = {k: v if k != "texture_uri" else v is not None for k, v in recipe["synthesis"].items()}
    data = {name: value for name, value in asdict(config.dataset(dataset)).items() if name != "root"}
    settings: dict[str, Any] = json.loads(json.dumps({"dataset": data, method: recipe}))
    return settings


def _agrees(before: Any, now: Any) -> bool:
    """Return whether settings are as before; options that have been removed since are not compared."""
    if isinstance(before, dict) and isinstance(now, dict):
        return all(name in before and _agrees(before[name], value) for name, value in now.items())
    return bool(before == now)


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _compute(
    config: ThesisConfig, cell: str, settings: dict[str, Any], num_threads: int, train: Train, folder: Path
) -> dict[str, Any]:
    dataset_name, method = cell.split("/")
    dataset = load_dataset(config.dataset(dataset_name))
    if method == "patchcore":
        scorer, threshold, cost = _patchcore(config, dataset, num_threads)
    else:
        run_name = f"{dataset_name}-{method}-{_digest(settings)[:8]}"
        summary = train(config.training(dataset_name, method, run_name))  # type: ignore[arg-type]
        model = open_model(summary["model_uri"])
        use_gpu = config.gpus_per_worker > 0
        scorer = load_scorer(model, ComputeConfig(), num_threads=num_threads, use_gpu=use_gpu)
        threshold = read_calibration(model.uri)[0].groups[""].review.value
        cost = {"training_s": summary["training_s"], "training_peak_bytes": summary["peak_memory_bytes"],
                "training_images_per_s": summary["images_per_s"], "steps": summary["steps"],
                "held_out": summary["held_out"], "num_fit": summary["images"]}  # fmt: skip
    start_s = time.perf_counter()
    predictions = predict(scorer, dataset.test, MAP_SIZE_PX)
    seconds = time.perf_counter() - start_s
    figures, pixel_threshold = judge(method, predictions, threshold)
    picture = folder / f"{cell.replace('/', '_')}.png"
    title = f"{method} on {dataset_name} ({config.label})"
    picture.write_bytes(predictions_png(examples(dataset.test, predictions), pixel_threshold, title))
    return {
        "cell": cell,
        "label": config.label,
        "figures": figures,
        "cost": {**cost, "scoring_images_per_s": round(len(dataset.test) / seconds, 2)},
        "counts": {"test": len(dataset.test), "anomalous": sum(sample.is_anomalous for sample in dataset.test)},
        "picture": picture.name,
        "settings": settings,
        "settings_sha256": _digest(settings),
        "hardware": hardware(),
        "packages": package_versions(),
        "git_commit": git_commit(),
        "computed_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def judge(method: str, predictions: Predictions, threshold: float) -> tuple[dict[str, float], float]:
    """Return all figures of a cell, in [0, 1], and its pixel threshold.

    `classification` is the thesis's: the mean of the accuracies on nominal images and on every defect type, at the
    threshold that is best on the test images themselves (largest true- minus false-positive rate). For conv_ae the
    image's score is the share of pixels above the best pixel threshold. Figures named `..._held_out` use the threshold
    set on held-out nominal images.
    """
    labels_N = np.array([kind != NOMINAL for kind in predictions.defect_types])
    masks, maps, scores_N = predictions.masks, predictions.anomaly_maps, predictions.scores_N
    pixel_threshold = balanced_threshold(
        np.concatenate([mask_HW.ravel() for mask_HW in masks]), np.concatenate([map_HW.ravel() for map_HW in maps])
    )
    judged_N = defect_shares(maps, pixel_threshold) if method == "conv_ae" else scores_N
    image_threshold = balanced_threshold(labels_N, judged_N)
    by_type = metrics.accuracy_by_type(predictions.defect_types, judged_N > image_threshold)
    held_out = metrics.accuracy_by_type(predictions.defect_types, scores_N > threshold)
    figures = {
        "classification": float(np.mean(list(by_type.values()))),
        "pixel_auroc": metrics.pixel_auroc(masks, maps),
        "image_auroc": metrics.image_auroc(labels_N, scores_N),
        "pixel_ap": metrics.pixel_ap(masks, maps),
        "aupro": metrics.aupro(masks, maps),
        "best_accuracy": metrics.best_accuracy(labels_N, judged_N)[0],
        "classification_held_out": float(np.mean(list(held_out.values()))),
        "accuracy_held_out": metrics.accuracy_at(labels_N, scores_N, threshold),
        **{f"accuracy_{kind}": value for kind, value in by_type.items()},
    }
    if method == "conv_ae":
        figures |= _autoencoder_figures(predictions, pixel_threshold, image_threshold)
    return figures, pixel_threshold


def _autoencoder_figures(predictions: Predictions, pixel_threshold: float, share_threshold: float) -> dict[str, float]:
    """Return the thesis's figures for the autoencoder, also with thresholds tuned by hand.

    `segmentation_accuracy`: share of pixels that the binarised map gets right. `..._tuned`: at the pixel threshold,
    out of `TUNED_THRESHOLDS`, that is best on the test images. `no_defect_accuracy`: of a map without any defect.
    """
    masks, maps, kinds = predictions.masks, predictions.anomaly_maps, predictions.defect_types
    labels_N = np.array([kind != NOMINAL for kind in kinds])
    found = thesis_figures(masks, maps, kinds, pixel_threshold=pixel_threshold, share_threshold=share_threshold)
    nominal_N = np.concatenate(
        [map_HW.ravel() for map_HW, is_defect in zip(maps, labels_N, strict=True) if not is_defect]
    )
    tuned = []
    for threshold in np.quantile(nominal_N, TUNED_THRESHOLDS):
        shares_N = defect_shares(maps, float(threshold))
        best = balanced_threshold(labels_N, shares_N)
        tuned.append(thesis_figures(masks, maps, kinds, pixel_threshold=float(threshold), share_threshold=best))
    return {
        "segmentation_accuracy": found["segmentation_accuracy"],
        "segmentation_accuracy_tuned": max(one["segmentation_accuracy"] for one in tuned),
        "no_defect_accuracy": 1 - float(np.concatenate([mask_HW.ravel() for mask_HW in masks]).mean()),
        "classification_tuned": max(one["classification"] for one in tuned),
    }


def _patchcore(config: ThesisConfig, dataset: Dataset, num_threads: int) -> tuple[Scorer, float, dict[str, Any]]:
    """Fit a bank on the images that are not held out; return its scorer, the threshold and the cost."""
    recipe = config.patchcore
    fit, held_out = split_samples(dataset.fit, config.calibration)
    start_s = time.perf_counter()
    embedder = load_embedder(recipe.embedder, num_threads=num_threads)
    keys, images = [sample.key for sample in fit], [sample.load() for sample in fit]
    bank = fit_memory_bank(keys, images, embedder, coreset=recipe.coreset, scoring=recipe.scoring)
    seconds = time.perf_counter() - start_s
    scorer = bank_scorer(bank, embedder, num_threads)
    threshold = conformal_threshold(predict(scorer, held_out).scores_N, config.calibration.false_alarm_rate).value
    cost = {
        "training_s": round(seconds, 2),
        "training_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "training_images_per_s": round(len(fit) / seconds, 2),
        "held_out": len(held_out),
        "num_fit": len(fit),
        "bank_vectors": bank.info.num_vectors,
    }
    return scorer, threshold, cost


def examples(samples: list[Sample], predictions: Predictions) -> list[Example]:
    """Choose the image with the median score among the nominal ones and for every defect type."""
    kinds = sorted(set(predictions.defect_types), key=lambda kind: (kind != NOMINAL, kind))
    chosen = []
    for kind in kinds:
        members = [i for i, other in enumerate(predictions.defect_types) if other == kind]
        median = sorted(members, key=lambda i: float(predictions.scores_N[i]))[len(members) // 2]
        map_HW = predictions.anomaly_maps[median]
        pixels_HWC: NDArray[np.uint8] = resize(samples[median].load(), (map_HW.shape[0], map_HW.shape[1]))
        score = float(predictions.scores_N[median])
        chosen.append(Example(kind, score, pixels_HWC, predictions.masks[median], map_HW))
    return chosen
