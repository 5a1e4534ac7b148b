"""Measure the power of a stored model on the cluster: defects are planted in its nominal images, and scored."""

from dataclasses import asdict
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from steelray.cluster.driver import Report, cluster_resources
from steelray.cluster.held_out import calibrate_model
from steelray.cluster.image_source import first_readable, map_images
from steelray.cluster.plan import plan_compute
from steelray.cluster.scoring_actors import (
    ScorerPlace,
    ScoringRequest,
    load_request,
    plan_model_bank,
    portable_model,
    running_bank,
)
from steelray.config import CalibrationConfig, ComputeConfig, Facts
from steelray.evaluation.power import PLANTED, PlantedScore, Rounds, plan_rounds, power_of, score_planted, write_planted
from steelray.models.calibration import read_calibration, read_calibration_rows
from steelray.models.model import open_model
from steelray.runs.batch import images_of
from steelray.schema import Status
from steelray.storage.listing import ImageSet

CANNOT_DECIDE = (
    "this model cannot decide: its thresholds find no kind of planted defect at any size; add nominal strips, or "
    "exclude odd ones"
)


class PlantingActor:
    """Plant defects in decoded nominal images and score them. A plain class; Ray Data makes actors of it."""

    def __init__(
        self, request: ScoringRequest, place: ScorerPlace, rounds: Rounds, foreign_HWC: NDArray[np.uint8]
    ) -> None:
        self._scorer = load_request(request, place)
        self._rounds, self._foreign_HWC = rounds, foreign_HWC

    def __call__(self, decoded: pa.Table) -> pa.Table:
        rows: list[PlantedScore] = []
        for key, image in zip(decoded.column("image_key").to_pylist(), images_of(decoded), strict=True):
            if image is not None:
                rows += score_planted(self._scorer, image, key, self._rounds[key], self._foreign_HWC)
        return pa.Table.from_pylist([asdict(row) for row in rows], PLANTED)


def calibrate_and_check(
    model_uri: str,
    nominal: ImageSet,
    compute: ComputeConfig,
    config: CalibrationConfig,
    report: Report,
    earlier: pa.Table | None = None,
) -> Facts:
    """Set a model's thresholds on nominal images, then measure its power at them.

    Args:
        earlier: score rows of further nominal strips to calibrate on.

    Returns:
        The entries of the job's summary about thresholds and power.
    """
    thresholds = calibrate_model(model_uri, nominal, compute, config, report, earlier)
    power = check_power(model_uri, nominal, compute, report)
    warnings = [*cast("list[str]", thresholds["warnings"]), *cast("list[str]", power["warnings"])]
    return {**thresholds, **power, "warnings": warnings}


def check_power(model_uri: str, nominal: ImageSet, compute: ComputeConfig, report: Report) -> Facts:
    """Plant defects in images that a model is calibrated on, and store the scores beside it.

    Returns:
        The entries of the job's summary about the model's power.
    """
    calibration, version = read_calibration(model_uri)
    rows = read_calibration_rows(model_uri, version)
    usable = pc.and_(
        pc.equal(rows.column("status"), Status.OK),
        pc.is_in(rows.column("image_key"), value_set=nominal.manifest.column("image_key").combine_chunks()),
    )
    keys, *sizes = (rows.filter(usable).column(name).to_pylist() for name in ("image_key", "height_px", "width_px"))
    rounds = plan_rounds(keys, list(zip(*sizes, strict=True)))
    hosts = nominal.take(np.flatnonzero([key in rounds for key in nominal.manifest.column("image_key").to_pylist()]))
    report(f"planting defects in {len(hosts)} nominal images, to see which the thresholds find")
    planted = _score(model_uri, nominal, hosts, rounds, compute) if rounds else PLANTED.empty_table()
    write_planted(model_uri, planted)
    power = power_of(planted, calibration)
    warnings = [] if power.can_decide else [CANNOT_DECIDE]
    for warning in warnings:
        report(f"warning: {warning}")
    return {
        "warnings": warnings,
        "can_decide": power.can_decide,
        "detection_limits": [asdict(limit) for limit in power.limits],
    }


def _score(model_uri: str, nominal: ImageSet, hosts: ImageSet, rounds: Rounds, compute: ComputeConfig) -> pa.Table:
    request = ScoringRequest(open_model(model_uri), compute, run_id="power", nominal=True)
    bank_plan = plan_model_bank(request.model, compute)
    plan = plan_compute(*cluster_resources(), compute, bank_plan.num_actors if bank_plan else 0)
    foreign_HWC = first_readable(nominal, len(nominal) // 2)
    with running_bank(request.model, bank_plan, plan.scorer_gpus) as servers:
        portable = ray.put(portable_model(request.model, compute))
        place = ScorerPlace(plan.scorer_threads, plan.scorer_gpus > 0, portable, servers)
        arguments: tuple[Any, ...] = (request, place, rounds, foreign_HWC)
        planted = map_images(hosts, plan, 1, PlantingActor, arguments)
        return pa.concat_tables(ray.get(planted.to_arrow_refs()))
