"""Settings of training: input, networks, anomaly synthesis, losses, optimiser, run. Imports neither torch nor ray.

A field's docstring is its help text. Sizes are in pixels, height before width. Defaults are the published DRAEM recipe
(Zavrtanik et al. 2021, "the paper"); every departure from it is an option that is off by default.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from steelray.config import (
    ArchiveConfig,
    CalibrationConfig,
    ConfigError,
    DatasetConfig,
    DecodeConfig,
    require,
    require_range,
)

ModelKind = Literal["draem", "conv_ae"]
STRIDE_PX = {"draem": 32, "conv_ae": 16}
"""Divisor of a network's input height and width."""


@dataclass(frozen=True)
class InputConfig:
    """Preparation of an image as the network's input, in training and in scoring. Stored with the checkpoint."""

    size_px: tuple[int, int] = (256, 256)
    """Height and width of the network's input."""
    tiling: Literal["squeeze", "crop"] = "squeeze"
    """`squeeze`: resize the whole image, as in the thesis. `crop`: keep its resolution, with random crops in training
    and overlapping tiles in scoring."""
    brightness_norm: Literal["none", "strip"] = "none"
    """`strip`: scale every image so that the mean of its foreground is mid grey."""
    scoring_scale: float = 1.0
    """Factor by which scoring shrinks an image before cutting it into tiles, so that a tile shows more of the strip;
    the map is enlarged again. Needs tiling `crop`. 1: score at the resolution of training."""

    def __post_init__(self) -> None:
        require_range(self, "lie in (0, 1]", "scoring_scale")
        require(
            self.scoring_scale == 1 or self.tiling == "crop",
            "scoring_scale needs tiling: crop, because `squeeze` already resizes the whole image",
        )
        require(min(self.size_px) >= 16, f"size_px must be at least 16x16, not {list(self.size_px)}")

    def check_stride(self, kind: ModelKind) -> None:
        """Raise `ConfigError` unless a network of this kind accepts inputs of this size."""
        stride = STRIDE_PX[kind]
        if any(size % stride for size in self.size_px):
            nearest = [max(stride, round(size / stride) * stride) for size in self.size_px]
            raise ConfigError(
                f"input size {list(self.size_px)} is not divisible by {stride}, which {kind} needs; nearest: {nearest}"
            )


@dataclass(frozen=True)
class DraemConfig:
    """DRAEM's two sub-networks. Stored with the checkpoint."""

    width: float = 1.0
    """Factor of the channels of both, a multiple of 1/16. 1: as in the paper, with 69.05 M and 28.37 M parameters."""
    norm: Literal["bn", "gn"] = "bn"
    """`bn`: batch normalisation, as in the paper. `gn`: group normalisation, which does not depend on other images."""
    halvings: int = 4
    """Number of times that the reconstructive network halves the image, 1 to 4. 4: as in the paper. With fewer it keeps
    finer detail and sees less around an anomaly."""
    map_sigma_px: float = 0.0
    """Standard deviation of a Gaussian that smooths the anomaly map, in pixels of the map; the image's score is taken
    before it. 0: no smoothing, as in the paper."""

    def __post_init__(self) -> None:
        require(
            self.width > 0 and float(self.width * 16).is_integer(),
            f"width must be a positive multiple of 1/16, not {self.width}",
        )
        require(1 <= self.halvings <= 4, f"halvings must lie in 1..4, not {self.halvings}")
        require_range(self, "be >= 0", "map_sigma_px")


@dataclass(frozen=True)
class ConvAutoencoderConfig:
    """Convolutional autoencoder of the thesis (its table 2). Stored with the checkpoint."""

    output_activation: Literal["relu", "sigmoid", "none"] = "relu"
    """Activation of the last layer; `relu` as in the thesis."""


NetworkConfig = DraemConfig | ConvAutoencoderConfig


def kind_of(network: NetworkConfig) -> ModelKind:
    """Return a network's name in `TrainConfig.model` and in a checkpoint."""
    return "draem" if isinstance(network, DraemConfig) else "conv_ae"


