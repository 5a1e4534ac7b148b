import io
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from steelray.config import ComputeConfig, DecodeConfig
from steelray.imaging.decode import decode
from steelray.imaging.pictures import patch_jpeg, worst_patch_center
from steelray.models.calibration import read_calibration
from steelray.models.model import load_scorer, open_model
from steelray.patchcore.bank import read_bank
from steelray.patchcore.embedder import build_patch_embedder, compile_embedder
from steelray.report.gallery import GallerySource, make_gallery
from steelray.schema import Verdict
from steelray.storage.location import Location
from tests.plant import Plant, fill_archive


def source_of(plant: Plant, **changes: object) -> GallerySource:
    source = GallerySource(
        archive=plant.place("archive"),
        model=open_model(plant.bank_uri),
        calibration=read_calibration(plant.bank_uri)[0],
        decode=DecodeConfig(),
        compute=ComputeConfig(batch_size=2),
        num_threads=1,
    )
    return replace(source, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def filled(built_plant: Plant, tmp_path_factory: pytest.TempPathFactory) -> Plant:
    """A plant with an archive; read only."""
    plant = Plant(tmp_path_factory.mktemp("filled") / "plant")
    shutil.copytree(built_plant.root, plant.root)
    fill_archive(plant, 24)
    plant.place("archive").write("line0/dead.jpg", b"")
    return plant


@pytest.fixture(scope="module")
def scores(filled: Plant) -> pa.Table:
    return filled.written_run()[0].scores()


@pytest.fixture
def plant(filled: Plant, tmp_path: Path) -> Plant:
    shutil.copytree(filled.root, tmp_path / "plant")
    return Plant(tmp_path / "plant")


def test_the_worst_strips_come_first_with_their_pictures(filled: Plant, scores: pa.Table) -> None:
    items = make_gallery(source_of(filled), scores, 5)
    rows = {row["image_key"]: row for row in scores.to_pylist()}
    ranked = sorted((row for row in rows.values() if row["status"] == "ok"), key=lambda row: -row["anomaly_score"])
    assert [item.image_key for item in items] == [row["image_key"] for row in ranked[:5]]
    for item in items:
        row = rows[item.image_key]
        assert (item.score, item.verdict, item.group) == (row["anomaly_score"], row["verdict"], row["group"])
        assert (item.height_px, item.width_px) == (64, 256)
        assert list(item.boxes) == row["boxes"]
        assert Image.open(io.BytesIO(item.strip_jpeg)).size == (256, 64)
        assert Image.open(io.BytesIO(item.overlay_png)).size == (256, 64)
        assert item.object_url == (filled.root / "archive" / item.image_key).as_uri()
    assert items[0].verdict != Verdict.NORMAL


def test_the_nominal_patch_is_the_nearest_in_the_bank(filled: Plant, scores: pa.Table) -> None:
    """Compare with a search by hand over the distances from the worst patch to every vector of the bank."""
    bank = read_bank(Location(filled.bank_uri).read, filled.bank_uri)
    model = open_model(filled.bank_uri)
    scorer = load_scorer(model, ComputeConfig(), num_threads=1)
    assert model.bank is not None
    embed = compile_embedder(build_patch_embedder(model.bank.embedder), backend="eager")
    for item in make_gallery(source_of(filled), scores, 3):
        image = decode(filled.place("archive").read(item.image_key))
        [map_HW], _ = scorer.score([image])
        embeddings_hwD = embed(image[None])[0]
        row, column = worst_patch_center(map_HW, embeddings_hwD.shape[:2])
        nearest = int(((bank.vectors_ND - embeddings_hwD[row, column]) ** 2).sum(axis=1).argmin())
        image_index, grid_row, grid_column = bank.origins_N3[nearest].tolist()
        assert item.nominal_key == bank.image_keys[image_index]
        nominal = decode(filled.place("nominal").read(item.nominal_key))
        cell_px = 64 // embeddings_hwD.shape[0]
        center_px = (grid_row * cell_px + cell_px // 2, grid_column * cell_px + cell_px // 2)
        assert item.nominal_patch_jpeg == patch_jpeg(nominal, center_px)
        assert item.worst_patch_jpeg == patch_jpeg(image, worst_patch_center(map_HW, (64, 256)))


def test_pictures_that_are_gone_are_left_out(plant: Plant, scores: pa.Table) -> None:
    whole = make_gallery(source_of(plant), scores, 3)
    plant.place("archive").delete(whole[0].image_key)
    rest = make_gallery(source_of(plant), scores, 3)
    assert [item.image_key for item in rest] == [item.image_key for item in whole[1:]]
    plant.place("bank").delete("run.json")
    assert all(item.nominal_key is None for item in make_gallery(source_of(plant), scores, 3))


def test_a_missing_nominal_archive_costs_the_nominal_patches_only(plant: Plant, scores: pa.Table) -> None:
    plant.place("bank").write("run.json", b'{"config": {"nominal": {"uri": "/no/such/folder"}}}')
    items = make_gallery(source_of(plant), scores, 3)
    assert len(items) == 3
    assert all(item.nominal_patch_jpeg is None and item.worst_patch_jpeg for item in items)


def test_links_are_those_that_the_plant_wants(filled: Plant, scores: pa.Table) -> None:
    [item] = make_gallery(source_of(filled, object_url="https://viewer.example/?strip={key}"), scores, 1)
    assert item.object_url == f"https://viewer.example/?strip={item.image_key.replace(' ', '%20')}"
    [item] = make_gallery(source_of(filled, object_url=""), scores, 1)
    assert item.object_url is None


def test_no_score_no_gallery(filled: Plant, scores: pa.Table) -> None:
    failed = scores.filter(pc.not_equal(scores["status"], "ok"))
    assert failed.num_rows == 1
    assert make_gallery(source_of(filled), failed, 5) == []
    assert make_gallery(source_of(filled), scores, 0) == []
