"""The settings of the networks that are trained, stored with their checkpoints. Imports neither torch nor ray.

A field's docstring is its help text. Defaults are the papers'; every departure is an option that is off by default.
"""

from dataclasses import dataclass
from typing import Literal

from steelray.config import ConfigError, require

ModelKind = Literal["draem", "conv_ae"]
STRIDE_PX = {"draem": 32, "conv_ae": 16}
"""What a network's input height and width must be divisible by."""


@dataclass(frozen=True)
class InputConfig:
    """How an image becomes the network's input, in training and in scoring. Stored with the checkpoint."""

    size_px: tuple[int, int] = (256, 256)
    """Height and width of the network's input."""
    tiling: Literal["squeeze", "crop"] = "squeeze"
    """`squeeze`: resize the whole image (the thesis). `crop`: native resolution; random crops in training, overlapping
    tiles that cover the image in scoring."""
    brightness_norm: Literal["none", "strip"] = "none"
    """`strip`: scale every image so that the mean of its foreground is mid grey."""
    scoring_scale: float = 1.0
    """Scoring shrinks an image to this share of its height and width before it is cut into tiles, and enlarges its map
    again, so that a tile shows more of the strip; training does not. Needs `crop`. 1: as in training."""

    def __post_init__(self) -> None:
        require(0 < self.scoring_scale <= 1, f"scoring_scale must lie in (0, 1], not {self.scoring_scale}")
        require(
            self.scoring_scale == 1 or self.tiling == "crop",
            "scoring_scale needs tiling: crop; `squeeze` resizes the whole image already",
        )
        require(min(self.size_px) >= 16, f"size_px must be at least 16x16, not {list(self.size_px)}")

    def check_stride(self, kind: ModelKind) -> None:
        """Raises `ConfigError` unless the network of this kind can take inputs of this size."""
        stride = STRIDE_PX[kind]
        if any(size % stride for size in self.size_px):
            nearest = [max(stride, round(size / stride) * stride) for size in self.size_px]
            raise ConfigError(
                f"input size {list(self.size_px)} is not divisible by {stride}, as {kind} needs; nearest: {nearest}"
            )


@dataclass(frozen=True)
class DraemConfig:
    """The two sub-networks of DRAEM. Stored with the checkpoint."""

    width: float = 1.0
    """Multiplies the channels of both: 1.0 is the paper's (128 and 64 in the first block; 69.05 M and 28.37 M
    parameters). A multiple of 1/16."""
    norm: Literal["bn", "gn"] = "bn"
    """`bn`: batch normalisation (the paper). `gn`: group normalisation, which does not look at other images."""
    halvings: int = 4
    """How often the reconstructive network halves the image, 1 to 4 (the paper): with fewer it keeps finer detail, and
    sees less of what surrounds an anomaly (H1)."""
    map_sigma_px: float = 0.0
    """Standard deviation of a Gaussian that smooths the anomaly map, in its pixels; the image's score is taken before
    it. 0: none (the paper)."""

    def __post_init__(self) -> None:
        require(
            self.width > 0 and float(self.width * 16).is_integer(),
            f"width must be a positive multiple of 1/16, not {self.width}",
        )
        require(1 <= self.halvings <= 4, f"halvings must lie in 1..4, not {self.halvings}")
        require(self.map_sigma_px >= 0, f"map_sigma_px must be >= 0, not {self.map_sigma_px}")


@dataclass(frozen=True)
class ConvAutoencoderConfig:
    """The convolutional autoencoder of the thesis (its table 2). Stored with the checkpoint."""

    output_activation: Literal["relu", "sigmoid", "none"] = "relu"
    """After the last layer; the thesis's table names ReLU for every layer."""


NetworkConfig = DraemConfig | ConvAutoencoderConfig


def kind_of(network: NetworkConfig) -> ModelKind:
    """The name under which `TrainConfig.model` and a checkpoint know a network."""
    return "draem" if isinstance(network, DraemConfig) else "conv_ae"
