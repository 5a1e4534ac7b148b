"""Settings of jobs/fuse_models.py and calibrate.py. Imports neither torch nor ray."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from steelray.config import CalibrationConfig, ModelJobConfig, require


@dataclass(frozen=True)
class FuseModelsConfig(ModelJobConfig):
    """jobs/fuse_models.py"""

    FIRST: ClassVar[tuple[str, ...]] = (
        "model_uris", "output_uri", "weights", "nominal_uri", "calibration.false_alarm_rate",
        "calibration.group_pattern", "overwrite", "dry_run",
    )  # fmt: skip

    model_uris: tuple[str, ...]
    """Models to fuse: two or more memory banks or checkpoints, made from the same nominal strips with the same
    calibration.held_out_fraction. The ensemble refers to them: leave them in place, unchanged."""
    output_uri: str
    """Location of the ensemble, which scores archives as its models do: s3://bucket/prefix or a local folder."""
    weights: tuple[float, ...] = ()
    """Weight of each model, in the order of model_uris; empty: all the same."""
    nominal_uri: str | None = None
    """Location of the strips that the models have held out; null: the nominal images of the first model."""
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    """Rates and groups. held_out_fraction has no effect: the models have held out the strips already."""

    def __post_init__(self) -> None:
        count = len(self.model_uris)
        require(count >= 2, f"model_uris: an ensemble needs at least two models, not {count}")
        repeated = sorted({uri for uri in self.model_uris if self.model_uris.count(uri) > 1})
        require(not repeated, f"model_uris: {', '.join(repeated)} is listed twice: give it a larger weight instead")
        fitting = len(self.weights) in (0, count)
        require(fitting, f"weights: {len(self.weights)} for {count} models: give one per model, or none")
        wrong = [weight for weight in self.weights if not 0 < weight < math.inf]
        require(not wrong, f"weights must be positive, not {', '.join(map(str, wrong))}")


@dataclass(frozen=True)
class CalibrateConfig:
    """jobs/calibrate.py"""

    model_uri: str
    """Model whose thresholds are set. They become its newest calibration; earlier ones are kept."""
    results_uri: str | None = None
    """Location of scoring results to calibrate on; null: the held-out strips stored with the model."""
    run_ids: tuple[str, ...] = ()
    """Runs in results_uri whose strips are all taken as nominal; empty: the published run."""
    verdicts: str | None = None
    """CSV file of an operator's verdicts (image_key, verdict), as for jobs/review.py. Defective strips are left out."""
    exclude: str | None = None
    """File of strips to leave out: one key per line, or a CSV file of verdicts as the bank page saves it; null: none.
    A bank still knows these strips: build it again to forget them."""
    false_alarm_rate: float | None = None
    """Share of nominal strips that may be flagged for review, 0 to 1; null: as before."""
    reject_rate: float | None = None
    """Share of nominal strips that may score above the reject level, 0 to 1; null: as before."""
    group_pattern: str | None = None
    """Regular expression over keys that names a strip's group; null: as before; empty: one group."""
    version: int | None = None
    """Calibration that supplies the settings left at null, and the held-out strips; null: the newest."""
    dry_run: bool = False
    """Print the thresholds, and store nothing."""

    def __post_init__(self) -> None:
        require(not self.run_ids or self.results_uri is not None, "run_ids need a results_uri")
