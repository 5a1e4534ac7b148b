"""New thresholds from stored score rows: those of a model's held-out strips, or those of runs."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from steelray.config import CalibrationConfig, ConfigError
from steelray.job import show_plan
from steelray.models.calibration import (
    ALL_STRIPS,
    Calibration,
    Threshold,
    calibrate,
    group_warnings,
    read_calibration,
    read_calibration_rows,
    write_calibration,
)
from steelray.models.config import CalibrateConfig
from steelray.models.model import Model, open_model
from steelray.models.odd import calibration_warnings
from steelray.runs.exclude import exclude
from steelray.runs.review import verdicts_on
from steelray.runs.run import Run, read_published
from steelray.schema import Status


def recalibrate(config: CalibrateConfig) -> dict[str, Any]:
    """Set thresholds from stored score rows and store them as the model's newest calibration.

    Returns:
        The summary: version, source of the rows, and the thresholds of all groups.

    Raises:
        ConfigError: there are no rows, they are of another model, or no verdict or excluded key is on any of them.
    """
    model = open_model(config.model_uri)
    before, version = read_calibration(config.model_uri, config.version)
    if config.results_uri is None:
        rows, source = read_calibration_rows(config.model_uri, version), f"rows of calibration {version}"
    else:
        rows, source = rows_of_runs(config.results_uri, config.run_ids, model)
    warnings = []
    known = rows["image_key"].to_pylist()
    rows = rows.filter(pc.equal(rows["status"], Status.OK.value))
    num_rows = rows.num_rows
    if config.verdicts is not None:
        verdicts, num_others = verdicts_on(known, config.verdicts, source)
        if num_others:
            warnings.append(f"{num_others} of {len(verdicts) + num_others} verdicts are on strips not in {source}")
        defective = [key for key, wrong in verdicts.items() if wrong]
        rows = rows.filter(pc.invert(pc.is_in(rows["image_key"], value_set=pa.array(defective, pa.string()))))
        source += f" without {num_rows - rows.num_rows} defective strips"
    true_alarms = num_rows - rows.num_rows
    num_excluded = 0
    if config.exclude is not None:
        excluded = exclude(known, config.exclude, source)
        warnings += excluded.warnings
        rest = rows.filter(pc.invert(pc.is_in(rows["image_key"], value_set=pa.array(excluded.keys, pa.string()))))
        num_excluded, rows = rows.num_rows - rest.num_rows, rest
        source += f" without {num_excluded} excluded strips"
        if config.results_uri is None and model.bank is not None:
            warnings.append(f"the bank still knows the {num_excluded} excluded strips: build it again with exclude")
    scores_N, peaks_N, means_N = (rows[name].to_numpy() for name in ("anomaly_score", "map_peak", "map_mean"))
    keys = rows["image_key"].to_pylist()
    calibration = calibrate(keys, scores_N, peaks_N, means_N, _settings(config, before))
    warnings += calibration_warnings(calibration, keys, scores_N)
    warnings += group_warnings(keys, calibration, "calibration strips")
    summary = {
        "model_uri": config.model_uri,
        "source": source,
        "num_strips": rows.num_rows,
        "true_alarms_left_out": true_alarms,
        "excluded": num_excluded,
        "warnings": warnings,
        "groups": {
            name: {
                "num_strips": group.num_strips,
                "review": _level(group.review),
                "reject": _level(group.reject) if group.has_reject else None,
                "review_before": before.thresholds_of(name).review.value,
            }
            for name, group in calibration.groups.items()
        },
    }
    if config.dry_run:
        return show_plan(config, summary)
    return {"version": write_calibration(config.model_uri, calibration, rows, source), **summary}


def _settings(config: CalibrateConfig, before: Calibration) -> CalibrationConfig:
    """Return the given rates and pattern, with those of the previous calibration for missing ones."""
    levels = before.groups[ALL_STRIPS]
    review = levels.review.asked_rate if config.false_alarm_rate is None else config.false_alarm_rate
    reject = min(levels.reject.asked_rate, review) if config.reject_rate is None else config.reject_rate
    pattern = before.group_pattern if config.group_pattern is None else config.group_pattern or None
    return CalibrationConfig(false_alarm_rate=review, reject_rate=reject, group_pattern=pattern)


def _level(threshold: Threshold) -> dict[str, float | bool]:
    return {
        "value": threshold.value,
        "rate": threshold.rate,
        "rate_low": threshold.rate_low,
        "rate_high": threshold.rate_high,
        "extrapolated": threshold.extrapolated,
    }


def rows_of_runs(results_uri: str, run_ids: Sequence[str], model: Model) -> tuple[pa.Table, str]:
    """Read the score rows of complete runs, of the published one if none is given, and describe their source.

    An object that several of the runs have scored counts once, with the row of the first of them.

    Raises:
        ConfigError: a run does not exist, is not complete, or was scored with another model.
    """
    current = read_published(results_uri).current
    chosen = list(run_ids) or ([current] if current else [])
    if not chosen:
        raise ConfigError(f"{results_uri}: no run is published: give run_ids, or score an archive first")
    tables = []
    for run_id in chosen:
        run = Run(results_uri, run_id)
        record = run.record()
        if record is None:
            raise ConfigError(f"{results_uri}: there is no complete run {run_id}: see jobs/runs.py")
        if not record.is_of(model):
            raise ConfigError(
                f"run {run_id} was scored with another model than {model.uri}: its scores cannot be compared"
            )
        tables.append(run.scores())
    table = pa.concat_tables(tables)
    names = pc.binary_join_element_wise(table["image_key"], table["etag"], "\0").to_pylist()
    first = {name: row for row, name in reversed(list(enumerate(names)))}
    return table.take(sorted(first.values())), f"runs {', '.join(chosen)} of {results_uri}"
