"""The settings of every job, one dataclass each. Imports neither torch nor ray, so that `--help` answers at once."""

import math
from dataclasses import dataclass, field
from typing import Literal

from steelray.config import (
    ArchiveConfig,
    CalibrationConfig,
    ComputeConfig,
    DatasetConfig,
    DecodeConfig,
    ReportConfig,
    require,
)
from steelray.patchcore_config import (
    AugmentationConfig,
    CoresetConfig,
    EmbedderConfig,
    GrowthConfig,
    IndexConfig,
    ScoringConfig,
)


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


@dataclass(frozen=True)
class FuseModelsConfig:
    """jobs/fuse_models.py"""

    model_uris: tuple[str, ...]
    """The models that are to count as one, two at least: memory banks and checkpoints, made from the same nominal
    strips with the same calibration.held_out_fraction and calibration.seed. They stay where they are, as they are."""
    output_uri: str
    """Where the ensemble goes: s3://bucket/prefix or a local folder. It scores archives as its models do."""
    weights: tuple[float, ...] = ()
    """How much each model counts, in the order of model_uris; none: all the same."""
    nominal_uri: str | None = None
    """Where the strips lie that the models have held out; null: where the first model's nominal images were."""
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    """Rates and groups; held_out_fraction and seed do not count: the strips are those that all models have held out."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    overwrite: bool = False
    """Replace an ensemble that is already there."""
    dry_run: bool = False
    """Print the resolved settings and the plan, and do nothing."""

    def __post_init__(self) -> None:
        count = len(self.model_uris)
        require(count >= 2, f"model_uris: an ensemble needs at least two models, not {count}")
        repeated = sorted({uri for uri in self.model_uris if self.model_uris.count(uri) > 1})
        require(not repeated, f"model_uris: {', '.join(repeated)} is there twice: give it a larger weight instead")
        fitting = len(self.weights) in (0, count)
        require(fitting, f"weights: {len(self.weights)} for {count} models: give one per model, or none")
        wrong = [weight for weight in self.weights if not 0 < weight < math.inf]
        require(not wrong, f"weights must be positive, not {', '.join(map(str, wrong))}")


@dataclass(frozen=True)
class ScoreArchiveConfig:
    """jobs/score_archive.py"""

    archive: ArchiveConfig
    """The images to score."""
    model_uri: str
    """A memory bank, a trained checkpoint or an ensemble: what jobs/build_memory_bank.py, jobs/train.py or
    jobs/fuse_models.py left."""
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
    incremental: bool = False
    """Leave out objects that an earlier published run has scored with the same model, unchanged since."""
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
class CalibrateConfig:
    """jobs/calibrate.py"""

    model_uri: str
    """The model whose thresholds are set; they become its newest calibration, earlier ones stay."""
    results_uri: str | None = None
    """Set them on strips that were scored there; null: on the held-out strips beside the model."""
    run_ids: tuple[str, ...] = ()
    """Runs in results_uri whose strips to take, all of them as if nominal; none: the published one."""
    verdicts: str | None = None
    """CSV of an operator's verdicts (image_key, verdict); strips that are true alarms are left out."""
    false_alarm_rate: float | None = None
    """Share of nominal strips that may be flagged for review; null: as before."""
    reject_rate: float | None = None
    """Share of nominal strips that may lie above the reject level; null: as before."""
    group_pattern: str | None = None
    """Regular expression over keys that names a strip's group; null: as before; empty: one group."""
    version: int | None = None
    """Calibration to start from: what is not given, and its held-out strips; null: the newest."""
    dry_run: bool = False
    """Say what the thresholds would be, and store nothing."""

    def __post_init__(self) -> None:
        require(not self.run_ids or self.results_uri is not None, "run_ids need a results_uri")


@dataclass(frozen=True)
class ReviewConfig:
    """jobs/review.py"""

    results_uri: str
    """Where the run is."""
    verdicts: str
    """CSV of an operator's verdicts: image_key, and verdict (true_alarm or false_alarm). Unflagged strips that were
    looked at may be in it, with the same words: only then can recall be known."""
    run_id: str | None = None
    """The run that was looked at; null: the published one."""


@dataclass(frozen=True)
class RunsConfig:
    """jobs/runs.py"""

    results_uri: str
    """Where the runs are: results_uri of jobs/score_archive.py."""
    action: Literal["list", "rollback", "prune"] = "list"
    """`list` shows the published runs, `rollback` makes the one before the present one count again, `prune` removes the
    rows and pictures of old ones."""
    keep: int | None = None
    """prune: the newest so many published runs stay."""
    keep_days: float | None = None
    """prune: runs finished within so many days stay, and runs that were never published or were rolled back go when
    they are older. Given both, a run stays for either reason."""
    dry_run: bool = False
    """Say what would be done, and do nothing."""

    def __post_init__(self) -> None:
        require(self.keep is None or self.keep >= 1, f"keep must be at least 1, not {self.keep}")
        require(self.keep_days is None or self.keep_days >= 0, f"keep_days must be >= 0, not {self.keep_days}")
        limited = self.keep is not None or self.keep_days is not None
        require(self.action != "prune" or limited, "prune needs keep (runs) or keep_days")
        require(self.action == "prune" or not limited, f"keep and keep_days belong to prune, not to {self.action}")


@dataclass(frozen=True)
class EvaluateConfig:
    """jobs/evaluate.py"""

    data: DatasetConfig
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    coreset: CoresetConfig = field(default_factory=CoresetConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    model_uri: str | None = None
    """Score with this memory bank, checkpoint or ensemble; null builds a bank from the dataset's nominal images, in
    memory."""
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

    def __post_init__(self) -> None:
        normalization = self.scoring.normalization
        require(
            normalization == "none" or self.model_uri is not None or self.calibration is not None,
            f"scoring.normalization {normalization!r} needs held-out nominal images but calibration is null: set "
            "calibration, or normalization to none",
        )


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
