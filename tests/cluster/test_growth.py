from dataclasses import replace

import numpy as np
import pytest

from steelray.cluster.archive_scorer import score_archive
from steelray.cluster.bank_builder import grow_memory_bank
from steelray.config import ArchiveConfig, CalibrationConfig, ComputeConfig, ConfigError
from steelray.demo.synthetic import make_strip
from steelray.imaging.decode import decode
from steelray.models.calibration import read_calibration, read_calibration_rows
from steelray.models.model import load_scorer, nominal_uris, open_model
from steelray.patchcore.bank import MemoryBank, read_bank
from steelray.patchcore.config import GrowMemoryBankConfig, GrowthConfig
from steelray.patchcore.embedder import load_embedder
from steelray.patchcore.fit import grow_memory_bank as grow_here
from steelray.runs.run import Run
from steelray.storage.location import Location
from tests.cluster.conftest import EMBEDDER, World, score_config, silent, strip_jpeg

CALIBRATION = CalibrationConfig(held_out_fraction=0.4, false_alarm_rate=0.1, reject_rate=0.1)
COVER = GrowthConfig(cover_radius=1.0)
"""Smaller than the bank's own, so that vectors are added."""


def new_strips(uri: str, count: int = 10) -> str:
    for index in range(count):
        Location(uri).write(f"new/{index:02d}.jpg", strip_jpeg(index, seed=9))
    return uri


def settings(world: World, nominal_uri: str, grown_uri: str, **changes: object) -> GrowMemoryBankConfig:
    values: dict[str, object] = {"calibration": CALIBRATION, "growth": COVER, **changes}
    return GrowMemoryBankConfig(ArchiveConfig(nominal_uri), world.bank_uri, grown_uri, **values)  # type: ignore[arg-type]


def stored(uri: str) -> MemoryBank:
    return read_bank(Location(uri).read, uri)


@pytest.fixture(scope="module")
def grown(world: World) -> tuple[str, dict[str, object]]:
    """Grow the world's bank by ten strips over three shards; return the new bank's URI and the summary."""
    root = "s3://archive/grown"
    compute = ComputeConfig(bank_shards=3)
    config = settings(world, new_strips(f"{root}/nominal"), f"{root}/bank", compute=compute, calibration=None)
    return config.grown_uri, grow_memory_bank(config, silent)


def test_the_grown_bank_is_the_one_of_a_single_process(world: World, grown: tuple[str, dict[str, object]]) -> None:
    uri, summary = grown
    nominal = Location("s3://archive/grown/nominal")
    before, bank = stored(world.bank_uri), stored(uri)
    keys = bank.image_keys[len(before.image_keys) :]
    assert len(keys) == 10
    images = [decode(nominal.read(key)) for key in keys]
    expected = grow_here(before, keys, images, load_embedder(EMBEDDER, backend="openvino"), COVER)
    assert bank.info.bank_id == expected.info.bank_id == summary["bank_id"] != before.info.bank_id
    np.testing.assert_array_equal(bank.vectors_ND, expected.vectors_ND)
    np.testing.assert_array_equal(bank.origins_N3, expected.origins_N3)
    added = bank.info.num_vectors - before.info.num_vectors
    assert added > 0
    assert (summary["added"], summary["grown_from"]) == (added, before.info.bank_id)
    assert nominal_uris(uri) == [world.nominal_uri, nominal.uri]
    files = [stored.key for stored in Location("s3://archive/grown").list()]
    assert all(key.startswith(("bank/", "nominal/")) for key in files), "no scratch files"


def test_thresholds_rest_on_the_old_rows_and_on_new_strips_without_their_own_vectors(
    world: World, grown: tuple[str, dict[str, object]]
) -> None:
    calibration, version = read_calibration(grown[0])
    rows = read_calibration_rows(grown[0], version).to_pylist()
    old_calibration, old_version = read_calibration(world.bank_uri)
    old_rows = read_calibration_rows(world.bank_uri, old_version).to_pylist()
    bank = stored(grown[0])
    assert rows[: len(old_rows)] == old_rows
    new_rows = rows[len(old_rows) :]
    assert [row["image_key"] for row in new_rows] == list(bank.image_keys[-10:])
    assert {row["bank_id"] for row in new_rows} == {bank.info.bank_id}
    scorer = load_scorer(open_model(grown[0]), ComputeConfig(), num_threads=1, nominal=True)
    nominal = Location("s3://archive/grown/nominal")
    for row in new_rows[:3]:
        _, [score] = scorer.score([decode(nominal.read(row["image_key"]))], [row["image_key"]])
        assert row["anomaly_score"] == pytest.approx(score, rel=1e-4)
    levels, old_levels = calibration.groups[""], old_calibration.groups[""]
    assert levels.num_strips == len(rows)
    assert levels.review.asked_rate == old_levels.review.asked_rate, "rates stay as they were"


