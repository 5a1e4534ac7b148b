"""Training samples from nominal images: DRAEM's synthetic anomalies (Zavrtanik et al. 2021, section 3.3).

A sample depends on the image, the config and (seed, epoch, index) only, not on the worker that makes it. Shapes: C = 3
channels (RGB), H height and W width of the network's input; N training images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from steelray.config import ConfigError
from steelray.reconstruction.blending import alpha_blend, match_contrast, meet_at_edge
from steelray.reconstruction.config import SynthesisConfig, TrainConfig
from steelray.reconstruction.input import foreground_mask, to_unit_range, training_view
from steelray.reconstruction.perlin import gaussian_blur, perlin_mask, rotate
from steelray.reconstruction.sources import AnomalySource, GeneratedSource, augment_source, list_textures

ROTATE_PROBABILITY = 0.3
"""Chance that an image is turned, or mirrored along an axis."""

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class TrainingSample:
    """One training image with its target.

    Attributes:
        image_CHW: the network's input, float32 in [0, 1].
        target_CHW: the desired reconstruction, float32 in [0, 1].
        mask_HW: True on anomalous pixels.
        foreground_HW: True on pixels that count in the reconstruction loss; None counts all.
    """

    key: str
    image_CHW: Floats
    target_CHW: Floats
    mask_HW: Mask
    foreground_HW: Mask | None = None


class SampleMaker:
    """Maker of a run's training samples.

    Args:
        textures: source of anomalies; None: that of `config.synthesis.texture_uri`.
        others: the run's training images, pixels_HWC uint8 each, for `self_source_probability`.

    Raises:
        ConfigError: the textures cannot be listed, or `others` is needed but missing or empty.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        textures: AnomalySource | None = None,
        others: Sequence[NDArray[np.uint8]] | None = None,
    ) -> None:
        self._config = config
        self._others = others
        self._textures: AnomalySource = GeneratedSource()
        if config.model == "conv_ae":
            return
        if config.synthesis.self_source_probability > 0 and not others:
            raise ConfigError("self_source_probability is above 0 but there are no training images to draw from")
        if textures is not None:
            self._textures = textures
        elif config.synthesis.texture_uri is not None:
            self._textures = list_textures(config.synthesis.texture_uri)

    def sample(self, pixels_HWC: NDArray[np.uint8], key: str, *, epoch: int, index: int) -> TrainingSample:
        """Make the sample of one image, pixels_HWC uint8 (C = 1 or 3) of any size.

        Args:
            epoch, index: number of the pass over the images, and the image's number in the pass. They and the run's
                seed determine the sample's randomness.
        """
        config, synthesis = self._config, self._config.synthesis
        rng = np.random.default_rng([config.seed, epoch, index])
        view_hwC = training_view(pixels_HWC, config.input, rng, config.data.max_black_fraction)
        if config.model == "conv_ae":
            image_CHW = to_unit_range(view_hwC)
            return TrainingSample(key, image_CHW, image_CHW, np.zeros(image_CHW.shape[1:], dtype=bool))
        view_hwC = _turned(view_hwC, synthesis, rng)
        image_CHW = target_CHW = to_unit_range(view_hwC)
        if synthesis.target_blur_px > 0:
            blurred_HWC = gaussian_blur(image_CHW.transpose(1, 2, 0), synthesis.target_blur_px)
            target_CHW = np.ascontiguousarray(blurred_HWC.transpose(2, 0, 1))
        foreground_HW = None if synthesis.foreground == "none" else foreground_mask(view_hwC)
        counted_HW = foreground_HW if synthesis.foreground == "all" else None
        mask_HW = np.zeros(image_CHW.shape[1:], dtype=bool)
        if rng.random() < synthesis.anomaly_probability:
            mask_HW = perlin_mask(rng, config.input.size_px, synthesis.perlin_exponents)
            if foreground_HW is not None:
                mask_HW &= foreground_HW
        if not mask_HW.any():
            return TrainingSample(key, image_CHW, target_CHW, mask_HW, counted_HW)
        anomalous_CHW = self._anomalous(image_CHW, mask_HW, rng)
        if synthesis.relabel_levels is not None:
            mask_HW &= np.abs(anomalous_CHW - image_CHW).max(axis=0) > synthesis.relabel_levels / 255
        return TrainingSample(key, anomalous_CHW, target_CHW, mask_HW, counted_HW)

    def _anomalous(self, image_CHW: Floats, mask_HW: Mask, rng: np.random.Generator) -> Floats:
        synthesis = self._config.synthesis
        opacity = rng.uniform(synthesis.opacity_min, synthesis.opacity_max)
        source_CHW = self._source(rng)
        if synthesis.match_contrast:
            source_CHW = match_contrast(source_CHW, image_CHW, mask_HW)
        if synthesis.blend == "poisson":
            source_CHW = meet_at_edge(source_CHW, image_CHW, mask_HW)
        return alpha_blend(image_CHW, source_CHW, mask_HW, opacity)

    def _source(self, rng: np.random.Generator) -> Floats:
        config = self._config
        if self._others is not None and rng.random() < config.synthesis.self_source_probability:
            other_HWC = self._others[int(rng.integers(len(self._others)))]
            view_hwC = training_view(other_HWC, config.input, rng)
            source_HWC = np.broadcast_to(view_hwC, (*config.input.size_px, 3))
        else:
            source_HWC = self._textures.draw(rng, config.input.size_px)
        source_HWC = augment_source(rng, source_HWC)
        grey_probability = config.synthesis.grey_source_probability
        if grey_probability > 0 and rng.random() < grey_probability:
            source_HWC = np.rint(source_HWC.mean(axis=2, keepdims=True)).astype(np.uint8)
        return to_unit_range(source_HWC)


def _turned(view_hwC: NDArray[np.uint8], config: SynthesisConfig, rng: np.random.Generator) -> NDArray[np.uint8]:
    if config.rotate == "r90" and rng.random() < ROTATE_PROBABILITY:
        return rotate(view_hwC, rng.uniform(-90, 90))
    if config.rotate == "flips":
        down, across = rng.random(2) < ROTATE_PROBABILITY
        return view_hwC[:: -1 if down else 1, :: -1 if across else 1]
    return view_hwC


def samples_of_step(step: int, batch_size: int, num_images: int, seed: int) -> list[tuple[int, int]]:
    """List (epoch, index) of the images in a training step, for all workers together.

    The images of all epochs, each epoch shuffled by (seed, epoch), form one sequence; a step takes the next
    `batch_size` of it. Worker r of n takes every n-th image from r.
    """
    positions = range(step * batch_size, (step + 1) * batch_size)
    places = (divmod(position, num_images) for position in positions)
    return [(epoch, int(_order(seed, epoch, num_images)[rank])) for epoch, rank in places]


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, num_images: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(num_images)
