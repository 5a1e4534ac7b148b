"""Incremental runs: objects that earlier runs have scored are left out."""

from dataclasses import replace
from typing import Any

import pytest

from steelray.config import ArchiveConfig, DecodeConfig
from steelray.models.model import open_model
from steelray.runs.incremental import leave_out_scored
from steelray.runs.retention import plan_prune, prune
from steelray.runs.run import roll_back
from steelray.storage.listing import list_archive
from tests.plant import Plant, fill_archive, strip


@pytest.fixture
def scored_plant(plant: Plant) -> Plant:
    """A plant of which 12 strips and an empty file are scored."""
    fill_archive(plant, 12)
    plant.place("archive").write("line0/dead.jpg", b"")
    plant.run(max_quarantine_share=None)
    return plant


def left(plant: Plant, model_changes: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    """Return the keys that an incremental run would score."""
    config = plant.config(**changes)
    model = replace(open_model(plant.bank_uri), **model_changes or {})
    rest, num_scored = leave_out_scored(list_archive(config.archive), config, model)
    assert rest["image_index"].to_pylist() == list(range(rest.num_rows))
    assert rest.num_rows + num_scored == list_archive(config.archive).num_rows
    return rest["image_key"].to_pylist()


def test_only_new_and_changed_objects_are_left(scored_plant: Plant) -> None:
    plant = scored_plant
    assert left(plant) == []
    plant.place("archive").write("line1/new.jpg", strip(99))
    plant.place("archive").write("line0/strip 000.jpg", strip(98))
    assert left(plant) == ["line0/strip 000.jpg", "line1/new.jpg"]
    plant.run(max_quarantine_share=None)
    assert left(plant) == []


def test_all_is_left_for_another_model_bank_decoding_or_archive(scored_plant: Plant) -> None:
    plant = scored_plant
    assert len(left(plant, {"model_id": "another"})) == 13
    assert len(left(plant, decode=DecodeConfig(white_level=4095))) == 13
    bank = open_model(plant.bank_uri).bank
    assert bank is not None
    assert len(left(plant, {"bank": replace(bank, bank_id="another")})) == 13
    elsewhere = ArchiveConfig(str(plant.root / "archive" / "line0"))
    config = replace(plant.config(), archive=elsewhere)
    rest, _ = leave_out_scored(list_archive(elsewhere), config, open_model(plant.bank_uri))
    assert rest.num_rows == 7


def test_missing_changed_and_denied_objects_are_tried_again(plant: Plant) -> None:
    fill_archive(plant, 5)
    run, _ = plant.written_run()
    rows = run.scores()
    status = ["missing", "changed", "denied", "unreadable", "ok"]
    rows = rows.set_column(rows.schema.get_field_index("status"), rows.schema.field("status"), [status])
    plant.finish(*plant.written_run(rows), max_quarantine_share=None)
    assert left(plant) == rows["image_key"].to_pylist()[:3]


def test_rolled_back_runs_are_forgotten(scored_plant: Plant) -> None:
    plant = scored_plant
    plant.place("archive").write("line1/new.jpg", strip(99))
    plant.run(max_quarantine_share=None)
    roll_back(plant.results_uri)
    assert left(plant) == ["line1/new.jpg"]


def test_retired_runs_are_remembered(scored_plant: Plant) -> None:
    plant = scored_plant
    for key in [stored.key for stored in plant.place("archive").list()]:
        plant.place("archive").delete(key)
    plant.place("archive").write("line1/new.jpg", strip(99))
    plant.run()
    prune(plant.results_uri, plan_prune(plant.results_uri, keep=1, keep_days=None))
    assert left(plant) == []
