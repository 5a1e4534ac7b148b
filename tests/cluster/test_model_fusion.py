import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from steelray.cluster.archive_scorer import score_archive
from steelray.cluster.bank_builder import build_memory_bank
from steelray.cluster.model_fusion import fuse_models
from steelray.config import CalibrationConfig, ComputeConfig, ConfigError
from steelray.evaluation.metrics import image_auroc
from steelray.imaging.decode import decode
from steelray.models.calibration import read_calibration, read_calibration_rows, write_calibration
from steelray.models.config import CalibrateConfig, FuseModelsConfig
from steelray.models.ensemble import FusedScorer, scale_of
from steelray.models.model import load_scorer, open_model
from steelray.patchcore.config import EmbedderConfig
from steelray.runs.recalibration import recalibrate
from steelray.runs.run import Run
from steelray.schema import SCORES, Status
from steelray.storage.location import Location
from tests.cluster.conftest import World, build_config, score_config, silent

CALIBRATION = CalibrationConfig(false_alarm_rate=0.1, reject_rate=0.1)
WEIGHTS = (1.0, 0.5)


@pytest.fixture(scope="module")
def level_3(world: World) -> str:
    """Build a second bank of the world's nominal strips."""
    uri = "s3://archive/world/bank-level-3"
    build_memory_bank(build_config(world.nominal_uri, uri, embedder=EmbedderConfig(levels=(3,))), silent)
    return uri


@pytest.fixture(scope="module")
def fused(world: World, level_3: str) -> tuple[str, dict[str, object]]:
    """Fuse both banks; return the ensemble's URI and the summary."""
    uri = "s3://archive/world/ensemble"
    return uri, fuse_models(settings(world, level_3, uri), silent)


def settings(world: World, level_3: str, output_uri: str, **changes: object) -> FuseModelsConfig:
    values: dict[str, object] = {"weights": WEIGHTS, "calibration": CALIBRATION, **changes}
    return FuseModelsConfig((world.bank_uri, level_3), output_uri, **values)  # type: ignore[arg-type]


def scorer_of(world: World, level_3: str) -> FusedScorer:
    """Return the ensemble, put together in this process from the members' own rows."""
    uris = world.bank_uri, level_3
    scorers = [load_scorer(open_model(uri), ComputeConfig(), num_threads=1) for uri in uris]
    return FusedScorer(scorers, [scale_of(read_calibration_rows(uri, 1)) for uri in uris], WEIGHTS)


def test_thresholds_rest_on_the_strips_that_no_member_was_fitted_on(
    world: World, level_3: str, fused: tuple[str, dict[str, object]]
) -> None:
    uri, summary = fused
    model = open_model(uri)
    assert model.model_id == summary["model_id"]
    calibration, version = read_calibration(uri)
    rows = read_calibration_rows(uri, version)
    of_members = [read_calibration_rows(member, 1).sort_by("image_key") for member in (world.bank_uri, level_3)]
    assert summary["held_out"] == rows.num_rows == of_members[0].num_rows == 10
    assert sorted(rows.column("image_key").to_pylist()) == of_members[0].column("image_key").to_pylist()
    assert calibration.groups[""].review.value == pytest.approx(max(rows.column("anomaly_score").to_pylist()))
    assert set(rows.column("model_id").to_pylist()) == {model.model_id}
    # the fused scores follow from the members' rows alone
    scores = [table.column("anomaly_score").to_numpy().astype(float) for table in of_members]
    expected = sum(weight * (s - s.mean()) / s.std() for weight, s in zip(WEIGHTS, scores, strict=True))
    np.testing.assert_allclose(rows.sort_by("image_key").column("anomaly_score").to_numpy(), expected, atol=1e-3)


def test_an_archive_is_scored_as_in_one_process(
    world: World, level_3: str, fused: tuple[str, dict[str, object]], s3_uri: str
) -> None:
    summary = score_archive(score_config(world, f"{s3_uri}/results", model_uri=fused[0]), silent)
    run = Run(f"{s3_uri}/results", summary["run_id"])
    rows = run.scores().sort_by("image_key")
    assert set(rows.column("status").to_pylist()) == {Status.OK}
    keys = rows.column("image_key").to_pylist()
    assert tuple(keys) == world.keys
    archive = Location(world.archive_uri)
    maps, scores = scorer_of(world, level_3).score([decode(archive.read(key)) for key in keys])
    np.testing.assert_allclose(rows.column("anomaly_score").to_numpy(), scores, atol=1e-3)
    np.testing.assert_allclose(rows.column("map_peak").to_numpy(), [map_HW.max() for map_HW in maps], atol=1e-3)
    assert image_auroc(np.array([key in world.defects for key in keys]), scores) > 0.9
    assert rows.column("bank_id").null_count == rows.num_rows
    record = json.loads(run.location.read("run.json"))
    assert record["model"] == {"uri": fused[0], "method": "ensemble", "model_id": fused[1]["model_id"]}
    page = run.location.read("report.html").decode()
    assert f"{open_model(level_3).model_id} at {level_3}" in page
    # a later incremental run, and a calibration on this run
    again = score_archive(score_config(world, f"{s3_uri}/results", model_uri=fused[0], incremental=True), silent)
    assert again["already_scored"] == len(keys)
    answer = recalibrate(CalibrateConfig(fused[0], f"{s3_uri}/results", dry_run=True))
    assert answer["plan"]["num_strips"] == len(keys)


