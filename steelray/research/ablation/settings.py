"""Settings of an ablation: the options to compare and the splits to compare them on. Loads neither torch nor ray."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from steelray.config import AUTO, CUSTOM, DatasetConfig, require
from steelray.patchcore.config import RECIPE_FOLDER, CoresetConfig, EmbedderConfig, ScoringConfig


@dataclass(frozen=True)
class AblationMember:
    """One memory bank of a setting, with its scoring."""

    RECIPE_FOLDER: ClassVar[Path] = RECIPE_FOLDER

    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    coreset: CoresetConfig = field(default_factory=lambda: CoresetConfig(drop_suspects=False))
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    weight: float = 1.0
    """Weight of this bank in the fused score of several members; each is first scaled by nominal scores."""
    recipe: str = CUSTOM
    """As in jobs/build_memory_bank.py; settings given beside it count. `custom`: the other settings as they are."""

    def __post_init__(self) -> None:
        require(self.recipe != AUTO, f"a member's recipe cannot be {AUTO}: name one")
        require(self.weight > 0, f"a member's weight must be > 0, not {self.weight}")


@dataclass(frozen=True)
class AblationSetting:
    """One row of the table."""

    name: str
    """Name in the table."""
    method: Literal["patchcore", "local_deviation"] = "patchcore"
    """Method; `local_deviation` is the baseline without training and ignores members."""
    members: tuple[AblationMember, ...] = field(default_factory=lambda: (AblationMember(),))
    """Memory banks; several, such as one per level, backbone or input size, are fused."""
    num_fit: int | None = None
    """Number of nominal strips to fit on; null: `data.num_fit`. For a learning curve."""
    contamination: float = 0.0
    """Share of the strips to fit on that are replaced by defective ones from the validation half."""

    def __post_init__(self) -> None:
        require(bool(self.name), "a setting needs a name")
        require(len(self.members) > 0, f"setting {self.name!r} has no members")
        require(self.num_fit is None or self.num_fit > 1, f"setting {self.name!r}: num_fit must be at least 2")
        require(0 <= self.contamination < 1, f"setting {self.name!r}: contamination must lie in [0, 1)")


@dataclass(frozen=True)
class AblationConfig:
    """Options of jobs/ablate.py."""

    FIRST: ClassVar[tuple[str, ...]] = (
        "data.kind", "data.root", "settings", "output_dir", "seeds", "parts", "gallery_of", "dry_run"
    )  # fmt: skip

    data: DatasetConfig
    settings: tuple[AblationSetting, ...]
    """Rows of the table, in order."""
    output_dir: str
    """Folder for results.jsonl (one line per setting and split; a rerun skips these), the table and the figures."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the splits; the table has mean and standard deviation over them."""
    parts: int = 4
    """Number of parts, along its width, in which each image is also judged, as in the thesis; 1: whole images only."""
    folds: int = 5
    """Number of rounds in which the strips to fit on are scored by banks without them, for the threshold."""
    false_alarm_rates: tuple[float, ...] = (0.05, 0.2)
    """False-alarm rates, of nominal parts and strips, of the thresholds for accuracy; recall uses the first."""
    validation_fraction: float = 0.5
    """Share of the defective strips by which settings are chosen; the others are also judged alone."""
    pixel_step: int = 4
    """Distance between the pixels that are judged, in both directions; pixels."""
    gallery_of: str | None = None
    """Name of the setting whose worst misses and false alarms on the first split are drawn; null: none."""
    cache_dir: str | None = None
    """Folder for embeddings; null: output_dir/embeddings."""
    num_cpus_per_row: float = 1.0
    """CPUs per row; rows run in parallel."""
    dry_run: bool = False
    """Print the resolved settings and the missing rows, and stop."""

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
            f"gallery_of: no setting is named {self.gallery_of!r}; give one of {names}",
        )
