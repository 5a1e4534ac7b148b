"""The settings of every job, one dataclass each. Imports neither torch nor ray, so that `--help` answers at once."""

from dataclasses import dataclass, field

from steelray.config import (
    ArchiveConfig,
    CalibrationConfig,
    ComputeConfig,
    CoresetConfig,
    DatasetConfig,
    DecodeConfig,
    EmbedderConfig,
    IndexConfig,
    ReportConfig,
    ScoringConfig,
    require,
)


@dataclass(frozen=True)
class BuildMemoryBankConfig:
    """jobs/build_memory_bank.py"""

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
class ScoreArchiveConfig:
    """jobs/score_archive.py"""

    archive: ArchiveConfig
    """The images to score."""
    model_uri: str
    """A memory bank or a trained checkpoint: what jobs/build_memory_bank.py or jobs/train.py left."""
    results_uri: str
    """Where runs go; this one into results_uri/runs/RUN_ID/, and results_uri/published.json will point at it."""
    embedder: EmbedderConfig | None = None
    """Leave null to use the bank's own; if given it must agree with the bank."""
    calibration: int | None = None
    """Version of the model's calibration to use; null: the newest."""
    threshold: float | None = None
    """Flag strips above this score instead of above the calibrated threshold."""
    save_anomaly_maps: bool = False
    """Also keep every strip's anomaly map (float16 .npy), for pixel metrics; about 0.8 MB per 1600x256 strip."""
    max_quarantine_share: float | None = 0.05
    """Above this share of objects without a score the job ends with code 1, after it has finished and published; null:
    never."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    dry_run: bool = False
    """Print the resolved settings and the plan, and do nothing."""

    def __post_init__(self) -> None:
        share = self.max_quarantine_share
        require(share is None or 0 <= share <= 1, f"max_quarantine_share must lie in [0, 1], not {share}")


@dataclass(frozen=True)
class EvaluateConfig:
    """jobs/evaluate.py"""

    data: DatasetConfig
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    coreset: CoresetConfig = field(default_factory=CoresetConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    model_uri: str | None = None
    """Score with this memory bank or checkpoint; null builds a bank from the dataset's nominal images, in memory."""
    calibration: CalibrationConfig | None = None
    """Hold nominal fit images out of the bank, set a threshold on them, and report the accuracy it gives; null: all of
    them go into the bank. A model given by model_uri has its threshold already."""
    seeds: tuple[int, ...] = (0,)
    """Split seeds (severstal, folder); the figures are the mean over them, with their spread."""
    baselines: bool = False
    """Also report the local standard deviation, a detector that learns nothing."""
    output_dir: str | None = None
    """Write the table here as evaluation.json and evaluation.md."""
    dry_run: bool = False
    """Print the resolved settings and the plan, and do nothing."""


@dataclass(frozen=True)
class DemoConfig:
    """jobs/demo.py"""

    work_dir: str = ".demo"
    """Scratch folder: object store, archive, bank and results."""
    num_strips: int = 240
    """Strips of the generated archive that is scored."""
    num_nominal: int = 80
    """Generated nominal strips: four tenths to learn from, the others to set thresholds on."""
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.num_strips >= 8, "num_strips must be at least 8")
        require(self.num_nominal >= 5, "num_nominal must be at least 5")
