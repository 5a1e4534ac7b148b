"""The settings of an ablation: which options are compared, on which splits. Imports neither torch nor ray."""

from dataclasses import dataclass, field
from typing import Literal

from steelray.config import DatasetConfig, require
from steelray.patchcore.config import CoresetConfig, EmbedderConfig, ScoringConfig


@dataclass(frozen=True)
class AblationMember:
    """One memory bank of a setting, and how it is searched."""

    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    coreset: CoresetConfig = field(default_factory=CoresetConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    weight: float = 1.0
    """Share of this bank in the sum, where there are several; each is first scaled by what nominal strips show."""

    def __post_init__(self) -> None:
        require(self.weight > 0, f"a member's weight must be > 0, not {self.weight}")


@dataclass(frozen=True)
class AblationSetting:
    """One row of the table."""

    name: str
    """What the table calls it."""
    method: Literal["patchcore", "local_deviation"] = "patchcore"
    """`local_deviation`: the baseline that learns nothing; members are not used."""
    members: tuple[AblationMember, ...] = field(default_factory=lambda: (AblationMember(),))
    """Several are fused: a bank per feature level, several backbones or several input sizes."""
    num_fit: int | None = None
    """Nominal strips to learn from, instead of the data's `num_fit`: for a learning curve."""
    contamination: float = 0.0
    """Share of the strips to learn from that are defective ones in truth, taken from the validation half."""

    def __post_init__(self) -> None:
        require(bool(self.name), "a setting needs a name")
        require(len(self.members) > 0, f"setting {self.name!r} has no members")
        require(self.num_fit is None or self.num_fit > 1, f"setting {self.name!r}: num_fit must be at least 2")
        require(0 <= self.contamination < 1, f"setting {self.name!r}: contamination must lie in [0, 1)")


@dataclass(frozen=True)
class AblationConfig:
    """jobs/ablate.py"""

    data: DatasetConfig
    settings: tuple[AblationSetting, ...]
    """The rows of the table, in its order."""
    output_dir: str
    """Where results.jsonl (one line per row and split, which a rerun skips), the table and the figures go."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Split seeds; the table holds mean and standard deviation over them."""
    parts: int = 4
    """Each image is also judged in this many parts of its width, as the thesis does; 1: whole images only."""
    folds: int = 5
    """The nominal strips are scored by banks that have not seen them, in this many rounds, for the threshold."""
    false_alarm_rates: tuple[float, ...] = (0.05, 0.2)
    """Shares of nominal parts, and of strips, above the thresholds at which accuracy is taken; recall at the first."""
    validation_fraction: float = 0.5
    """Share of the defective strips that a choice may look at; figures are also given for the others alone."""
    pixel_step: int = 4
    """Pixel figures are taken at every so many pixels in both directions."""
    gallery_of: str | None = None
    """Name of the setting whose worst misses and false alarms are drawn, on the first split."""
    cache_dir: str | None = None
    """Where embeddings are kept; null: output_dir/embeddings."""
    num_cpus_per_row: float = 1.0
    """Rows run side by side, each with this many CPUs."""
    dry_run: bool = False
    """Print the resolved settings and the rows that are still to do, and do nothing."""

    def __post_init__(self) -> None:
        names = [setting.name for setting in self.settings]
        require(len(names) > 0, "settings is empty: name at least one row")
        require(len(set(names)) == len(names), f"two settings have the same name: {sorted(names)}")
        require(len(self.seeds) > 0, "seeds is empty: name at least one split")
        require(self.parts >= 1, f"parts must be >= 1, not {self.parts}")
        require(self.folds >= 2, f"folds must be >= 2, not {self.folds}")
        require(
            len(self.false_alarm_rates) > 0 and all(0 < rate < 1 for rate in self.false_alarm_rates),
            f"false_alarm_rates must lie in (0, 1): {list(self.false_alarm_rates)}",
        )
        require(
            0 <= self.validation_fraction < 1, f"validation_fraction must lie in [0, 1), not {self.validation_fraction}"
        )
        require(self.pixel_step >= 1, f"pixel_step must be >= 1, not {self.pixel_step}")
        require(self.num_cpus_per_row > 0, f"num_cpus_per_row must be > 0, not {self.num_cpus_per_row}")
        require(
            self.gallery_of is None or self.gallery_of in names,
            f"gallery_of is {self.gallery_of!r}, which no setting is called",
        )
