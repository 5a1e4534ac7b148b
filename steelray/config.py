"""Typed, validated sections of the settings; `job_config` puts them together. Imports neither torch nor ray.

A field's docstring is its help text. Sizes are height before width, in pixels.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Literal

Facts = Mapping[str, object]
"""JSON-ready values that are printed or stored for people, and that no other code reads."""


class ConfigError(ValueError):
    """A setting, a path or an artefact that the user has to correct: one line that says what, where and what to do."""


class JobFailed(Exception):
    """The job did not do what it says: one line that tells why, and what to do.

    Args:
        summary: of a job that has finished but whose result is not acceptable; printed all the same.
    """

    def __init__(self, message: str, summary: Facts | None = None) -> None:
        super().__init__(message)
        self.summary = summary


RANGES: dict[str, Callable[[float], bool]] = {
    "be > 0": lambda value: value > 0,
    "be >= 0": lambda value: value >= 0,
    "be >= 1": lambda value: value >= 1,
    "lie in (0, 1)": lambda value: 0 < value < 1,
    "lie in (0, 1]": lambda value: 0 < value <= 1,
    "lie in [0, 1)": lambda value: 0 <= value < 1,
    "lie in [0, 1]": lambda value: 0 <= value <= 1,
}


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def require_range(settings: object, must: str, *names: str) -> None:
    """Raise `ConfigError` unless each of these settings is null or in a range of `RANGES`."""
    for name in names:
        value = getattr(settings, name)
        require(value is None or RANGES[must](value), f"{name} must {must}, not {value}")


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
        require_range(self, "be > 0", "limit")


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
        require_range(self, "be > 0", "max_bytes", "max_pixels", "max_seconds")
        require(0 < self.white_level <= 65535, f"white_level must lie in 1..65535, not {self.white_level}")


def check_pattern(group_pattern: str | None) -> None:
    """Raise `ConfigError` unless keys can be grouped by the pattern."""
    try:
        re.compile(group_pattern or "")
    except re.error as error:
        raise ConfigError(f"group_pattern {group_pattern!r} is no regular expression: {error}") from None


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
    seed: ClassVar[int] = 0
    """Seed of the split: the same for all models, so that their held-out strips are the same."""

    def __post_init__(self) -> None:
        require_range(self, "lie in (0, 1)", "held_out_fraction", "false_alarm_rate")
        require(
            0 < self.reject_rate <= self.false_alarm_rate,
            f"reject_rate must lie in (0, false_alarm_rate], not {self.reject_rate}",
        )
        check_pattern(self.group_pattern)


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
    bank_shards: int | None = None
    """Actors that hold the bank together, also while it is built; null: by its size. 1: every scorer holds a copy."""
    wait_for_nodes_s: float = 0
    """How long to wait for an autoscaler to bring the nodes that the scorers need; 0: they must be there already."""
    memory_per_actor_bytes: ClassVar[int] = 2 * 2**30
    """A larger bank is sharded where bank_shards is null."""
    backend: Literal["auto", "openvino", "eager", "compile"] = "auto"
    """Runtime of the backbone; `auto`: OpenVINO on a CPU where it is installed, torch on a GPU."""

    def __post_init__(self) -> None:
        require_range(self, "be > 0", "num_scorers", "cpus_per_scorer", "batch_size", "bank_shards")
        require_range(self, "be >= 0", "gpus_per_scorer", "wait_for_nodes_s")

    @property
    def bank_placement(self) -> Literal["auto", "sharded"]:
        """Return whether a bank is sharded whatever its size."""
        return "sharded" if (self.bank_shards or 1) > 1 else "auto"


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
        require_range(self, "be >= 0", "gallery")
        require_range(self, "be >= 1", "max_runs")
        require(
            not self.object_url or "{key}" in self.object_url, f"object_url has no {{key}} in it: {self.object_url}"
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
        require_range(self, "be > 0", "num_fit")
        require(
            self.tiling == "none" or self.kind == "severstal", f"tiling is for severstal strips, not for {self.kind}"
        )
