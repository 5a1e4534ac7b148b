"""Calibrate a stored model: score nominal images on the cluster and set its thresholds on them."""

import pyarrow as pa
import pyarrow.compute as pc
import ray

from steelray.cluster.driver import Report, cluster_resources
from steelray.cluster.plan import plan_compute
from steelray.cluster.scoring_actors import ScoringRequest, plan_model_bank, scored_images
from steelray.config import CalibrationConfig, ComputeConfig, Facts
from steelray.models.calibration import ALL_STRIPS, Calibration, calibrate, group_warnings, write_calibration
from steelray.models.model import open_model
from steelray.models.odd import calibration_warnings
from steelray.schema import Status
from steelray.storage.listing import ImageSet


def calibrate_model(
    model_uri: str,
    held_out: ImageSet,
    compute: ComputeConfig,
    config: CalibrationConfig,
    report: Report,
    earlier: pa.Table | None = None,
) -> Facts:
    """Score nominal images, set a model's thresholds on them and store both beside it.

    Images that a memory bank was fitted on are scored without the vectors that they contributed.

    Args:
        earlier: score rows of further nominal strips to calibrate on.

    Returns:
        The entries of the job's summary about the thresholds, with `warnings` about them.

    Raises:
        ConfigError: no strip has a score.
    """
    rows = _score(model_uri, held_out, compute)
    source = f"nominal strips of {held_out.uri}"
    if earlier is not None and earlier.num_rows:
        rows = pa.concat_tables([earlier, rows])
        source += f", and {earlier.num_rows} strips of the bank that it grew from"
    rows = rows.filter(pc.equal(rows.column("status"), Status.OK))
    keys, scores_N = rows.column("image_key").to_pylist(), rows.column("anomaly_score").to_numpy()
    calibration = calibrate(
        keys, scores_N, rows.column("map_peak").to_numpy(), rows.column("map_mean").to_numpy(), config
    )
    version = write_calibration(model_uri, calibration, rows, source)
    warnings = calibration_warnings(calibration, keys, scores_N)
    warnings += group_warnings(keys, calibration, "nominal images")
    for warning in warnings:
        report(f"warning: {warning}")
    return {**_threshold_facts(calibration, version), "warnings": warnings}


def _threshold_facts(calibration: Calibration, version: int) -> Facts:
    thresholds = calibration.groups[ALL_STRIPS]
    return {
        "calibration_version": version,
        "threshold": thresholds.review.value,
        "reject_threshold": thresholds.reject.value if thresholds.has_reject else None,
        "false_alarm_rate": thresholds.review.rate,
        "held_out": thresholds.num_strips,
        "groups": len(calibration.groups) - 1,
    }


def _score(model_uri: str, images: ImageSet, compute: ComputeConfig) -> pa.Table:
    request = ScoringRequest(open_model(model_uri), compute, run_id="calibration", nominal=True)
    bank_plan = plan_model_bank(request.model, compute)
    plan = plan_compute(*cluster_resources(), compute, bank_plan.num_actors if bank_plan else 0)
    with scored_images(images, request, plan, bank_plan) as rows:
        return pa.concat_tables(ray.get(rows.to_arrow_refs()))
