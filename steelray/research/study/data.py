"""The study's images: those to fit on, those for the probe, unseen strips, and their conditions.

The probe is cut from the right end of the strips that trials fit on; no trial fits on that end. So the probe asks
whether training converges on known kinds of strips, and the unseen strips ask how well that carries over. Shapes:
H height, W width, C channels; pixels uint8.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from steelray.config import ConfigError
from steelray.demo.synthetic import make_strip
from steelray.evaluation.datasets import Dataset, Sample, load_dataset
from steelray.imaging.decode import resize
from steelray.reconstruction.sources import AnomalySource, list_textures
from steelray.research.study.condition import parse_condition
from steelray.research.study.config import StudyConfig
from steelray.research.study.transplant import apply_changes
from steelray.research.study.trial import TrialImages

Pixels = NDArray[np.uint8]
CONTROL_SIZE_PX = (256, 256)
MAX_CONTROL_IMAGES = 64
NUM_GENERATED, NUM_UNSEEN_GENERATED, GENERATED_SIZE_PX = 20, 4, (128, 320)
VALIDATION_STEP = 3
HELD_OUT_SEED, UNSEEN_SEED = 10_000, 20_000
Groups = tuple[list[Pixels], list[Pixels], list[Pixels]]


class StudyImages:
    """Loads the images of a study's conditions and keeps the latest ones."""

    def __init__(self, study: StudyConfig) -> None:
        self._study = study
        uri = study.train.synthesis.texture_uri
        self.textures: AnomalySource | None = list_textures(uri) if uri is not None else None

    @lru_cache(maxsize=4)  # noqa: B019 (lives as long as the process's one study)
    def condition(self, text: str) -> TrialImages:
        """Load the images of a condition, such as `steel+denoise=2`.

        Raises:
            ConfigError: its dataset is not set, or has no clean images to spare for the probe.
        """
        condition = parse_condition(text)
        changes = condition.changes
        if condition.dataset == "generated" or (condition.dataset == "steel" and not self._has_steel):
            knobs = dict(changes) if condition.dataset == "generated" else {}
            fit, held_out, unseen = self._generated(knobs)
            changes = () if condition.dataset == "generated" else changes
        elif condition.dataset == "steel":
            fit, held_out, unseen = self._steel()
        else:
            fit, held_out, unseen = self._control()
        return TrialImages(
            [apply_changes(pixels, changes, number) for number, pixels in enumerate(fit)],
            [apply_changes(pixels, changes, HELD_OUT_SEED + number) for number, pixels in enumerate(held_out)],
            [apply_changes(pixels, changes, UNSEEN_SEED + number) for number, pixels in enumerate(unseen)],
        )

    @property
    def _has_steel(self) -> bool:
        return self._study.train.data.dataset is not None

    def _steel(self) -> Groups:
        assert self._study.train.data.dataset is not None
        dataset = load_dataset(self._study.train.data.dataset)
        unseen = [sample.load() for sample in dataset.test if not sample.is_anomalous]
        return *self._parted([sample.load() for sample in dataset.fit]), unseen

    def _control(self) -> Groups:
        if self._study.control is None:
            raise ConfigError("a condition names the control dataset, but control is not set: give its kind and root")
        dataset = load_dataset(self._study.control)
        held_out = [sample for sample in dataset.test if not sample.is_anomalous]
        return _sized(dataset.fit[:MAX_CONTROL_IMAGES]), _sized(held_out), []

    def _generated(self, knobs: dict[str, float]) -> Groups:
        knobs = {**self._study.generated_knobs, **knobs}
        strips = [generated_strip(self._study.train.seed, number, knobs) for number in range(NUM_GENERATED)]
        return *self._parted(strips[NUM_UNSEEN_GENERATED:]), strips[:NUM_UNSEEN_GENERATED]

    def _parted(self, strips: Sequence[Pixels]) -> tuple[list[Pixels], list[Pixels]]:
        """Cut every strip into its left part, to fit on, and its right end, for the probe."""
        borders_px = [round((1 - self._study.probe_share) * strip.shape[1]) for strip in strips]
        left = [strip[:, :border_px] for strip, border_px in zip(strips, borders_px, strict=True)]
        return left, [strip[:, border_px:] for strip, border_px in zip(strips, borders_px, strict=True)]


def generated_strip(seed: int, index: int, knobs: dict[str, float]) -> Pixels:
    """Generate a nominal strip, pixels_HW1 or, with chroma, pixels_HW3.

    Args:
        knobs: `grain` (sd, grey levels), `black` (share of the width that is black), `spread` (sd of the strips'
            brightness), `direction` (1: horizontal streaks as rolled; 0: turned upright), `chroma` (levels of tint).
    """
    unknown = sorted(set(knobs) - {"grain", "black", "spread", "direction", "chroma"})
    if unknown:
        raise ConfigError(f"generated strips have no knob {unknown[0]!r}: grain, black, spread, direction, chroma")
    rng = np.random.default_rng([seed, index, 77])
    brightness = float(np.clip(110 + rng.standard_normal() * knobs.get("spread", 12.0), 40, 215))
    size_px = GENERATED_SIZE_PX
    if knobs.get("direction", 1.0) == 0:
        size_px = (size_px[1], size_px[0])
    strip_HW = make_strip(
        seed, index, size_px=size_px, grain_sd=knobs.get("grain", 6.0), brightness=brightness
    ).pixels_HW
    if knobs.get("direction", 1.0) == 0:
        strip_HW = np.ascontiguousarray(strip_HW.T)
    pixels_HWC = strip_HW[:, :, None]
    if knobs.get("black", 0.0) > 0:
        pixels_HWC = apply_changes(pixels_HWC, (("bands", knobs["black"]),), index)
    if knobs.get("chroma", 0.0) > 0:
        tint_C = rng.uniform(-1, 1, 3) * knobs["chroma"]
        pixels_HWC = np.asarray(np.clip(pixels_HWC + tint_C, 0, 255), dtype=np.uint8)
    return pixels_HWC


def parted_test(dataset: Dataset) -> tuple[list[Sample], list[Sample]]:
    """Split a test set into every third defective strip, by which a recipe may be chosen, and all other strips."""
    defective = sorted((sample for sample in dataset.test if sample.is_anomalous), key=lambda sample: sample.key)
    clean = [sample for sample in dataset.test if not sample.is_anomalous]
    validation = defective[::VALIDATION_STEP]
    return validation, clean + [sample for sample in defective if sample not in validation]


def _sized(samples: Sequence[Sample]) -> list[Pixels]:
    return [resize(sample.load(), CONTROL_SIZE_PX) for sample in samples]
