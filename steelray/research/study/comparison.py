"""Comparison of baseline and fix with PatchCore, ConvAE and two methods without training, on the test split."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from steelray.evaluation.datasets import Sample, load_dataset
from steelray.evaluation.evaluate import LocalDeviation, top_mean
from steelray.imaging.scorer import Evidence, Floats, Images, Scorer
from steelray.patchcore.config import CoresetConfig, EmbedderConfig, ScoringConfig
from steelray.patchcore.embedder import load_embedder
from steelray.patchcore.fit import bank_scorer, fit_memory_bank
from steelray.reconstruction.batch import collate
from steelray.reconstruction.conv_autoencoder import ConvAutoencoder
from steelray.reconstruction.scorer import reconstruction_scorer
from steelray.reconstruction.session import TrainingSession
from steelray.reconstruction.synthesis import SampleMaker, samples_of_step
from steelray.research.study.config import StudyConfig
from steelray.research.study.data import parted_test
from steelray.research.study.detection import score_strips, share_beyond_tile
from steelray.research.study.networks import score_networks
from steelray.research.study.plan import plan_trials
from steelray.research.study.results import COMPARISON_FILE, read_comparison, read_study
from steelray.research.study.runner import provenance
from steelray.storage.location import Location


class MedianDifference(Scorer):
    """Scores without training: smoothed absolute difference of the grey level to the strip's median."""

    min_size_px = 1

    def __init__(self, sigma_px: float = 4.0) -> None:
        self._sigma_px = sigma_px

    def measure(self, images: Images, keys: Sequence[str] | None = None) -> list[Evidence]:
        greys = [image.astype(np.float32).mean(axis=2) for image in images]
        return [[ndimage.gaussian_filter(np.abs(grey_HW - np.median(grey_HW)), self._sigma_px)] for grey_HW in greys]

    def anomaly_map(self, evidence: Evidence, size_px: tuple[int, int]) -> Floats:
        return evidence[0]

    def anomaly_score(self, evidence: Evidence) -> float:
        return top_mean(evidence[0])


def compare(study: StudyConfig, report: Callable[[str], None], num_threads: int = 1) -> dict[str, Any]:
    """Fit each method on the study's fit strips and score its test strips with it and with the claim's kept networks.

    Writes detection.json after every method. Methods that it already holds are not run again; the networks always are.

    Raises:
        ConfigError: there are no results of this study yet, or the dataset cannot be used.
    """
    read_study(study.results_dir)
    assert study.train.data.dataset is not None
    dataset = load_dataset(study.train.data.dataset)
    fit, (validation, test) = dataset.fit, parted_test(dataset)
    location = Location(study.results_dir)
    methods: dict[str, Any] = read_comparison(study.results_dir).get("methods", {})
    torch.set_num_threads(num_threads)
    networks = score_networks(study, plan_trials(replace(study, mode="confirm")), validation, test, report)
    note = _note(study, len(fit), validation, test)

    def store() -> None:
        record = {"methods": methods, "networks": networks, "note": note, "provenance": provenance()}
        location.write(COMPARISON_FILE, (json.dumps(record, indent=2) + "\n").encode())

    store()
    for name, make in _scorers(study, fit, num_threads).items():
        if name in methods:
            continue
        methods[name] = score_strips(make(), test).figures()
        report(f"{name}: " + ", ".join(f"{figure} {value:.3f}" for figure, value in methods[name].items()))
        store()
    return {"results_dir": study.results_dir, "methods": methods}


def _note(study: StudyConfig, num_fit: int, validation: Sequence[Sample], test: Sequence[Sample]) -> str:
    anomalous = [sample for sample in test if sample.is_anomalous]
    sizes_px = [sample.load().shape[:2] for sample in anomalous]
    masks = [sample.load_mask((size[0], size[1])) for sample, size in zip(anomalous, sizes_px, strict=True)]
    beyond = share_beyond_tile(masks, study.train.input.size_px)
    return (
        f"{num_fit} clean strips to fit, {len(test)} to test, {len(anomalous)} of them defective; no strip is in both. "
        f"{beyond:.0%} of the defective pixels belong to a defect higher and wider than a tile. "
        "DRAEM and ConvAE at the study's reduced scale, in tiles as large as they were trained on; PatchCore at its "
        "own (EfficientNet-Lite0, whole strips). "
        "PatchCore's image score is the mean of its largest distances, DRAEM's the maximum of the box-filtered map. "
        "How far strips are shrunk before DRAEM sees them, and how far its maps are smoothed, is chosen for each arm "
        f"on {len(validation)} further defective strips."
    )


def _scorers(study: StudyConfig, fit: Sequence[Sample], num_threads: int) -> dict[str, Callable[[], Scorer]]:
    return {
        "local standard deviation": LocalDeviation,
        "|I - median|": MedianDifference,
        "PatchCore": lambda: _patchcore(fit, num_threads),
        "ConvAE": lambda: _conv_autoencoder(study, fit),
    }


def _patchcore(fit: Sequence[Sample], num_threads: int) -> Scorer:
    embedder = load_embedder(EmbedderConfig(levels=(2, 3, 4)), num_threads=num_threads)
    keys, images = [sample.key for sample in fit], [sample.load() for sample in fit]
    coreset, scoring = CoresetConfig(ratio=0.02, drop_suspects=False), ScoringConfig(image_score="top_mean")
    bank = fit_memory_bank(keys, images, embedder, coreset=coreset, scoring=scoring)
    return bank_scorer(bank, embedder, num_threads)


def _conv_autoencoder(study: StudyConfig, fit: Sequence[Sample]) -> Scorer:
    """Train an autoencoder on the same crops, for as many steps."""
    config = replace(study.train, model="conv_ae")
    images = [sample.load() for sample in fit]
    maker = SampleMaker(config)
    assert config.num_steps is not None
    session = TrainingSession(config, config.num_steps)
    for step in range(config.num_steps):
        places = samples_of_step(step, config.batch_size, len(images), config.seed)
        session.train_step(collate([maker.sample(images[i], fit[i].key, epoch=e, index=i) for e, i in places]))
    model = session.eval_model
    assert isinstance(model, ConvAutoencoder)
    return reconstruction_scorer(model, config.input)
