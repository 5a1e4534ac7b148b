"""Thresholds of a model: held-out nominal strips scored with it over a cluster."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from steelray.cluster.connect import plan_compute
from steelray.cluster.image_source import map_images
from steelray.cluster.scoring_actors import ScoringActor, plan_model_bank, portable_model, running_bank
from steelray.config import CalibrationConfig, ComputeConfig, DecodeConfig
from steelray.models.calibration import ALL_STRIPS, Calibration, calibrate, write_calibration
from steelray.models.model import open_model
from steelray.runs.batch import RunStamp
from steelray.schema import Status


@dataclass(frozen=True)
class HeldOutStrips:
    """Nominal images that a model was not fitted on, and how they are read and scored.

    Attributes:
        manifest: those of the place's images, schema `MANIFEST`.
    """

    uri: str
    manifest: pa.Table
    decode: DecodeConfig
    compute: ComputeConfig


def calibrate_model(
    model_uri: str,
    strips: HeldOutStrips,
    config: CalibrationConfig,
    resources: dict[str, float],
    report: Callable[[str], None],
    earlier: pa.Table | None = None,
) -> tuple[Calibration, int]:
    """Scores held-out images with a stored model, sets thresholds on them and stores these beside it.

    Args:
        resources: of the cluster.
        earlier: score rows of other nominal strips that the thresholds rest on as well.

    Returns:
        The calibration and its version.

    Raises:
        ConfigError: no strip has a score.
    """
    rows = _score(model_uri, strips, resources)
    source = f"held out of {strips.uri}"
    if earlier is not None and earlier.num_rows:
        rows = pa.concat_tables([earlier, rows])
        source += f", and {earlier.num_rows} strips of the bank that it grew from"
    return set_thresholds(model_uri, rows, config, source, report)


def set_thresholds(
    model_uri: str, rows: pa.Table, config: CalibrationConfig, source: str, report: Callable[[str], None]
) -> tuple[Calibration, int]:
    """Thresholds on score rows (schema `SCORES`) of nominal strips, those without a score left out; stored with them.

    Args:
        source: where the strips came from, in words.

    Returns:
        The calibration and its version.

    Raises:
        ConfigError: no strip has a score.
    """
    rows = rows.filter(pc.equal(rows.column("status"), Status.OK))
    calibration = calibrate(
        rows.column("image_key").to_pylist(),
        rows.column("anomaly_score").to_numpy(),
        rows.column("map_peak").to_numpy(),
        rows.column("map_mean").to_numpy(),
        config,
    )
    version = write_calibration(model_uri, calibration, rows, source)
    thresholds = calibration.groups[ALL_STRIPS]
    if thresholds.review.rate > config.false_alarm_rate:
        report(
            f"warning: {thresholds.num_strips} held-out images support a false-alarm rate of "
            f"{thresholds.review.rate:.3f} at best, {config.false_alarm_rate} was asked for: add nominal images"
        )
    return calibration, version


def threshold_facts(calibration: Calibration, version: int) -> dict[str, Any]:
    """What a job says of the thresholds that it has set."""
    thresholds = calibration.groups[ALL_STRIPS]
    return {
        "calibration_version": version,
        "threshold": thresholds.review.value,
        "reject_threshold": thresholds.reject.value,
        "false_alarm_rate": thresholds.review.rate,
        "held_out": thresholds.num_strips,
        "groups": len(calibration.groups) - 1,
    }


def _score(model_uri: str, strips: HeldOutStrips, resources: dict[str, float]) -> pa.Table:
    model, compute = open_model(model_uri), strips.compute
    portable = portable_model(model, compute)
    with running_bank(model, plan_model_bank(model, compute), compute.gpus_per_scorer) as servers:
        plan = plan_compute(resources.get("CPU", 0), resources.get("GPU", 0), compute, len(servers))
        stamp = RunStamp("calibration", model.model_id, model.bank_id, model.input_size_px)
        arguments: tuple[Any, ...] = (model, compute, plan, [ray.put(portable)], servers, stamp, None, {})
        rows = map_images(strips.uri, strips.manifest, strips.decode, compute, plan, ScoringActor, arguments)
        return pa.concat_tables(ray.get(rows.to_arrow_refs()))