@dataclass(frozen=True)
class SynthesisConfig:
    """Synthesis of DRAEM's anomalies (section 3.3 of the paper). conv_ae trains on clean images and ignores it."""

    anomaly_probability: float = 0.5
    """Share of the training images that get an anomaly."""
    texture_uri: str | None = None
    """Folder or s3:// prefix of texture images, such as Describable Textures; null: generated textures."""
    self_source_probability: float = 0.0
    """Share of anomalies whose source is another training image instead of a texture."""
    grey_source_probability: float = 0.0
    """Share of anomalies whose source loses its colour."""
    match_contrast: bool = False
    """Give the source the mean and standard deviation of the image that it covers."""
    blend: Literal["alpha", "poisson"] = "alpha"
    """`alpha`: mix source and image, as in the paper. `poisson`: first shift the source so that it meets the image at
    the mask's edge."""
    perlin_exponents: tuple[int, int] = (0, 5)
    """Smallest and largest k; the noise that shapes anomalies has 2^k cells along an axis, k drawn for each axis."""
    opacity_min: float = 0.2
    """Least opacity of an anomaly, 1 - beta in the paper, where beta ~ U(0, 0.8)."""
    opacity_max: float = 1.0
    """Largest opacity of an anomaly."""
    relabel_levels: float | None = None
    """Label only pixels that changed by more than this many of 255 grey levels; null: the whole mask, as in the
    paper."""
    rotate: Literal["r90", "flips", "none"] = "r90"
    """`r90`: rotate three images in ten by up to 90 degrees either way, with black corners, as in the paper. `flips`:
    mirror three in ten along each axis."""
    target_blur_px: float = 0.0
    """Standard deviation of a Gaussian that smooths the image to be reconstructed, in pixels. 0: no smoothing."""
    foreground: Literal["none", "synthesis", "all"] = "none"
    """`synthesis`: anomalies on the strip only, not on black. `all`: the reconstruction loss ignores black, too."""

    def __post_init__(self) -> None:
        require_range(
            self, "lie in [0, 1]", "anomaly_probability", "self_source_probability", "grey_source_probability"
        )
        low, high = self.perlin_exponents
        require(0 <= low <= high <= 8, f"perlin_exponents must rise within 0..8, not {list(self.perlin_exponents)}")
        require(
            0 < self.opacity_min <= self.opacity_max <= 1,
            f"opacities must rise within (0, 1], not {self.opacity_min} to {self.opacity_max}",
        )
        require(
            self.relabel_levels is None or 0 <= self.relabel_levels < 255,
            f"relabel_levels must lie in [0, 255), not {self.relabel_levels}",
        )
        require_range(self, "be >= 0", "target_blur_px")
        require(self.texture_uri != "", "texture_uri is empty: give a folder or s3:// prefix of textures, or null")