def test_no_score_rises_when_a_bank_grows(
    world: World, clean_run: Run, grown: tuple[str, dict[str, object]], s3_uri: str
) -> None:
    run = score_archive(score_config(world, s3_uri, model_uri=grown[0]), silent)
    after = Run(s3_uri, run["run_id"]).scores().column("anomaly_score").to_numpy()
    before = clean_run.scores().column("anomaly_score").to_numpy()
    assert (after <= before * (1 + 1e-5)).all()
    assert (after < before * 0.999).any()


def test_old_images_are_not_needed_and_known_keys_are_left_out(world: World, s3_uri: str) -> None:
    """A copy of the world's bank grows in place; its own images are no longer there."""
    nominal_uri, bank_uri = f"{s3_uri}/nominal", f"{s3_uri}/bank"
    for file in Location(world.bank_uri).list():
        Location(bank_uri).write(file.key, Location(world.bank_uri).read(file.key))
    before = stored(bank_uri)
    for index in range(24):
        Location(nominal_uri).write(f"{index:02d}.jpg", b"not an image any more")
    new_strips(nominal_uri, 4)
    config = GrowMemoryBankConfig(ArchiveConfig(nominal_uri), bank_uri, bank_uri, growth=COVER, overwrite=True)
    summary = grow_memory_bank(config, silent)
    assert (summary["known"], summary["skipped"]) == (24, {})
    grown = stored(bank_uri)
    assert grown.info.bank_id == summary["bank_id"] != before.info.bank_id
    assert grown.image_keys[:-4] == before.image_keys
    again = GrowMemoryBankConfig(ArchiveConfig(nominal_uri, glob="0*"), bank_uri, f"{s3_uri}/other")
    with pytest.raises(ConfigError, match="knows the keys of all 10 objects: nothing to learn"):
        grow_memory_bank(again, silent)


def test_unusable_strips_are_left_out_and_a_limit_that_is_too_low_is_reported(world: World, s3_uri: str) -> None:
    nominal_uri = new_strips(f"{s3_uri}/nominal", 5)
    for index in range(3):
        Location(nominal_uri).write(f"odd/{index}.jpg", make_strip(0, index, size_px=(64, 128)).jpeg())
    Location(nominal_uri).write("empty.jpg", b"")
    lines: list[str] = []
    growth = GrowthConfig(max_centers=2, cover_radius=0.5)
    summary = grow_memory_bank(settings(world, nominal_uri, f"{s3_uri}/bank", growth=growth), lines.append)
    assert (summary["skipped"], summary["added"]) == ({"wrong_shape": 2, "empty": 1}, 2)
    assert any("2 new vectors were the most allowed" in line for line in lines)
    grown = stored(f"{s3_uri}/bank")
    assert all(key.startswith(("new/", "0", "1", "2")) for key in grown.image_keys)
    assert grown.info.input_size_px == (64, 256)


def test_a_dry_run_writes_nothing(world: World, s3_uri: str) -> None:
    nominal_uri = new_strips(f"{s3_uri}/nominal")
    answer = grow_memory_bank(settings(world, nominal_uri, f"{s3_uri}/bank", dry_run=True), silent)
    assert answer["plan"]["objects"] == 10
    assert answer["plan"]["grown_from"] == stored(world.bank_uri).info.bank_id
    assert not list(Location(f"{s3_uri}/bank").list())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grown_uri": "s3://archive/world/bank"}, "holds a memory bank already: set overwrite"),
        ({"bank_uri": "s3://archive/nothing-here"}, "no memory bank there"),
        ({"nominal": ArchiveConfig("s3://archive/nothing-here")}, "the archive is empty"),
        ({"nominal": ArchiveConfig("s3://archive/world/nominal", limit=1)}, "knows the keys of all 1 objects"),
        (
            {"calibration": CalibrationConfig(group_pattern="^cam")},
            r"'\^cam' matches none of \d+ nominal keys, such as ",
        ),
    ],
)
def test_mistakes_are_one_clear_line(world: World, s3_uri: str, changes: dict, message: str) -> None:
    nominal_uri = new_strips(f"{s3_uri}/nominal", 2)
    with pytest.raises(ConfigError, match=message) as caught:
        grow_memory_bank(replace(settings(world, nominal_uri, f"{s3_uri}/bank"), **changes), silent)
    assert "\n" not in str(caught.value)
