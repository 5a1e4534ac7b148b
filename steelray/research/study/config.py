"""The settings of the study's jobs. Imports neither torch nor ray, so that `--help` answers at once."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from steelray.config import DatasetConfig, require
from steelray.reconstruction.config import TrainConfig
from steelray.research.study.condition import parse_condition
from steelray.research.study.space import Axis

Mode = Literal["transplant", "one_factor", "search", "confirm", "all", "compare"]
STUDY_VERSION = 2
"""Of what a trial measures; results of different versions are not mixed."""


@dataclass(frozen=True)
class Arm:
    """Trials that differ in their seed only."""

    name: str
    """As the report calls it."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Options of the training settings that differ from the baseline's."""
    condition: str = "steel"
    """`steel`, `control` or `generated`, and changes: `control+grain=8`, `steel+denoise=2`."""
    hypothesis: str | None = None
    """H1 to H10: what it tests."""
    from_fix: bool = False
    """Start from the fix instead of the baseline."""

    def __post_init__(self) -> None:
        parse_condition(self.condition)


@dataclass(frozen=True)
class SearchConfig:
    """The search over many axes at once."""

    axes: tuple[Axis, ...] = ()
    """What is searched, and where."""
    num_trials: int = 16
    """Trials, the baseline and the fix included."""
    grace_steps: int = 100
    """No trial is stopped before."""
    reduction: int = 3
    """Of the trials that reach a rung, one in so many goes on (ASHA)."""
    seeds: tuple[int, ...] = (0,)
    """Every setting is tried with each of these; the search sees their mean."""


@dataclass(frozen=True)
class ResourcesConfig:
    """What one trial takes."""

    cpus_per_trial: float = 1.0
    """CPU share, and so the threads, of a trial."""
    gpus_per_trial: float = 0.0
    """GPU share; 0.25 puts four trials on one."""
    max_concurrent: int = 0
    """Trials at once; 0: as many as fit."""


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
    """The baseline: the faithful recipe at the study's scale. `train.data.dataset` is the steel."""
    results_dir: str
    """Where trials.jsonl goes, a folder or s3://; finished trials in it are not run again."""
    control: DatasetConfig | None = None
    """Where the recipe is known to converge (MVTec bottle); null leaves its arms out."""
    generated_knobs: dict[str, float] = field(default_factory=lambda: {"grain": 6.0})
    """Generated strips of the condition `generated`, which also stand in for steel where no dataset is given."""
    fix: dict[str, Any] = field(default_factory=dict)
    """The proposed fix: options that differ from the baseline's."""
    arms: tuple[Arm, ...] = ()
    """Of the modes transplant (those with a condition that is not steel, or named so) and one_factor."""
    search: SearchConfig = field(default_factory=SearchConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    mode: Mode = "all"
    """`transplant`, `one_factor`, `search`, `confirm`; `all` but the search, in the order in which they tell most;
    `compare`: other methods on the test split."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of every arm."""
    confirm_seeds: tuple[int, ...] = tuple(range(10))
    """Seeds of baseline and fix in the mode confirm."""
    confirm_steps: int | None = None
    """Steps of the trials in the mode confirm, where the claim needs a longer run than the arms; null: as many."""
    max_trials: int = 200
    """A plan with more trials is refused."""
    steps_per_epoch: int = 10
    """Over how many steps losses are averaged before their spread is taken."""
    num_probes: int = 10
    """How often a trial looks at the probe."""
    probe_share: float = 0.2
    """Share of each clean strip's length, at its right end, that no trial fits on; the probe is cut from there."""
    detect: bool = False
    """In the mode confirm: keep the networks; the mode compare scores the strip-disjoint test split with them."""
    scoring_scales: tuple[float, ...] = (1.0, 0.5, 0.25)
    """In the mode compare: how far strips may be shrunk before they are scored (input.scoring_scale)."""
    map_sigmas_px: tuple[float, ...] = (0.0, 8.0, 16.0, 24.0, 32.0, 48.0, 64.0)
    """In the mode compare: how far maps may be smoothed (draem.map_sigma_px). Scale and smoothing are chosen for each
    arm by its pixel AUROC on the strips kept for choosing; the test split is judged so, and as the paper reads it."""
    in_process: bool = False
    """One trial after another in this process, without Ray."""
    dry_run: bool = False
    """Print the resolved settings and the plan, and do nothing."""

    def __post_init__(self) -> None:
        require(self.train.model == "draem", "train.model must be draem: the study is about it")
        require(self.train.num_steps is not None, "train.num_steps must be given: trials are compared by steps")
        require(bool(self.results_dir), "results_dir is empty: give a place for the trials' results")
        require(len(self.seeds) > 0 and len(self.confirm_seeds) > 0, "seeds and confirm_seeds need at least one each")
        require(len(self.map_sigmas_px) > 0, "map_sigmas_px needs at least one; [0] leaves maps as they are")
        require(len(self.scoring_scales) > 0, "scoring_scales needs at least one; [1] leaves strips as they are")
        require(0 < self.probe_share < 1, f"probe_share must lie in (0, 1), not {self.probe_share}")
        require(
            self.confirm_steps is None or self.confirm_steps > 0, f"confirm_steps must be > 0, not {self.confirm_steps}"
        )
        for name in ("max_trials", "steps_per_epoch", "num_probes"):
            require(getattr(self, name) > 0, f"{name} must be > 0, not {getattr(self, name)}")


@dataclass(frozen=True)
class DiagnoseConfig:
    """jobs/diagnose_data.py"""

    first: DatasetConfig
    """A dataset, such as the one on which training works."""
    second: DatasetConfig
    """The one to compare with it."""
    output_dir: str
    """Where diagnosis.json, diagnosis.md and the figures go."""
    tile_px: tuple[int, int] = (256, 256)
    """Height and width of the tiles; images are cut at native resolution."""
    first_size_px: tuple[int, int] | None = None
    """Resize the first dataset's images to this before they are cut (bottle: [256, 256], as it is trained on)."""
    second_size_px: tuple[int, int] | None = None
    """The same for the second."""
    max_tiles: int = 200
    """At most so many tiles of each, evenly taken."""
    dry_run: bool = False
    """Print the resolved settings and the plan, and do nothing."""


@dataclass(frozen=True)
class ReportStudyConfig:
    """jobs/report_study.py"""

    results_dir: str
    """What jobs/tune_draem.py filled: a folder or s3://."""
    output_dir: str | None = None
    """Where study.html and study.md go; null: beside the results."""
    dry_run: bool = False
    """Print the resolved settings and the plan, and do nothing."""
