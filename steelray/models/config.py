"""Settings of jobs/fuse_models.py and calibrate.py. Imports neither torch nor ray."""

import math
from dataclasses import dataclass, field

from steelray.config import (
    CalibrationConfig,
    ComputeConfig,
    DecodeConfig,
    require,
)


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
