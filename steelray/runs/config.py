"""Settings of jobs/score_archive.py, runs.py and review.py. Imports neither torch nor ray."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from steelray.config import ArchiveConfig, ComputeConfig, DecodeConfig, ReportConfig, require


@dataclass(frozen=True)
class ScoreArchiveConfig:
    """jobs/score_archive.py"""

    FIRST: ClassVar[tuple[str, ...]] = (
        "archive.uri", "model_uri", "results_uri", "archive.glob", "incremental", "threshold", "compute.num_scorers",
        "report.object_url", "dry_run",
    )  # fmt: skip

    archive: ArchiveConfig
    """The images to score."""
    model_uri: str
    """A memory bank, a trained checkpoint or an ensemble: what jobs/build_memory_bank.py, jobs/train.py or
    jobs/fuse_models.py left."""
    results_uri: str
    """Where runs go; this one into results_uri/runs/RUN_ID/, and results_uri/published.json will point at it."""
    embedder: ClassVar[None] = None
    """The bank's own is used."""
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
