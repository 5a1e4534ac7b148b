"""The settings of training: anomaly synthesis, losses, optimiser, run. Imports neither torch nor ray.

A field's docstring is its help text. Sizes are height before width, in pixels. Defaults are the published DRAEM recipe
(Zavrtanik et al. 2021); every departure from it is an option that is off by default.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from steelray.config import ArchiveConfig, CalibrationConfig, ConfigError, DatasetConfig, DecodeConfig, require

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


@dataclass(frozen=True)
class SynthesisConfig:
    """How anomalies are made for DRAEM (its section 3.3). conv_ae trains on clean images and ignores this."""

    anomaly_probability: float = 0.5
    """Share of the training images that get an anomaly."""
    texture_uri: str | None = None
    """Folder or s3:// prefix of texture images, such as Describable Textures (CLASS/*.jpg); null: generated ones."""
    self_source_probability: float = 0.0
    """Share of anomalies whose source is another training image instead of a texture (H5)."""
    grey_source_probability: float = 0.0
    """Share of anomalies whose source loses its colour (H5)."""
    match_contrast: bool = False
    """Give the source the mean and standard deviation of the image that it covers (H5)."""
    blend: Literal["alpha", "poisson"] = "alpha"
    """`poisson`: shift the source by a harmonic membrane so that it meets the image at the mask's edge (H5)."""
    perlin_exponents: tuple[int, int] = (0, 5)
    """The noise has 2^k cells along each axis, k drawn between these two, both included (H5)."""
    opacity_min: float = 0.2
    """Least opacity of an anomaly; the paper's 1 - beta, beta ~ U(0, 0.8) (H7)."""
    opacity_max: float = 1.0
    """Largest opacity of an anomaly (H7)."""
    relabel_levels: float | None = None
    """Label only pixels that changed by more than this many of 255 grey levels; null: the whole mask (H7)."""
    rotate: Literal["r90", "flips", "none"] = "r90"
    """`r90`: turn three images in ten by up to 90 degrees either way, black corners (the paper). `flips`: mirror three
    in ten along each axis (H6)."""
    target_blur_px: float = 0.0
    """Standard deviation of a Gaussian that smooths the image to be reconstructed (H1)."""
    foreground: Literal["none", "synthesis", "all"] = "none"
    """`synthesis`: anomalies on the strip only, not on black. `all`: the reconstruction loss skips black too (H3)."""

    def __post_init__(self) -> None:
        for name in ("anomaly_probability", "self_source_probability", "grey_source_probability"):
            require(0 <= getattr(self, name) <= 1, f"{name} must lie in [0, 1], not {getattr(self, name)}")
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
        require(self.target_blur_px >= 0, f"target_blur_px must be >= 0, not {self.target_blur_px}")
        require(self.texture_uri != "", "texture_uri is empty: give a folder or s3:// prefix of textures, or null")


