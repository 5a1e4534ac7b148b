"""Settings of jobs/evaluate.py. Imports neither torch nor ray."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from steelray.config import AUTO, CUSTOM, CalibrationConfig, ConfigError, DatasetConfig
from steelray.patchcore.config import (
    DEFAULT_RECIPE,
    RECIPE_FOLDER,
    CoresetConfig,
    EmbedderConfig,
    IndexConfig,
    ScoringConfig,
)


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of jobs/evaluate.py."""

    FIRST: ClassVar[tuple[str, ...]] = (
        "data.kind", "data.root", "model_uri", "recipe", "embedder.backbone", "embedder.resize_px",
        "calibration.false_alarm_rate", "seeds", "output_dir",
    )  # fmt: skip
    RECIPE_FOLDER: ClassVar[Path] = RECIPE_FOLDER
    DEFAULT_RECIPE: ClassVar[str] = DEFAULT_RECIPE

    data: DatasetConfig
    recipe: str = CUSTOM
    """As in jobs/build_memory_bank.py; has no effect on a model given by model_uri."""
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    coreset: CoresetConfig = field(default_factory=CoresetConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    model_uri: str | None = None
    """Memory bank, checkpoint or ensemble to evaluate; null: a bank built in memory from the dataset's nominal
    images."""
    calibration: CalibrationConfig | None = field(default_factory=CalibrationConfig)
    """Threshold from the nominal images, whose recall and false alarms are reported; null: none. A model given by
    model_uri has a threshold already."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the split (severstal, folder); the metrics are averaged over them."""
    backend: Literal["auto", "openvino", "eager", "compile"] = "auto"
    """Runtime of the backbone; `auto`: OpenVINO if it is installed."""
    baselines: bool = False
    """Also evaluate the local standard deviation, a baseline that learns nothing."""
    output_dir: str | None = None
    """Folder for the result as evaluation.json and evaluation.md; null: only print it."""
    dry_run: bool = False
    """Print the resolved settings and the plan, and do nothing."""

    def __post_init__(self) -> None:
        if self.calibration is None and self.model_uri is None and self.recipe == AUTO:
            raise ConfigError(f"recipe {AUTO} compares thresholds, and calibration is null: choose a recipe")
