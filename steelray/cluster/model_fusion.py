"""Fuse stored models into a calibrated ensemble: scales from their own held-out rows, thresholds on the cluster."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from steelray.cluster.connect import ComputePlan
from steelray.cluster.driver import ModelJob, Report
from steelray.cluster.held_out import calibrate_model
from steelray.config import ArchiveConfig, ConfigError
from steelray.models.calibration import CALIBRATIONS, read_calibration, read_calibration_rows
from steelray.models.config import FuseModelsConfig
from steelray.models.ensemble import INFO_FILE, EnsembleInfo, EnsembleMember, common_strips, make_ensemble, scale_of
from steelray.models.model import CHECKPOINT_FILE, Model, common_input_size, nominal_uris, open_model
from steelray.patchcore.bank import INFO_FILE as BANK_FILE
from steelray.schema import Status
from steelray.storage.listing import ImageSet, list_archive
from steelray.storage.location import Location

MIN_STRIPS = 2
"""Fewer have no spread."""


def fuse_models(config: FuseModelsConfig, report: Report) -> dict[str, Any]:
    """Write and calibrate an ensemble.

    Scales and thresholds rest on the same strips, which no member was fitted on. The scales come from the members' own
    score rows of them; the thresholds, also that of the pixels, need the strips to be scored once with the ensemble.

    Returns:
        The summary: model id, members with weight and scale, thresholds, places.

    Raises:
        ConfigError: something the user has to correct.
        JobFailed: the cluster or the store failed.
    """
    target = Location(config.output_uri)
    target.check_access(create=not config.dry_run)
    _check_free(target, config.overwrite)
    models = [_open_member(uri) for uri in config.model_uris]
    input_size_px = common_input_size(models)
    nominal_uri = config.nominal_uri or _nominal_uri(models[0])
    manifest, rows = _shared_strips(models, nominal_uri)
    weights = config.weights or (1.0,) * len(models)
    info = make_ensemble(
        [
            EnsembleMember(Location(model.uri).uri, model.model_id, model.bank_id, float(weight), scale_of(of_model))
            for model, weight, of_model in zip(models, weights, rows, strict=True)
        ],
        manifest.num_rows,
    )
    facts: dict[str, Any] = {"model_id": info.model_id, "members": [asdict(member) for member in info.members]}
    facts |= {"input_size_px": input_size_px, "nominal_uris": [nominal_uri], "strips": info.num_strips}
    held_out = ImageSet(nominal_uri, manifest, config.decode)

    def make(plan: ComputePlan) -> dict[str, Any]:
        _write(target, info)
        report(f"ensemble {info.model_id} of {len(models)} models; scoring {info.num_strips} held-out images")
        thresholds = calibrate_model(config.output_uri, held_out, config.compute, config.calibration, report)
        members = facts["members"]
        return {"model_id": info.model_id, "model_uri": config.output_uri, "members": members, **thresholds}

    uris = (nominal_uri, config.output_uri, *config.model_uris)
    return ModelJob(config, target, "the fusion", uris, facts).run(make, report)


def _check_free(target: Location, overwrite: bool) -> None:
    for name in (BANK_FILE, CHECKPOINT_FILE):
        if target.exists(name):
            raise ConfigError(f"{target.uri}: holds a model that is no ensemble ({name}): choose another place")
    if target.exists(INFO_FILE) and not overwrite:
        raise ConfigError(f"{target.uri}: holds an ensemble already: set overwrite, or choose another place")


def _open_member(uri: str) -> Model:
    model = open_model(uri)
    if model.ensemble is not None:
        members = ", ".join(member.uri for member in model.ensemble.members)
        raise ConfigError(
            f"{uri} is an ensemble, and an ensemble takes single models only: name its members, {members}"
        )
    return model


def _nominal_uri(model: Model) -> str:
    uris = nominal_uris(model.uri)
    if len(uris) != 1:
        found = f"it learned from several places ({', '.join(uris)})" if uris else "its run.json does not say"
        raise ConfigError(f"{model.uri}: where are its nominal images? {found}: give nominal_uri")
    return uris[0]


def _shared_strips(models: Sequence[Model], nominal_uri: str) -> tuple[pa.Table, list[pa.Table]]:
    """The strips that all models have held out: their manifest, and each model's score rows of them, in its order.

    Raises:
        ConfigError: too few, or too few that still lie unchanged at `nominal_uri`.
    """
    rows = []
    for model in models:
        table = read_calibration_rows(model.uri, read_calibration(model.uri)[1])
        rows.append(table.filter(pc.equal(table.column("status"), Status.OK.value)))
    rows = common_strips(rows)
    if (count := rows[0].num_rows) < MIN_STRIPS:
        raise ConfigError(
            f"{', '.join(model.uri for model in models)}: {count} nominal strips are held out of all of them, "
            f"{MIN_STRIPS} at least are needed: build the models from the same nominal strips with the same "
            "calibration.held_out_fraction and calibration.seed"
        )
    manifest, *rows = common_strips([list_archive(ArchiveConfig(nominal_uri)), *rows])
    if manifest.num_rows < MIN_STRIPS:
        raise ConfigError(
            f"{nominal_uri}: {manifest.num_rows} of the {count} strips that all models have held out lie there "
            "unchanged: give nominal_uri as it was when the models were built"
        )
    return manifest, rows


def _write(target: Location, info: EnsembleInfo) -> None:
    """Stores an ensemble in the place of an earlier one; nothing else below the place is touched.

    The members may lie there.
    """
    for name in (INFO_FILE, "run.json"):
        target.delete(name)
    (target / CALIBRATIONS).delete_all()
    target.write(INFO_FILE, info.to_json())
