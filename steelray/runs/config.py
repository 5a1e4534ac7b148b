"""Settings of jobs/score_archive.py, runs.py and review.py. Imports neither torch nor ray."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from steelray.config import ArchiveConfig, ComputeConfig, DecodeConfig, ReportConfig, require, require_range


@dataclass(frozen=True)
class ScoreArchiveConfig:
    """Settings of jobs/score_archive.py."""

    FIRST: ClassVar[tuple[str, ...]] = (
        "archive.uri", "model_uri", "results_uri", "archive.glob", "incremental", "threshold", "compute.num_scorers",
        "report.object_url", "dry_run",
    )  # fmt: skip

    archive: ArchiveConfig
    """Images to score."""
    model_uri: str
    """Memory bank, checkpoint or ensemble, written by jobs/build_memory_bank.py, jobs/train.py or
    jobs/fuse_models.py."""
    results_uri: str
    """Location of runs; this run is stored in results_uri/runs/RUN_ID/ and published in results_uri/published.json."""
    calibration: int | None = None
    """Version of the model's calibration to use; null: the newest."""
    threshold: float | None = None
    """Score above which strips are flagged; null: the calibrated threshold."""
    save_anomaly_maps: bool = False
    """Also store every strip's anomaly map (float16 .npy), for pixel metrics; about 0.8 MB per 1600x256 strip."""
    incremental: bool = False
    """Skip unchanged objects that an earlier published run has scored with the same model."""
    max_quarantine_share: float | None = 0.05
    """Share of objects without a score above which the job, after publishing, ends with exit code 1; null: no limit."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    dry_run: bool = False
    """Print the resolved settings and the plan, and do nothing."""

    def __post_init__(self) -> None:
        share = self.max_quarantine_share
        require(share is None or 0 <= share <= 1, f"max_quarantine_share must lie in [0, 1], not {share}")


@dataclass(frozen=True)
class ReviewConfig:
    """Settings of jobs/review.py."""

    results_uri: str
    """Location of runs: results_uri of jobs/score_archive.py."""
    verdicts: str
    """CSV file of an operator's verdicts with the columns image_key and verdict: true_alarm, false_alarm, or
    missed_defect for a defective strip that was not flagged. Recall is computed only if it also has verdicts on strips
    that were not flagged."""
    run_id: str | None = None
    """Run that was reviewed; null: the published one."""


@dataclass(frozen=True)
class RunsConfig:
    """Settings of jobs/runs.py."""

    results_uri: str
    """Location of runs: results_uri of jobs/score_archive.py."""
    action: Literal["list", "rollback", "prune"] = "list"
    """`list`: show the published runs. `rollback`: publish the previous run again. `prune`: remove the rows and
    pictures of old runs."""
    keep: int | None = None
    """Number of newest published runs that `prune` keeps."""
    keep_days: float | None = None
    """Age in days up to which `prune` keeps runs; older runs that were never published or were rolled back are deleted.
    With keep, a run is kept for either reason."""
    dry_run: bool = False
    """Print what would be done, and do nothing."""

    def __post_init__(self) -> None:
        require_range(self, "be >= 1", "keep")
        require_range(self, "be >= 0", "keep_days")
        limited = self.keep is not None or self.keep_days is not None
        require(self.action != "prune" or limited, "prune needs keep (runs) or keep_days")
        require(self.action == "prune" or not limited, f"keep and keep_days belong to prune, not to {self.action}")