def copied(source_uri: str, target_uri: str) -> str:
    """Copy a model and return the URI of the copy."""
    for stored in Location(source_uri).list():
        Location(target_uri).write(stored.key, Location(source_uri).read(stored.key))
    return target_uri


def test_an_ensemble_is_replaced_and_refused_once_a_member_is_another(world: World, level_3: str, s3_uri: str) -> None:
    """One of its members is below the ensemble, and stays when the ensemble is replaced."""
    bank_uri = copied(level_3, f"{s3_uri}/bank")
    config = replace(settings(world, level_3, s3_uri), model_uris=(world.bank_uri, bank_uri))
    first = fuse_models(config, silent)
    second = fuse_models(replace(config, weights=(), overwrite=True), silent)
    assert second["model_id"] != first["model_id"]
    assert (open_model(s3_uri).model_id, second["calibration_version"]) == (second["model_id"], 1)
    assert [member["weight"] for member in second["members"]] == [1.0, 1.0]
    copied(world.bank_uri, bank_uri)
    for dry_run in (False, True):
        with pytest.raises(ConfigError, match=r"no longer the one that was fused .*jobs/fuse_models\.py"):
            score_archive(score_config(world, f"{s3_uri}/r", model_uri=s3_uri, dry_run=dry_run), silent)


def test_models_of_other_strips_have_nothing_in_common(world: World, level_3: str, s3_uri: str) -> None:
    bank_uri = copied(level_3, f"{s3_uri}/bank")
    calibration, rows = read_calibration(level_3)[0], read_calibration_rows(level_3, 1)
    others = pa.array([f"other-{key}" for key in rows.column("image_key").to_pylist()])
    rows = rows.set_column(rows.schema.get_field_index("image_key"), SCORES.field("image_key"), others)
    write_calibration(bank_uri, calibration, rows, "other strips")
    config = replace(settings(world, level_3, f"{s3_uri}/both"), model_uris=(world.bank_uri, bank_uri))
    message = r"0 nominal strips are held out of all of them.*same calibration\.held_out_fraction"
    with pytest.raises(ConfigError, match=message) as caught:
        fuse_models(config, silent)
    assert "\n" not in str(caught.value)
    assert not list(Location(f"{s3_uri}/both").list())


def test_a_dry_run_writes_nothing(world: World, level_3: str, s3_uri: str) -> None:
    answer = fuse_models(settings(world, level_3, f"{s3_uri}/both", dry_run=True), silent)
    assert (answer["plan"]["strips"], answer["plan"]["input_size_px"]) == (10, (64, 256))
    assert [member["weight"] for member in answer["plan"]["members"]] == list(WEIGHTS)
    assert not list(Location(s3_uri).list())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_uri": "s3://archive/world/ensemble"}, "holds an ensemble already: set overwrite"),
        ({"output_uri": "s3://archive/world/bank", "overwrite": True}, "holds a model that is no ensemble"),
        ({"nominal_uri": "s3://archive/world/archive"}, "0 of the 10 strips .* set nominal_uri"),
        ({"model_uris": ("s3://archive/world/bank", "s3://archive/world/ensemble")}, "name its members, s3://archive"),
        ({"model_uris": ("s3://archive/world/bank", "s3://archive/nothing")}, "no model there"),
    ],
)
def test_mistakes_are_one_clear_line(
    world: World,
    level_3: str,
    fused: tuple[str, dict[str, object]],
    s3_uri: str,
    changes: dict[str, object],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        fuse_models(replace(settings(world, level_3, f"{s3_uri}/both"), **changes), silent)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_no_other_job_replaces_an_ensemble_or_shards_its_banks(
    world: World, fused: tuple[str, dict[str, object]], s3_uri: str
) -> None:
    with pytest.raises(ConfigError, match="holds an ensemble already"):
        build_memory_bank(build_config(world.nominal_uri, fused[0]), silent)
    with pytest.raises(ConfigError, match=r"every scorer holds all of its banks: leave compute\.bank_shards at null"):
        score_archive(score_config(world, s3_uri, model_uri=fused[0], compute=ComputeConfig(bank_shards=2)), silent)