@dataclass(frozen=True)
class LossConfig:
    """Weights of DRAEM's loss terms beside the mean squared error, whose weight is 1 and which conv_ae uses alone."""

    w_ssim: float = 1.0
    """Weight of 1 - SSIM of the reconstruction."""
    w_focal: float = 1.0
    """Weight of the segmentation's focal loss."""
    gamma: float = 2.0
    """Exponent of the focal loss; 0 is cross entropy."""
    detach: bool = False
    """Keep the segmentation's gradient out of the reconstructive network."""

    def __post_init__(self) -> None:
        require_range(self, "be >= 0", "w_ssim", "w_focal")
        require(self.gamma == 0 or self.gamma >= 1, f"gamma must be 0 or >= 1, not {self.gamma}")


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam and its schedule, which counts steps."""

    lr: float = 1e-4
    """Learning rate at the start."""
    schedule: Literal["multistep", "cosine", "constant"] = "multistep"
    """`multistep`: multiply the rate by `decay` at each milestone, as in the paper. `cosine`: lower it to zero."""
    milestones: tuple[float, ...] = (0.8, 0.9)
    """Shares of the run at which `multistep` lowers the rate."""
    decay: float = 0.2
    """Factor of the rate at each milestone."""
    clip: float = 0.0
    """Largest norm of the whole gradient; 0: no clipping, as in the paper."""
    ema: float = 0.0
    """Decay per step of a running average of weights and batch statistics; the averaged network is evaluated and
    stored. 0: no average, as in the paper."""
    freeze_statistics: float = 1.0
    """Share of the run after which batch normalisation keeps its statistics (with ema the averaged ones) and uses them
    in training, too. 1: never, as in the paper."""

    def __post_init__(self) -> None:
        require_range(self, "be > 0", "lr")
        require(
            all(0 < share < 1 for share in self.milestones) and list(self.milestones) == sorted(self.milestones),
            f"milestones must rise within (0, 1), not {list(self.milestones)}",
        )
        require_range(self, "lie in (0, 1]", "decay", "freeze_statistics")
        require_range(self, "be >= 0", "clip")
        require_range(self, "lie in [0, 1)", "ema")

    def rate_at(self, step: int, num_steps: int) -> float:
        """Return the learning rate of a step, counted from 0, in a run of `num_steps`."""
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * step / num_steps)) / 2
        return self.lr * self.decay ** sum(step >= share * num_steps for share in self.milestones)


@dataclass(frozen=True)
class TrainDataConfig:
    """Nominal images to train on: those of a labelled dataset or of an archive, or generated ones."""

    dataset: DatasetConfig | None = None
    """Labelled dataset in the layout in which it is downloaded; its nominal fit images are used."""
    nominal: ArchiveConfig | None = None
    """Archive of normal strips."""
    generated: int | None = None
    """Number of generated strips of 256x256, to try the job without data."""
    max_black_fraction: float = 1.0
    """Leave out images (with tiling `crop`: crops) of which more than this share is black. 1: use all."""

    def __post_init__(self) -> None:
        require(
            [self.dataset, self.nominal, self.generated].count(None) == 2,
            "give exactly one of data.dataset (kind and root), data.nominal (uri) and data.generated",
        )
        require_range(self, "lie in [0, 1]", "max_black_fraction")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of jobs/train.py."""

    FIRST: ClassVar[tuple[str, ...]] = (
        "model", "output_uri", "run_name", "data.nominal.uri", "data.dataset.kind", "data.dataset.root", "num_epochs",
        "input.size_px", "gpus_per_worker",
    )  # fmt: skip

    model: ModelKind
    """`draem`, or `conv_ae` (the thesis's convolutional autoencoder)."""
    data: TrainDataConfig
    output_uri: str
    """Location of training runs, s3://bucket/prefix or a local folder; this run is stored in output_uri/RUN_NAME/."""
    run_name: str
    """Name of this run; a run that exists is continued from its newest checkpoint."""
    input: InputConfig = field(default_factory=InputConfig)
    draem: DraemConfig = field(default_factory=DraemConfig)
    conv_ae: ConvAutoencoderConfig = field(default_factory=ConvAutoencoderConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    calibration: CalibrationConfig = field(default_factory=lambda: CalibrationConfig(held_out_fraction=0.3))
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    num_epochs: int = 700
    """Passes over the training images."""
    num_steps: int | None = None
    """Length of the run in steps, instead of num_epochs."""
    batch_size: int = 8
    """Images per step, over all workers."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the networks; losses, outputs and weights are always fp32."""
    seed: int = 0
    """Seed of the initial weights, of the order of images and of the synthetic anomalies."""
    checkpoint_every_steps: int = 500
    """Steps between checkpoints; the last step always has one."""
    num_workers: int = 1
    """Number of training processes, each with its share of every batch."""
    cpus_per_worker: float = 1.0
    """CPUs of each training process, and so its threads."""
    gpus_per_worker: float = 0.0
    """GPUs of each training process; 0: train on CPUs."""
    overwrite: bool = False
    """Delete a run of this name and start afresh."""
    dry_run: bool = False
    """Print the resolved settings and the plan, and do nothing."""

    def __post_init__(self) -> None:
        require(bool(self.output_uri), "output_uri is empty: give s3://bucket/prefix or a local folder")
        require(
            self.run_name.replace("-", "").replace("_", "").isalnum(),
            f"run_name may hold letters, digits, '-' and '_' only: {self.run_name!r}",
        )
        counts = ("num_epochs", "num_steps", "batch_size", "checkpoint_every_steps", "num_workers", "cpus_per_worker")
        require_range(self, "be > 0", *counts)
        require_range(self, "be >= 0", "gpus_per_worker")
        require(
            self.batch_size % self.num_workers == 0,
            f"batch_size {self.batch_size} does not divide among {self.num_workers} workers: "
            f"make it a multiple of {self.num_workers}",
        )
        self.input.check_stride(self.model)
        require(
            self.calibration.held_out_fraction > 0,
            "calibration.held_out_fraction is 0: a network has seen its training strips, so hold some out, such as 0.3",
        )

    @property
    def log_every_steps(self) -> int:
        """Steps between lines of metrics: ten, or fewer in a short run."""
        return 10 if self.num_steps is None else max(1, min(10, self.num_steps // 20))

    @property
    def network(self) -> DraemConfig | ConvAutoencoderConfig:
        """Config of the network to train."""
        return self.draem if self.model == "draem" else self.conv_ae

    def total_steps(self, num_images: int) -> int:
        """Return the steps of the whole run on this many training images."""
        if self.num_steps is not None:
            return self.num_steps
        return max(1, self.num_epochs * num_images // self.batch_size)
