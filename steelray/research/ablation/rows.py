"""Evaluation of one ablation setting on one split of the strips. Single process, no Ray.

A split has four disjoint groups: nominal strips to fit on, nominal strips held out, and two halves of the defective
ones. The strips to fit on are also scored by banks built without them (K folds). These scores set the threshold; with
the first half of the defective strips they form the "validation" side, by which settings are chosen. The "test" side,
which no choice may look at, is the held-out nominal strips and the second half.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelray.config import ConfigError
from steelray.evaluation import metrics
from steelray.evaluation.datasets import Sample, load_dataset
from steelray.evaluation.evaluate import LocalDeviation, Predictions
from steelray.imaging.decode import Undecodable
from steelray.imaging.scorer import Scorer
from steelray.models.calibration import conformal_threshold
from steelray.models.ensemble import FusedScorer, NominalScale, fuse_maps, fuse_scores
from steelray.patchcore.config import CoresetConfig, EmbedderConfig
from steelray.patchcore.embedder import load_embedder
from steelray.patchcore.fit import fit_memory_bank
from steelray.patchcore.index import IndexShard, LocalSearch
from steelray.patchcore.portable_embedder import Embedder
from steelray.patchcore.scorer import PatchCoreScorer
from steelray.research.ablation.embedding_cache import CachedEmbedding
from steelray.research.ablation.judging import Judged, by_class, figures_of, judge, together
from steelray.research.ablation.settings import AblationConfig, AblationMember, AblationSetting

TIMED_STRIPS = 3


@dataclass(frozen=True)
class Split:
    """The four groups of one seed."""

    fit: list[Sample]
    held_out: list[Sample]
    validation: list[Sample]
    test: list[Sample]


def split_strips(config: AblationConfig, setting: AblationSetting, seed: int) -> Split:
    """Split the strips of a setting. Settings of one seed share groups, unless they differ in `num_fit`.

    Raises:
        ConfigError: too few nominal strips for a threshold, or no defective ones.
    """
    num_fit = setting.num_fit if setting.num_fit is not None else config.data.num_fit
    dataset = load_dataset(replace(config.data, seed=seed, num_fit=num_fit))
    anomalous = sorted((s for s in dataset.test if s.is_anomalous), key=lambda sample: sample.key)
    if not anomalous:
        raise ConfigError(f"{config.data.root}: no anomalous images to test on")
    if len(dataset.fit) < 2:
        raise ConfigError(f"{config.data.root}: {len(dataset.fit)} nominal image to fit on; a threshold needs two")
    random.Random(seed).shuffle(anomalous)  # noqa: S311 (a split, not a secret)
    count = round(config.validation_fraction * len(anomalous))
    fit = list(dataset.fit)
    num_dirty = round(setting.contamination * len(fit))
    if num_dirty > count:
        raise ConfigError(f"setting {setting.name!r}: contamination needs {num_dirty} defective strips, {count} there")
    fit = fit[num_dirty:] + anomalous[:num_dirty]
    held_out = [sample for sample in dataset.test if not sample.is_anomalous]
    return Split(fit, held_out, anomalous[num_dirty:count], anomalous[count:])


def evaluate_row(config: AblationConfig, setting: AblationSetting, seed: int, num_threads: int) -> dict[str, Any]:
    """Evaluate one setting on one split.

    Returns:
        A JSON-ready row: `figures` by name, `by_class`, counts, seconds per strip.

    Raises:
        ConfigError: the data or a setting cannot be used.
    """
    split = split_strips(config, setting, seed)
    scorer, nominal, timed = _fit(config, setting, split, num_threads)
    held_out, validation, test = (_predict(scorer, group) for group in (split.held_out, split.validation, split.test))
    if not (validation.has_masks or test.has_masks):
        raise ConfigError(f"{config.data.root}: no defect masks; an ablation judges parts of images and pixels")
    groups = {"nominal": nominal, "held_out": held_out, "validation": validation, "test": test}
    judged = {name: _judge(group, config) for name, group in groups.items()}
    everything = together([judged["held_out"], judged["validation"], judged["test"]])
    figures = figures_of(everything, pixels=True)
    for rate in config.false_alarm_rates:
        threshold = conformal_threshold(judged["nominal"].scores_N, rate).value
        figures[f"accuracy_{rate:g}"] = metrics.accuracy_at(everything.labels_N, everything.scores_N, threshold)
        threshold = conformal_threshold(judged["nominal"].part_scores_N, rate).value
        accuracy = metrics.accuracy_at(everything.part_labels_N, everything.part_scores_N, threshold)
        figures[f"part_accuracy_{rate:g}"] = accuracy
    if validation.has_masks and test.has_masks:
        for prefix, nominal_group in (("validation", "nominal"), ("test", "held_out")):
            half = figures_of(together([judged[nominal_group], judged[prefix]]), pixels=False)
            figures |= {f"{prefix}_{name}": value for name, value in half.items()}
    return {
        "setting": setting.name,
        "seed": seed,
        "figures": figures,
        "by_class": by_class(everything, _part_threshold(judged["nominal"], config)),
        "num_fit": len(split.fit),
        "num_held_out": len(split.held_out),
        "num_anomalous": len(split.validation) + len(split.test),
        "seconds_per_strip": _seconds_per_strip(timed, split.held_out or split.fit),
    }


def predict_split(
    config: AblationConfig, setting: AblationSetting, seed: int, num_threads: int
) -> tuple[list[Sample], Predictions, float]:
    """Return the strips that a setting is judged on, its predictions for them, and its threshold for parts."""
    split = split_strips(config, setting, seed)
    scorer, nominal, _ = _fit(config, setting, split, num_threads)
    samples = [*split.held_out, *split.validation, *split.test]
    return samples, _predict(scorer, samples), _part_threshold(_judge(nominal, config), config)


def _fit(
    config: AblationConfig, setting: AblationSetting, split: Split, num_threads: int
) -> tuple[Scorer, Predictions, Scorer]:
    """Return the fitted scorer, out-of-fold predictions for the strips to fit on, and the scorer without a cache."""
    if setting.method == "local_deviation":
        baseline = LocalDeviation()
        return baseline, _predict(baseline, split.fit), baseline
    first_HWC = _pixels(split.fit[0])
    size_px = (first_HWC.shape[0], first_HWC.shape[1])
    members = [_Member(config, member, size_px, num_threads) for member in setting.members]
    folds = [split.fit[number :: config.folds] for number in range(min(config.folds, len(split.fit)))]
    answers: list[list[Predictions]] = [[] for _ in members]
    for fold in folds:
        others = [sample for sample in split.fit if sample not in fold]
        for place, member in enumerate(members):
            answers[place].append(_predict(member.fit(others)[0], fold))
    own = [_joined(parts) for parts in answers]
    fitted = [member.fit(split.fit) for member in members]
    if len(members) == 1:
        return fitted[0][0], own[0], fitted[0][1]
    scales = [_scale(answer) for answer in own]
    weights = [member.weight for member in setting.members]
    maps = [fuse_maps(of_image, scales, weights) for of_image in zip(*(one.anomaly_maps for one in own), strict=True)]
    scores = [fuse_scores(of_image, scales, weights) for of_image in zip(*(one.scores_N for one in own), strict=True)]
    nominal = replace(own[0], anomaly_maps=maps, scores_N=np.array(scores, dtype=np.float32))
    scorers, uncached = zip(*fitted, strict=True)
    return FusedScorer(scorers, scales, weights), nominal, FusedScorer(uncached, scales, weights)


def _scale(nominal: Predictions) -> NominalScale:
    means_N = np.array([map_HW.mean() for map_HW in nominal.anomaly_maps])
    peaks_N = np.array([map_HW.max() for map_HW in nominal.anomaly_maps])
    return NominalScale.of(means_N, peaks_N, nominal.scores_N)


@lru_cache(maxsize=512)
def _pixels(sample: Sample) -> NDArray[np.uint8]:
    """Load pixels_HWC once per process: every bank and every setting reads the same strips."""
    try:
        pixels_HWC = sample.load()
    except (Undecodable, OSError) as error:
        raise ConfigError(f"{sample.path}: {error}: leave it out of the labelled data") from None
    pixels_HWC.flags.writeable = False
    return pixels_HWC


def _predict(scorer: Scorer, samples: Sequence[Sample]) -> Predictions:
    scores, maps, masks = [], [], []
    for sample in samples:
        [map_HW], [score] = scorer.score([_pixels(sample)])
        scores.append(score)
        maps.append(map_HW)
        masks.append(_mask(sample, (map_HW.shape[0], map_HW.shape[1])))
    kinds = [sample.defect_type for sample in samples]
    return Predictions(np.array(scores, dtype=np.float32), maps, masks, kinds, any(mask_HW.any() for mask_HW in masks))


@lru_cache(maxsize=512)
def _mask(sample: Sample, size_px: tuple[int, int]) -> NDArray[np.bool_]:
    return sample.load_mask(size_px)


class _Member:
    """Fits one bank of a setting; embeddings come from the cache.

    Args:
        size_px: height and width of the strips.
    """

    def __init__(
        self, config: AblationConfig, member: AblationMember, size_px: tuple[int, int], num_threads: int
    ) -> None:
        self._member, self._num_threads = member, num_threads
        self._embedder = _embedder(member.embedder.for_images(size_px), num_threads)
        folder = Path(config.cache_dir) if config.cache_dir is not None else Path(config.output_dir) / "embeddings"
        cached = CachedEmbedding(self._embedder.embed, self._embedder.config, self._embedder.weights_digest, folder)
        self._cached = replace(self._embedder, embed=cached)

    def fit(self, samples: Sequence[Sample]) -> tuple[Scorer, Scorer]:
        """Return a scorer that knows these samples as normal, and the same without the cache, to time it."""
        images, member = [_pixels(sample) for sample in samples], self._member
        if member.coreset == CoresetConfig(ratio=1.0, drop_suspects=False):  # every patch: there is nothing to select
            embeddings = [self._cached.embed_image(image) for image in images]
            vectors_ND = np.concatenate([e.reshape(-1, e.shape[2]) for e in embeddings])
            member.scoring.check_bank(len(vectors_ND))
        else:
            keys = [sample.key for sample in samples]
            coreset, scoring = member.coreset, member.scoring
            vectors_ND = fit_memory_bank(keys, images, self._cached, coreset=coreset, scoring=scoring).vectors_ND
        search = LocalSearch([IndexShard(vectors_ND, num_threads=self._num_threads)])
        cached = PatchCoreScorer(self._cached, search, member.scoring)
        return cached, PatchCoreScorer(self._embedder, search, member.scoring)


@lru_cache(maxsize=8)
def _embedder(config: EmbedderConfig, num_threads: int) -> Embedder:
    """Build an embedder once per process: rows of one backbone follow each other."""
    return load_embedder(config, num_threads=num_threads)


def _judge(predictions: Predictions, config: AblationConfig) -> Judged:
    return judge(predictions, parts=config.parts, pixel_step=config.pixel_step)


def _part_threshold(nominal: Judged, config: AblationConfig) -> float:
    return conformal_threshold(nominal.part_scores_N, config.false_alarm_rates[0]).value


def _joined(parts: Sequence[Predictions]) -> Predictions:
    return Predictions(
        np.concatenate([part.scores_N for part in parts]),
        [map_HW for part in parts for map_HW in part.anomaly_maps],
        [mask_HW for part in parts for mask_HW in part.masks],
        [kind for part in parts for kind in part.defect_types],
        any(part.has_masks for part in parts),
    )


def _seconds_per_strip(scorer: Scorer, samples: Sequence[Sample]) -> float:
    """Time a strip without the cache; the fastest of a few, so that other work on the machine counts little."""
    image = _pixels(samples[0])
    scorer.score([image])
    seconds = []
    for _ in range(TIMED_STRIPS):
        start_s = time.perf_counter()
        scorer.score([image])
        seconds.append(time.perf_counter() - start_s)
    return min(seconds)
