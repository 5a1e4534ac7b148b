"""Fuse stored models into an ensemble: scales from their own held-out rows, calibration on the cluster."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from steelray.cluster.driver import ModelJob, Report
from steelray.cluster.plan import ComputePlan
from steelray.cluster.power_check import calibrate_and_check
from steelray.config import ArchiveConfig, ConfigError, Facts
from steelray.models.calibration import CALIBRATIONS, check_groups, read_calibration, read_calibration_rows
from steelray.models.config import FuseModelsConfig
from steelray.models.ensemble import INFO_FILE, EnsembleInfo, EnsembleMember, common_strips, make_ensemble, scale_of
from steelray.models.model import CHECKPOINT_FILE, Model, common_input_size, nominal_uris, open_model
from steelray.patchcore.bank import INFO_FILE as BANK_FILE
from steelray.schema import Status
from steelray.storage.listing import ImageSet, list_archive
from steelray.storage.location import Location

MIN_STRIPS = 2
"""Fewest shared strips: one has no spread to scale by."""


def fuse_models(config: FuseModelsConfig, report: Report) -> dict[str, Any]:
    """Write and calibrate an ensemble.

    Scales and thresholds rest on the same strips, which no member was fitted on. The scales come from the members'
    stored score rows; for the thresholds the ensemble scores the strips once.

    Returns:
        The summary: model id, members with weight and scale, thresholds, locations.

    Raises:
        ConfigError: something the user must correct.
        JobFailed: the cluster or the store failed.
    """
    target = Location(config.output_uri)
    target.check_access(create=not config.dry_run)
    _check_free(target, config.overwrite)
    models = [_open_member(uri) for uri in config.model_uris]
    input_size_px = common_input_size(models)
    nominal_uri = config.nominal_uri or _nominal_uri(models[0])
    manifest, rows = _shared_strips(models, nominal_uri)
    check_groups(manifest.column("image_key").to_pylist(), config.calibration.group_pattern)
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

    def make(plan: ComputePlan) -> Facts:
        _write(target, info)
        report(f"ensemble {info.model_id} of {len(models)} models; scoring {info.num_strips} held-out images")
        decided = calibrate_and_check(config.output_uri, held_out, config.compute, config.calibration, report)
        members = facts["members"]
        return {"model_id": info.model_id, "model_uri": config.output_uri, "members": members, **decided}

    uris = (nominal_uri, config.output_uri, *config.model_uris)
    return ModelJob(config, target, "the fusion", uris, facts).run(make, report)


def _check_free(target: Location, overwrite: bool) -> None:
    for name in (BANK_FILE, CHECKPOINT_FILE):
        if target.exists(name):
            raise ConfigError(f"{target.uri}: holds a model that is no ensemble ({name}): choose another location")
    if target.exists(INFO_FILE) and not overwrite:
        raise ConfigError(f"{target.uri}: holds an ensemble already: set overwrite, or choose another location")


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
        found = f"fitted on images of {', '.join(uris)}" if uris else "its run.json does not name its nominal images"
        raise ConfigError(f"{model.uri}: {found}: set nominal_uri to where the strips are")
    return uris[0]


def _shared_strips(models: Sequence[Model], nominal_uri: str) -> tuple[pa.Table, list[pa.Table]]:
    """Return the manifest of the strips that all models have held out, and each model's score rows in its order.

    Raises:
        ConfigError: there are too few, or too few of them are unchanged at `nominal_uri`.
    """
    rows = []
    for model in models:
        table = read_calibration_rows(model.uri, read_calibration(model.uri)[1])
        rows.append(table.filter(pc.equal(table.column("status"), Status.OK.value)))
    rows = common_strips(rows)
    if (count := rows[0].num_rows) < MIN_STRIPS:
        raise ConfigError(
            f"{', '.join(model.uri for model in models)}: {count} nominal strips are held out of all of them, "
            f"at least {MIN_STRIPS} are needed: build the models from the same nominal strips with the same "
            "calibration.held_out_fraction and calibration.seed"
        )
    manifest, *rows = common_strips([list_archive(ArchiveConfig(nominal_uri)), *rows])
    if manifest.num_rows < MIN_STRIPS:
        raise ConfigError(
            f"{nominal_uri}: {manifest.num_rows} of the {count} strips that all models have held out are there "
            "unchanged: set nominal_uri to the images that the models were built from"
        )
    return manifest, rows


def _write(target: Location, info: EnsembleInfo) -> None:
    """Store an ensemble in place of an earlier one; other files stay, as the location may hold its members too."""
    for name in (INFO_FILE, "run.json"):
        target.delete(name)
    (target / CALIBRATIONS).delete_all()
    target.write(INFO_FILE, info.to_json())