@dataclass(frozen=True)
class LossConfig:
    """Weights of DRAEM's loss terms beside the mean squared error, whose weight is 1. conv_ae has that one only."""

    w_ssim: float = 1.0
    """1 - SSIM of the reconstruction."""
    w_focal: float = 1.0
    """Focal loss of the segmentation."""
    gamma: float = 2.0
    """The focal loss's exponent; 0 is cross entropy."""
    detach: bool = False
    """Keep the segmentation's gradient out of the reconstructive network (H8)."""

    def __post_init__(self) -> None:
        for name in ("w_ssim", "w_focal"):
            require(getattr(self, name) >= 0, f"{name} must be >= 0, not {getattr(self, name)}")
        require(self.gamma == 0 or self.gamma >= 1, f"gamma must be 0 or >= 1, not {self.gamma}")


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam and its schedule, which counts steps and never epochs."""

    lr: float = 1e-4
    """Learning rate at the start."""
    schedule: Literal["multistep", "cosine", "constant"] = "multistep"
    """`multistep`: times `decay` at each milestone (the paper). `cosine`: down to zero."""
    milestones: tuple[float, ...] = (0.8, 0.9)
    """Where `multistep` lowers the rate, as shares of the run."""
    decay: float = 0.2
    """Factor at each milestone."""
    clip: float = 0.0
    """Largest norm of the whole gradient; 0 does not clip (H2)."""
    ema: float = 0.0
    """Decay per step of an average of the weights and of batch normalisation's statistics, which is then what is
    evaluated and stored; 0: none (H2, H4)."""
    freeze_statistics: float = 1.0
    """Share of the run from which batch normalisation keeps its statistics (with ema the averaged ones) and normalises
    by them in training too; 1: never, the paper (H4)."""

    def __post_init__(self) -> None:
        require(self.lr > 0, f"lr must be > 0, not {self.lr}")
        require(
            all(0 < share < 1 for share in self.milestones) and list(self.milestones) == sorted(self.milestones),
            f"milestones must rise within (0, 1), not {list(self.milestones)}",
        )
        require(0 < self.decay <= 1, f"decay must lie in (0, 1], not {self.decay}")
        require(self.clip >= 0, f"clip must be >= 0, not {self.clip}")
        require(0 <= self.ema < 1, f"ema must lie in [0, 1), not {self.ema}")
        require(0 < self.freeze_statistics <= 1, f"freeze_statistics must lie in (0, 1], not {self.freeze_statistics}")

    def rate_at(self, step: int, num_steps: int) -> float:
        """The learning rate of a step, counted from 0, in a run of `num_steps`."""
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * step / num_steps)) / 2
        return self.lr * self.decay ** sum(step >= share * num_steps for share in self.milestones)


@dataclass(frozen=True)
class TrainDataConfig:
    """The nominal images to learn from: a labelled dataset's, an archive's, or generated ones."""

    dataset: DatasetConfig | None = None
    """A dataset in the layout in which it is downloaded; its nominal fit images are used."""
    nominal: ArchiveConfig | None = None
    """Images of normal strips in object storage or in a folder."""
    generated: int | None = None
    """So many procedural strips of 256x256, to try the job without data."""
    max_black_fraction: float = 1.0
    """Leave out images (with tiling crop: crops) of which more than this share is black (H3)."""

    def __post_init__(self) -> None:
        require(
            [self.dataset, self.nominal, self.generated].count(None) == 2,
            "give one of data.dataset (kind and root), data.nominal (uri) and data.generated, and no other of them",
        )
        require(
            0 <= self.max_black_fraction <= 1, f"max_black_fraction must lie in [0, 1], not {self.max_black_fraction}"
        )


@dataclass(frozen=True)
class TrainConfig:
    """jobs/train.py"""

    FIRST: ClassVar[tuple[str, ...]] = (
        "model", "output_uri", "run_name", "data.nominal.uri", "data.dataset.kind", "data.dataset.root", "num_epochs",
        "input.size_px", "gpus_per_worker",
    )  # fmt: skip

    model: ModelKind
    """`draem`, or `conv_ae` (the thesis's convolutional autoencoder)."""
    data: TrainDataConfig
    output_uri: str
    """Where runs go, s3://bucket/prefix or a local folder; this one into output_uri/RUN_NAME/."""
    run_name: str
    """Name of this run. A run of the same name continues from its last checkpoint."""
    input: InputConfig = field(default_factory=InputConfig)
    draem: DraemConfig = field(default_factory=DraemConfig)
    conv_ae: ConvAutoencoderConfig = field(default_factory=ConvAutoencoderConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    num_epochs: int = 700
    """Passes over the training images."""
    num_steps: int | None = None
    """Length of the run in steps; overrides num_epochs."""
    batch_size: int = 8
    """Images per step, over all workers."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the networks; losses, outputs and weights are fp32 always."""
    seed: int = 0
    """Seed of the initial weights, of the images' order and of every synthetic anomaly."""
    checkpoint_every_steps: int = 500
    """Steps from one checkpoint to the next; the last step has one always."""
    num_workers: int = 1
    """Training processes, each on its share of every batch."""
    cpus_per_worker: float = 1.0
    """CPU share, and so the threads, of one of them."""
    gpus_per_worker: float = 0.0
    """GPU share of one of them."""
    max_failures: ClassVar[int] = 3
    """How often a lost worker is replaced before the run fails."""
    mlflow_uri: str | None = None
    """Also log the metrics to this MLflow tracking server or folder; needs `pip install mlflow`."""
    overwrite: bool = False
    """Start afresh where a run of this name is."""
    dry_run: bool = False
    """Print the resolved settings and the plan, and do nothing."""

    def __post_init__(self) -> None:
        require(bool(self.output_uri), "output_uri is empty: give s3://bucket/prefix or a local folder")
        require(
            self.run_name.replace("-", "").replace("_", "").isalnum(),
            f"run_name may hold letters, digits, '-' and '_' only: {self.run_name!r}",
        )
        for name in ("num_epochs", "batch_size", "checkpoint_every_steps", "num_workers", "cpus_per_worker"):
            require(getattr(self, name) > 0, f"{name} must be > 0, not {getattr(self, name)}")
        require(self.num_steps is None or self.num_steps > 0, f"num_steps must be > 0, not {self.num_steps}")
        require(self.gpus_per_worker >= 0, f"gpus_per_worker must be >= 0, not {self.gpus_per_worker}")
        require(
            self.batch_size % self.num_workers == 0,
            f"batch_size {self.batch_size} does not divide among {self.num_workers} workers: "
            f"make it a multiple of {self.num_workers}",
        )
        self.input.check_stride(self.model)

    @property
    def log_every_steps(self) -> int:
        """Return the steps from one line of metrics to the next: ten, fewer in a short run."""
        return 10 if self.num_steps is None else max(1, min(10, self.num_steps // 20))

    @property
    def network(self) -> DraemConfig | ConvAutoencoderConfig:
        """The config of the network that is trained."""
        return self.draem if self.model == "draem" else self.conv_ae

    def total_steps(self, num_images: int) -> int:
        """Steps of the whole run on so many training images."""
        if self.num_steps is not None:
            return self.num_steps
        return max(1, self.num_epochs * num_images // self.batch_size)
