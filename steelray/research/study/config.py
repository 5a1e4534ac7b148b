"""Settings of the study's jobs. Imports neither torch nor ray."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from steelray.config import DatasetConfig, require, require_range
from steelray.reconstruction.config import TrainConfig
from steelray.research.study.condition import parse_condition
from steelray.research.study.space import Axis

Mode = Literal["transplant", "one_factor", "search", "confirm", "all", "compare"]
STUDY_VERSION = 2
"""Version of what a trial measures; results of different versions are not mixed."""


@dataclass(frozen=True)
class Arm:
    """Trials that differ in their seed only."""

    name: str
    """Name in the report."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Training settings that differ from the baseline, by path, such as `loss.w_ssim`."""
    condition: str = "steel"
    """Images: `steel`, `control` or `generated`, with changes such as `control+grain=8` or `steel+denoise=2`."""
    hypothesis: str | None = None
    """Hypothesis that it tests, H1 to H10; null: none."""
    from_fix: bool = False
    """Start from the fix instead of the baseline."""

    def __post_init__(self) -> None:
        parse_condition(self.condition)


@dataclass(frozen=True)
class SearchConfig:
    """Search over many axes at once."""

    axes: tuple[Axis, ...] = ()
    """Training settings to search, each with its range or choices."""
    num_trials: int = 16
    """Trials, the baseline and the fix included."""
    grace_steps: int = 100
    """Stop no trial before this step."""
    reduction: int = 3
    """Continue one in this many of the trials that reach a rung (ASHA)."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of every setting; the search sees the mean over them."""


@dataclass(frozen=True)
class ResourcesConfig:
    """Resources of one trial."""

    cpus_per_trial: float = 1.0
    """CPUs, and so threads, of one trial."""
    gpus_per_trial: float = 0.0
    """GPU share of one trial; 0.25 puts four trials on one GPU."""
    max_concurrent: int = 0
    """Limit the trials at one time; 0: as many as fit."""


@dataclass(frozen=True)
class StudyConfig:
    """jobs/tune_draem.py"""

    FIRST: ClassVar[tuple[str, ...]] = (
        "train", "results_dir", "train.data.dataset.root", "train.synthesis.texture_uri", "control.root", "mode",
        "seeds", "resources.gpus_per_trial", "dry_run",
    )  # fmt: skip
    RECIPES: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": ("data.dataset.root", "synthesis.texture_uri", "input.size_px", "draem.width", "num_steps")
    }

    train: TrainConfig
    """Baseline: the faithful recipe at the study's scale. `train.data.dataset` is the steel."""
    results_dir: str
    """Location of trials.jsonl: a folder or s3://bucket/prefix. Finished trials in it are not run again."""
    control: DatasetConfig | None = None
    """Dataset on which the recipe is known to converge (MVTec bottle); null: leave its arms out."""
    generated_knobs: dict[str, float] = field(default_factory=lambda: {"grain": 6.0})
    """Properties of the generated strips, which also stand in for steel where no dataset is given."""
    fix: dict[str, Any] = field(default_factory=dict)
    """Proposed fix: training settings that differ from the baseline."""
    arms: tuple[Arm, ...] = ()
    """Arms of the modes transplant (those whose condition is not plain steel) and one_factor."""
    search: SearchConfig = field(default_factory=SearchConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    mode: Mode = "all"
    """Trials to run. `all`: transplant, one_factor and confirm, the most telling first; `compare`: other methods on the
    test split."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of every arm."""
    confirm_seeds: tuple[int, ...] = tuple(range(10))
    """Seeds of baseline and fix in the mode confirm."""
    confirm_steps: int | None = None
    """Steps of the trials in the mode confirm; null: as many as in the other modes."""
    max_trials: int = 200
    """Refuse a plan with more trials."""
    steps_per_epoch: int = 10
    """Average losses over this many steps before their spread is taken."""
    num_probes: int = 10
    """Evaluations of the probe in a trial."""
    probe_share: float = 0.2
    """Share of each clean strip's length, at its right end, that is kept for the probe and not trained on."""
    detect: bool = False
    """Keep the networks of the mode confirm; the mode compare scores the strip-disjoint test split with them."""
    scoring_scales: tuple[float, ...] = (1.0, 0.5, 0.25)
    """Scales to choose from in the mode compare (input.scoring_scale)."""
    map_sigmas_px: tuple[float, ...] = (0.0, 8.0, 16.0, 24.0, 32.0, 48.0, 64.0)
    """Smoothing to choose from in the mode compare (draem.map_sigma_px). Scale and smoothing are chosen for each arm by
    its pixel AUROC on the validation strips."""
    in_process: bool = False
    """Run one trial after another in this process, without Ray."""
    dry_run: bool = False
    """Print the resolved settings and the plan, and do nothing."""

    def __post_init__(self) -> None:
        require(self.train.model == "draem", "train.model must be draem: the study is about it")
        require(self.train.num_steps is not None, "train.num_steps must be given: trials are compared by steps")
        require(bool(self.results_dir), "results_dir is empty: give a place for the trials' results")
        require(len(self.seeds) > 0 and len(self.confirm_seeds) > 0, "seeds and confirm_seeds need at least one each")
        require(len(self.map_sigmas_px) > 0, "map_sigmas_px needs at least one; [0] leaves maps as they are")
        require(len(self.scoring_scales) > 0, "scoring_scales needs at least one; [1] leaves strips as they are")
        require_range(self, "lie in (0, 1)", "probe_share")
        require_range(self, "be > 0", "confirm_steps")
        for name in ("max_trials", "steps_per_epoch", "num_probes"):
            require(getattr(self, name) > 0, f"{name} must be > 0, not {getattr(self, name)}")


@dataclass(frozen=True)
class DiagnoseConfig:
    """jobs/diagnose_data.py"""

    first: DatasetConfig
    """Dataset on which training works."""
    second: DatasetConfig
    """Dataset to compare with it."""
    output_dir: str
    """Folder of diagnosis.json, diagnosis.md and the figures."""
    tile_px: tuple[int, int] = (256, 256)
    """Height and width of the tiles; images are cut at native resolution."""
    first_size_px: tuple[int, int] | None = None
    """Resize the first dataset's images to this height and width before they are cut; null: native size."""
    second_size_px: tuple[int, int] | None = None
    """Resize the second dataset's images in the same way; null: native size."""
    max_tiles: int = 200
    """Limit the tiles of each dataset, which are taken evenly."""
    dry_run: bool = False
    """Print the resolved settings and the plan, and do nothing."""


@dataclass(frozen=True)
class ReportStudyConfig:
    """jobs/report_study.py"""

    results_dir: str
    """Results of jobs/tune_draem.py: a folder or s3://bucket/prefix."""
    output_dir: str | None = None
    """Folder of study.md and its figures; null: beside the results."""
    dry_run: bool = False
    """Print the resolved settings and the plan, and do nothing."""
