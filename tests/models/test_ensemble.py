"""ensemble.json and its scales, and an ensemble of real banks in folders."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from steelray.config import ComputeConfig, ConfigError
from steelray.imaging.decode import decode
from steelray.models.config import FuseModelsConfig
from steelray.models.ensemble import (
    INFO_FILE,
    EnsembleInfo,
    EnsembleMember,
    FusedScorer,
    NominalScale,
    check_identity,
    common_strips,
    make_ensemble,
    read_info,
    scale_of,
)
from steelray.models.model import Model, common_input_size, load_scorer, nominal_uris, open_model
from steelray.patchcore.bank import bank_files
from steelray.patchcore.config import CoresetConfig, ScoringConfig
from steelray.patchcore.fit import fit_memory_bank
from steelray.patchcore.portable_embedder import Embedder
from steelray.reconstruction.build import build_model
from steelray.reconstruction.checkpoint import checkpoint_files
from steelray.reconstruction.config import DraemConfig, InputConfig
from steelray.storage.location import Location
from tests.plant import Plant, strip

EAGER = ComputeConfig(backend="eager")
SCALES = (NominalScale(0.1, 0.7, 1.3, 0.2), NominalScale(1.0, 3.0, 1 / 3, 0.05))


def info_of(*uris: str, weights: tuple[float, ...] = (1.0, 0.25)) -> EnsembleInfo:
    """Return the ensemble of the models at these locations."""
    models = [open_model(uri) for uri in uris]
    members = [
        EnsembleMember(uri, model.model_id, model.bank_id, weight, scale)
        for uri, model, weight, scale in zip(uris, models, weights, SCALES, strict=True)
    ]
    return make_ensemble(members, 9)


def read(body: bytes) -> EnsembleInfo:
    return read_info({INFO_FILE: body}.__getitem__, "here")


@pytest.fixture
def other_bank(plant: Plant, eager: Embedder) -> str:
    """Store a second bank of the plant, of other strips and with another image score."""
    bank = fit_memory_bank(
        ["a", "b"],
        [decode(strip(index, seed=7)) for index in range(2)],
        eager,
        coreset=CoresetConfig(ratio=0.05),
        scoring=ScoringConfig(image_score="max"),
    )
    for name, body in bank_files(bank):
        plant.place("other").write(name, body)
    return str(plant.root / "other")


def test_what_is_written_is_what_is_read(plant: Plant, other_bank: str) -> None:
    info = info_of(plant.bank_uri, other_bank)
    assert read(info.to_json()) == info
    assert json.loads(info.to_json())["model_id"] == info.model_id


def test_its_identity_is_all_that_a_score_depends_on(plant: Plant, other_bank: str) -> None:
    info = info_of(plant.bank_uri, other_bank)
    one, two = info.members
    moved = replace(info, members=(replace(one, uri="elsewhere"), two), created_at="later", num_strips=3)
    assert moved.model_id == info.model_id
    others = [
        replace(one, model_id="x"),
        replace(one, bank_id="x"),
        replace(one, weight=2.0),
        replace(one, scale=replace(one.scale, map_scale=0.71)),
    ]
    ids = {replace(info, members=(member, two)).model_id for member in others}
    assert len(ids - {info.model_id}) == len(others)


def test_a_place_without_an_ensemble_is_said() -> None:
    with pytest.raises(ConfigError, match="no ensemble there"):
        read_info({}.__getitem__, "here")


def test_strips_are_the_same_by_key_and_etag() -> None:
    tables = [
        pa.table({"image_key": ["b", "a", "c"], "etag": ["1", "1", "1"], "score": [2, 1, 3]}),
        pa.table({"image_key": ["a", "b", "c", "d"], "etag": ["1", "1", "2", "1"], "score": [10, 20, 30, 40]}),
    ]
    assert [table.column("score").to_pylist() for table in common_strips(tables)] == [[1, 2], [10, 20]]
    assert [table.num_rows for table in common_strips([tables[0], tables[1].slice(2)])] == [0, 0]


def test_a_scale_rests_on_the_columns_of_the_score_table() -> None:
    rows = pa.table(
        {name: pa.array(values, pa.float32()) for name, values in
         {"map_mean": [1, 3], "map_peak": [5, 9], "anomaly_score": [10, 14]}.items()}
    )  # fmt: skip
    assert scale_of(rows) == NominalScale(2.0, 5.0, 12.0, 2.0)


def write_ensemble(plant: Plant, info: EnsembleInfo) -> str:
    plant.place("ensemble").write(INFO_FILE, info.to_json())
    return str(plant.root / "ensemble")


def test_an_ensemble_is_a_model_whose_scores_are_the_weighted_sum(plant: Plant, other_bank: str) -> None:
    uris = (plant.bank_uri, other_bank)
    info = info_of(*uris)
    model = open_model(write_ensemble(plant, info))
    assert (model.method, model.model_id, model.bank_id) == ("ensemble", info.model_id, None)
    assert (model.input_size_px, model.ensemble) == ((64, 256), info)
    scorer = load_scorer(model, EAGER, num_threads=1)
    assert isinstance(scorer, FusedScorer)
    images = [decode(strip(index, seed=3)) for index in range(3)]
    maps, scores = scorer.score(images)
    answers = [load_scorer(open_model(uri), EAGER, num_threads=1).score(images) for uri in uris]
    expected = sum(
        weight * (own - scale.score_offset) / scale.score_sd
        for (_, own), scale, weight in zip(answers, SCALES, (1.0, 0.25), strict=True)
    )
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    expected_HW = sum(
        weight * (own[0] - scale.map_offset) / scale.map_scale
        for (own, _), scale, weight in zip(answers, SCALES, (1.0, 0.25), strict=True)
    )
    np.testing.assert_allclose(maps[0], expected_HW, rtol=1e-4, atol=1e-5)


def test_a_network_can_stand_beside_a_bank(plant: Plant) -> None:
    network = DraemConfig(width=1 / 16)
    weights = build_model(network, 0).state_dict()
    for name, body in checkpoint_files(network, InputConfig(size_px=(64, 256)), weights):
        plant.place("network").write(name, body)
    uris = (plant.bank_uri, str(plant.root / "network"))
    model = open_model(write_ensemble(plant, info_of(*uris)))
    assert model.ensemble is not None
    assert (model.input_size_px, model.ensemble.members[1].bank_id) == ((64, 256), None)
    images = [decode(strip(index, seed=3)) for index in range(2)]
    maps, scores = load_scorer(model, EAGER, num_threads=1).score(images)
    (_, bank), (_, draem) = (load_scorer(open_model(uri), EAGER, num_threads=1).score(images) for uri in uris)
    one, two = SCALES
    expected = (bank - one.score_offset) / one.score_sd + 0.25 * (draem - two.score_offset) / two.score_sd
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    assert [map_HW.shape for map_HW in maps] == [(64, 256)] * 2


def test_a_member_that_has_changed_is_refused_when_opened_and_when_loaded(plant: Plant, other_bank: str) -> None:
    uri = write_ensemble(plant, info_of(plant.bank_uri, other_bank))
    model = open_model(uri)
    shutil.copytree(plant.bank_uri, other_bank, dirs_exist_ok=True)
    for attempt in (lambda: open_model(uri), lambda: load_scorer(model, EAGER, num_threads=1)):
        with pytest.raises(ConfigError, match=r"no longer the one .*rebuild it with jobs/fuse_models.py") as caught:
            attempt()
        assert other_bank in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_member_that_is_gone_is_named(plant: Plant, other_bank: str) -> None:
    uri = write_ensemble(plant, info_of(plant.bank_uri, other_bank))
    Location(other_bank).delete("bank.json")
    with pytest.raises(ConfigError, match=f"ensemble {uri}: a member cannot be used: {other_bank}: no model there"):
        open_model(uri)


def test_ensembles_hold_no_ensembles(plant: Plant, other_bank: str) -> None:
    info = info_of(plant.bank_uri, other_bank)
    uri = write_ensemble(plant, info)
    itself = replace(info.members[0], uri=uri, model_id=info.model_id, bank_id=None)
    write_ensemble(plant, replace(info, members=(itself, info.members[1])))
    with pytest.raises(ConfigError, match="an ensemble takes single models only"):
        open_model(uri)


def test_members_take_strips_of_one_size() -> None:
    small, large, any_size = (Model(name, "patchcore", "", size, None) for name, size in
                              (("a", (64, 256)), ("b", (256, 1600)), ("c", None)))  # fmt: skip
    assert common_input_size([any_size, small]) == (64, 256)
    assert common_input_size([any_size]) is None
    with pytest.raises(ConfigError, match=r"a takes strips of \(64, 256\) px .*, b of \(256, 1600\)"):
        common_input_size([any_size, small, large])


def test_an_identity_without_a_bank_counts_as_well() -> None:
    member = EnsembleMember("there", "one", None, 1.0, SCALES[0])
    check_identity(member, "one", None, "here")
    with pytest.raises(ConfigError, match="ensemble here: its member there"):
        check_identity(member, "two", None, "here")


@pytest.mark.parametrize(
    "record",
    [{"config": {"nominal": {"uri": "there"}}}, {"config": {"data": {"nominal": {"uri": "there"}}}}],
    ids=["bank", "network"],
)
def test_where_the_nominal_images_of_a_model_were(tmp_path: Path, record: dict[str, object]) -> None:
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert nominal_uris(str(tmp_path)) == ["there"]


def test_a_network_of_generated_strips_has_no_such_place(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"config": {"data": {"nominal": None, "generated": 8}}}))
    assert nominal_uris(str(tmp_path)) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_uris": ("a",)}, "at least two models, not 1"),
        ({"model_uris": ("a", "b", "a")}, "model_uris: a is listed twice"),
        ({"weights": (1.0,)}, "weights: 1 for 2 models"),
        ({"weights": (1.0, 0.0)}, r"weights must be positive, not 0\.0"),
        ({"weights": (1.0, float("nan"))}, "weights must be positive, not nan"),
    ],
)
def test_settings_that_make_no_ensemble_are_refused(changes: dict[str, tuple[object, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FuseModelsConfig(**{"model_uris": ("a", "b"), "output_uri": "c", **changes})  # type: ignore[arg-type]
