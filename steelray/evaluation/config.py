"""Settings of jobs/evaluate.py. Imports neither torch nor ray."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from steelray.config import CalibrationConfig, DatasetConfig
from steelray.patchcore.config import CoresetConfig, EmbedderConfig, IndexConfig, ScoringConfig


@dataclass(frozen=True)
class EvaluateConfig:
    """jobs/evaluate.py"""

    FIRST: ClassVar[tuple[str, ...]] = (
        "data.kind", "data.root", "model_uri", "embedder.backbone", "embedder.levels", "coreset.ratio",
        "calibration.held_out_fraction", "seeds", "output_dir",
    )  # fmt: skip

    data: DatasetConfig
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    coreset: CoresetConfig = field(default_factory=CoresetConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    model_uri: str | None = None
    """Score with this memory bank, checkpoint or ensemble; null builds a bank from the dataset's nominal images, in
    memory."""
    calibration: CalibrationConfig | None = None
    """Hold nominal fit images out of the bank, set a threshold on them, and report the accuracy it gives; null: all of
    them go into the bank. A model given by model_uri has its threshold already."""
    seeds: tuple[int, ...] = (0,)
    """Split seeds (severstal, folder); the figures are the mean over them, with their spread."""
    backend: Literal["auto", "openvino", "eager", "compile"] = "auto"
    """Runtime of the backbone; `auto`: OpenVINO where it is installed."""
    baselines: bool = False
    """Also report the local standard deviation, a detector that learns nothing."""
    output_dir: str | None = None
    """Write the table here as evaluation.json and evaluation.md."""
    dry_run: bool = False
    """Print the resolved settings and the plan, and do nothing."""
