"""Scorers of trained networks: `DraemScorer` and `ConvAutoencoderScorer`.

Shapes: H height, W width, C channels of an image or its map;
h, w the network's input; B views in one pass; N images.
"""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft, ndimage
from torch.nn import functional

from steelray.imaging.scorer import Evidence, Images, Scorer
from steelray.reconstruction.build import Network
from steelray.reconstruction.config import InputConfig
from steelray.reconstruction.conv_autoencoder import ConvAutoencoder
from steelray.reconstruction.draem import Draem
from steelray.reconstruction.input import map_size_px, merge_tiles, scored_size_px, scoring_views, to_unit_range

Map = NDArray[np.float32]

SCORE_WINDOW_PX = 21
"""Side of the square over which a map is averaged before its maximum is taken."""
GPU_VIEWS = 8
CPU_PASS_PX = 256 * 256
"""Pixels in one pass on CPUs: one view of 256x256, or several smaller ones."""


class _ReconstructionScorer(Scorer):
    """Base of the scorers: an image's score is the maximum of its map's 21×21 box average.

    As in DRAEM's official code, zeros beyond the edge count in the average. The window is in pixels of the network's
    input, even if `scoring_scale` shrinks images.

    Every pass has the same number of views, padded with zero views, so that a score does not depend on the other images
    of the batch, to the last bit.
    """

    min_size_px = 1

    def __init__(
        self,
        model: torch.nn.Module,
        input_config: InputConfig,
        device: torch.device | str = "cpu",
        map_sigma_px: float = 0.0,
    ) -> None:
        self._device = torch.device(device)
        self._model = model.to(self._device).to(memory_format=torch.channels_last).eval()
        self._input = input_config
        self._map_sigma_px = map_sigma_px
        size_px = input_config.size_px[0] * input_config.size_px[1]
        self._views_per_pass = GPU_VIEWS if self._device.type == "cuda" else max(1, CPU_PASS_PX // size_px)

    def measure(self, images: Images, keys: Sequence[str] | None = None) -> list[Evidence]:
        """Return the map of each image at the size that the network saw. A network knows no strip by its key."""
        plans = [scoring_views(image, self._input) for image in images]
        view_maps = iter(self._run([view for views, _ in plans for view in views]))
        sizes_px = [(image.shape[0], image.shape[1]) for image in images]
        return [
            [merge_tiles([next(view_maps) for _ in views], tiles, scored_size_px(size_px, self._input))]
            for size_px, (views, tiles) in zip(sizes_px, plans, strict=True)
        ]

    def anomaly_map(self, evidence: Evidence, size_px: tuple[int, int]) -> Map:
        map_HW = resize_map(evidence[0], map_size_px(size_px, self._input))
        return smooth_map(map_HW, self._map_sigma_px) if self._map_sigma_px > 0 else map_HW

    def anomaly_score(self, evidence: Evidence) -> float:
        return box_maximum(evidence[0], SCORE_WINDOW_PX)

    def _run(self, views: Sequence[NDArray[np.uint8]]) -> list[Map]:
        maps: list[Map] = []
        for start in range(0, len(views), self._views_per_pass):
            inputs = [to_unit_range(view) for view in views[start : start + self._views_per_pass]]
            batch = np.zeros((self._views_per_pass, *inputs[0].shape), dtype=np.float32)
            batch[: len(inputs)] = inputs
            images_BCHW = torch.from_numpy(batch).to(self._device, memory_format=torch.channels_last)
            with torch.inference_mode():
                maps.extend(self._maps(images_BCHW).cpu().numpy()[: len(inputs)])
        return maps

    @abstractmethod
    def _maps(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Compute maps_Bhw of images in [0, 1]."""


class DraemScorer(_ReconstructionScorer):
    """Scorer whose map is the softmax probability of an anomaly at every pixel."""

    def _maps(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        _, logits_B2HW = self._model(images_BCHW)
        probabilities_B2HW: torch.Tensor = logits_B2HW.softmax(dim=1)
        return probabilities_B2HW[:, 1]


class ConvAutoencoderScorer(_ReconstructionScorer):
    """Scorer whose map is the absolute difference of image and reconstruction, averaged over the channels.

    Differs from the thesis in the score, which is the share of pixels above a threshold there (`defect_shares`).
    """

    def _maps(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        difference_BCHW: torch.Tensor = (self._model(images_BCHW) - images_BCHW).abs()
        return difference_BCHW.mean(dim=1)


def reconstruction_scorer(
    model: Network, input_config: InputConfig, device: torch.device | str = "cpu"
) -> DraemScorer | ConvAutoencoderScorer:
    """Return the scorer of a trained network."""
    if isinstance(model, ConvAutoencoder):
        return ConvAutoencoderScorer(model, input_config, device)
    assert isinstance(model, Draem)
    return DraemScorer(model, input_config, device, model.config.map_sigma_px)


def resize_map(map_HW: Map, size_px: tuple[int, int]) -> Map:
    """Resize a map to this height and width, bilinear."""
    if map_HW.shape == size_px:
        return map_HW
    map_11HW = torch.from_numpy(map_HW)[None, None]
    return np.asarray(functional.interpolate(map_11HW, size=size_px, mode="bilinear")[0, 0].numpy())


def smooth_map(map_HW: Map, sigma_px: float) -> Map:
    """Convolve a map with a Gaussian, mirrored at the map's edges.

    The cosine transform takes the same time for every width, whereas a convolution slows down with a wide kernel.
    """
    spectrum_HW = fft.dctn(map_HW, type=2)
    for axis, size in enumerate(map_HW.shape):
        gain = np.exp(-0.5 * (sigma_px * np.pi * np.arange(size) / size) ** 2).astype(np.float32)
        spectrum_HW *= np.expand_dims(gain, 1 - axis)
    return np.asarray(fft.idctn(spectrum_HW, type=2), dtype=np.float32)


def box_maximum(map_HW: Map, window_px: int) -> float:
    """Return the largest mean over a square of pixels, with zeros beyond the edge."""
    return float(ndimage.uniform_filter(map_HW, window_px, mode="constant").max())
