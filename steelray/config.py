"""Sections of settings that several jobs share, typed and validated. Imports neither torch nor ray.

A field's docstring is its help text. Sizes are height before width, in pixels.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, Literal

Facts = Mapping[str, object]
"""JSON-ready values that are printed or stored for people, and that no other code reads."""


class ConfigError(ValueError):
    """A setting, a path or a file that the user must correct: one line that says what, where, and what to do."""


class JobFailed(Exception):
    """An expected stop of a job: one line that says why it stopped, and what to do.

    Args:
        summary: printed before the error, if the job has finished but its result is not acceptable.
    """

    def __init__(self, message: str, summary: Facts | None = None) -> None:
        super().__init__(message)
        self.summary = summary


AUTO, CUSTOM = "auto", "custom"
"""Recipes: one that is still to be chosen, and settings given by hand."""
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
    """Raise `ConfigError` with the message unless the condition holds."""
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
    """Location: s3://bucket/prefix or a local folder. The AWS_* environment variables give endpoint and credentials."""
    glob: str = "*"
    """Pattern of the keys to take, relative to the URI, such as `*.jpg` or `line1/*`; `*` matches slashes too."""
    modified_after: datetime | None = None
    """Take only objects modified at or after this time, in ISO 8601, UTC unless it names a zone; null: no limit."""
    modified_before: datetime | None = None
    """Take only objects modified before this time, so that a rerun finds the same archive; null: no limit."""
    limit: int | None = None
    """Take at most this many objects, the first in the order of keys; null: all."""

    def __post_init__(self) -> None:
        require(bool(self.uri), "archive uri is empty: give s3://bucket/prefix or a local folder")
        require_range(self, "be > 0", "limit")


@dataclass(frozen=True)
class DecodeConfig:
    """Limits and conventions for turning bytes into pixels."""

    max_bytes: int = 64 * 2**20
    """Give larger objects the status `too_large` without reading them; in bytes."""
    max_pixels: int = 64_000_000
    """Give images with more pixels in their header the status `too_large` without decoding them."""
    max_seconds: float = 60.0
    """Give images that take longer to decode the status `too_large`, as a small file may take hours; in seconds."""
    white_level: int = 65535
    """Value of white in 16-bit images, such as 4095 for a 12-bit camera."""

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
    """Thresholds, set on nominal strips for a stated false-alarm rate."""

    held_out_fraction: float = 0.0
    """Share of the nominal strips, 0 to 1, that the model is not fitted on and its thresholds are set on; 0: a memory
    bank learns from all of them, and sets thresholds on all, each compared with the others. Networks need a share."""
    false_alarm_rate: float = 0.02
    """Share of nominal strips, 0 to 1, that may be flagged for review."""
    reject_rate: float = 0.005
    """Share of nominal strips, 0 to 1, that may score above the second, higher threshold: reject."""
    group_pattern: str | None = None
    """Regular expression over keys whose captures name a strip's group, such as `^(line\\d+)/`; null: one group.
    A group with enough held-out strips has thresholds of its own."""
    seed: ClassVar[int] = 0
    """Seed of the split, the same for all models so that they hold out the same strips."""

    def __post_init__(self) -> None:
        require_range(self, "lie in (0, 1)", "false_alarm_rate")
        require_range(self, "lie in [0, 1)", "held_out_fraction")
        require(
            0 < self.reject_rate <= self.false_alarm_rate,
            f"reject_rate must lie in (0, false_alarm_rate], not {self.reject_rate}",
        )
        check_pattern(self.group_pattern)


@dataclass(frozen=True)
class ComputeConfig:
    """Distribution of the work over the cluster: changes the speed, never a score."""

    num_scorers: int | None = None
    """Number of actors that embed and score; null: as many as the cluster's CPUs or GPUs allow."""
    cpus_per_scorer: float = 1.0
    """CPUs of each scorer, and so its threads."""
    gpus_per_scorer: float = 0.0
    """GPUs of each scorer, also a share such as 0.5; 0: scoring on the CPU."""
    batch_size: int = 8
    """Images per call of a scorer."""
    bank_shards: int | None = None
    """Number of actors that share the bank, also while it is built; null: by its size; 1: every scorer has a copy."""
    wait_for_nodes_s: float = 0
    """Seconds to wait for an autoscaler to add the nodes that the scorers need; 0: they must be there already."""
    memory_per_actor_bytes: ClassVar[int] = 2 * 2**30
    """Largest bank that every scorer holds a copy of if bank_shards is null."""
    backend: Literal["auto", "openvino", "eager", "compile"] = "auto"
    """Runtime of the backbone; `auto`: OpenVINO on a CPU if it is installed, torch on a GPU."""

    def __post_init__(self) -> None:
        require_range(self, "be > 0", "num_scorers", "cpus_per_scorer", "batch_size", "bank_shards")
        require_range(self, "be >= 0", "gpus_per_scorer", "wait_for_nodes_s")


@dataclass(frozen=True)
class ReportConfig:
    """The report of a run: report.html in its folder."""

    gallery: int = 40
    """Number of strips with the highest scores to show with heatmap and nearest nominal patch; 0: none."""
    max_runs: int = 14
    """Number of runs in which to look for a trend, this one included."""
    object_url: str | None = None
    """Address that opens an object in a browser, such as https://viewer.example/strips/{key}; null: the store's own;
    empty: no links."""

    def __post_init__(self) -> None:
        require_range(self, "be >= 0", "gallery")
        require_range(self, "be >= 1", "max_runs")
        require(
            not self.object_url or "{key}" in self.object_url, f"object_url has no {{key}} in it: {self.object_url}"
        )


@dataclass(frozen=True)
class DatasetConfig:
    """A labelled dataset, in the layout of its download."""

    kind: Literal["severstal", "mvtec", "folder"]
    """Layout; severstal: train_images, train.csv; mvtec: train/good, test, ground_truth; folder: nominal, anomalous."""
    root: str
    """Folder of the dataset."""
    tiling: Literal["none", "400x256", "256x256"] = "none"
    """Severstal: cut each 1600x256 strip into tiles of this width x height; none: keep it whole."""
    num_fit: int | None = None
    """Severstal, folder: number of clean strips to fit on; null: three quarters. The others are test images."""
    seed: int = 0
    """Seed of the split, which keeps the tiles of a strip together."""

    def __post_init__(self) -> None:
        require_range(self, "be > 0", "num_fit")
        require(
            self.tiling == "none" or self.kind == "severstal", f"tiling is for severstal strips, not for {self.kind}"
        )


@dataclass(frozen=True, kw_only=True)
class ModelJobConfig:
    """Settings of every job that makes a model on the cluster."""

    decode: DecodeConfig = field(default_factory=DecodeConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    overwrite: bool = False
    """Replace a model of the same kind that is already at the new one's location; false: refuse to."""
    dry_run: bool = False
    """Print the resolved settings and the plan, and do nothing."""
