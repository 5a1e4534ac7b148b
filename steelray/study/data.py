"""The study's images: strips to fit on, to cut the probe from and to test on, and the conditions made of them.

No strip is in two of the three. Shapes: H height, W width, C channels; pixels uint8.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from steelray.config import ConfigError, DatasetConfig
from steelray.data.anomaly_sources import AnomalySource, list_textures
from steelray.data.datasets import Sample, load_dataset
from steelray.data.decode import resize
from steelray.data.synthetic import make_strip
from steelray.study.condition import parse_condition
from steelray.study.config import StudyConfig
from steelray.study.plan import Trial
from steelray.study.transplant import apply_changes
from steelray.study.trial import TrialImages

Pixels = NDArray[np.uint8]
CONTROL_SIZE_PX = (256, 256)
MAX_CONTROL_IMAGES = 64
NUM_GENERATED, GENERATED_SIZE_PX = 20, (128, 320)
HELD_OUT_SEED = 10_000


class StudyImages:
    """Loads each dataset once and makes conditions of it."""

    def __init__(self, study: StudyConfig) -> None:
        self._study = study
        uri = study.train.synthesis.texture_uri
        self.textures: AnomalySource | None = list_textures(uri) if uri is not None else None

    def condition(self, text: str) -> TrialImages:
        """The images of a condition, such as `steel+denoise=2`.

        Raises:
            ConfigError: its dataset is not set, or has no clean images to spare for the probe.
        """
        condition = parse_condition(text)
        changes = condition.changes
        if condition.dataset == "generated" or (condition.dataset == "steel" and not self._has_steel):
            knobs = dict(changes) if condition.dataset == "generated" else {}
            fit, held_out = self._generated(knobs)
            changes = () if condition.dataset == "generated" else changes
        elif condition.dataset == "steel":
            fit, held_out = self._steel()
        else:
            fit, held_out = self._control()
        return TrialImages(
            [apply_changes(pixels, changes, number) for number, pixels in enumerate(fit)],
            [apply_changes(pixels, changes, HELD_OUT_SEED + number) for number, pixels in enumerate(held_out)],
        )

    def of(self, trial: Trial) -> TrialImages:
        """The images of a trial's condition."""
        return self._cached(trial.condition)

    def test_samples(self) -> list[Sample]:
        """The strips that neither fit nor probe has seen."""
        assert self._study.train.data.dataset is not None
        return split_for_study(self._study.train.data.dataset, self._study.num_probe_images)[2]

    @lru_cache(maxsize=4)  # noqa: B019 (lives as long as the process's one study)
    def _cached(self, condition: str) -> TrialImages:
        return self.condition(condition)

    @property
    def _has_steel(self) -> bool:
        return self._study.train.data.dataset is not None

    def _steel(self) -> tuple[list[Pixels], list[Pixels]]:
        assert self._study.train.data.dataset is not None
        fit, probe, _ = split_for_study(self._study.train.data.dataset, self._study.num_probe_images)
        return [sample.load() for sample in fit], [sample.load() for sample in probe]

    def _control(self) -> tuple[list[Pixels], list[Pixels]]:
        if self._study.control is None:
            raise ConfigError("a condition names the control dataset, but control is not set: give its kind and root")
        dataset = load_dataset(self._study.control)
        held_out = [sample for sample in dataset.test if not sample.is_anomalous]
        return _sized(dataset.fit[:MAX_CONTROL_IMAGES]), _sized(held_out)

    def _generated(self, knobs: dict[str, float]) -> tuple[list[Pixels], list[Pixels]]:
        knobs = {**self._study.generated_knobs, **knobs}
        strips = [generated_strip(self._study.train.seed, number, knobs) for number in range(NUM_GENERATED)]
        return strips[self._study.num_probe_images :], strips[: self._study.num_probe_images]


def generated_strip(seed: int, index: int, knobs: dict[str, float]) -> Pixels:
    """A nominal strip, pixels_HW1 or, with chroma, pixels_HW3.

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


def split_for_study(config: DatasetConfig, num_probe_images: int) -> tuple[list[Sample], list[Sample], list[Sample]]:
    """Strips to fit on, clean ones for the probe, and those to test on.

    Raises:
        ConfigError: too few clean strips.
    """
    dataset = load_dataset(config)
    clean = [sample for sample in dataset.test if not sample.is_anomalous]
    if len(clean) <= num_probe_images:
        raise ConfigError(
            f"{config.root}: {len(clean)} clean images are held out and the probe takes {num_probe_images}: "
            "lower train.data.dataset.num_fit"
        )
    chosen = {id(sample) for sample in clean[:num_probe_images]}
    return dataset.fit, clean[:num_probe_images], [sample for sample in dataset.test if id(sample) not in chosen]


def _sized(samples: Sequence[Sample]) -> list[Pixels]:
    return [resize(sample.load(), CONTROL_SIZE_PX) for sample in samples]
