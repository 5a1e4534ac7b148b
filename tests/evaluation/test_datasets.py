"""Datasets in the layouts in which they are downloaded: generated ones, and the real ones if present."""

import csv
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from steelray.config import ConfigError, DatasetConfig
from steelray.demo.synthetic import make_strip
from steelray.evaluation.datasets import NOMINAL, Sample, decode_run_lengths, load_dataset, split_strips

STRIP = (256, 1600)


def encode_run_lengths(mask_HW: NDArray[np.bool_]) -> str:
    """Encode a mask as Kaggle does: down the columns, counted from 1."""
    flat = np.concatenate([[0], mask_HW.T.ravel(), [0]]).astype(int)
    edges = np.flatnonzero(np.diff(flat))
    return " ".join(f"{start + 1} {stop - start}" for start, stop in zip(edges[::2], edges[1::2], strict=True))


def test_run_lengths_count_down_the_columns_from_one() -> None:
    mask = decode_run_lengths(((1, "1 2"), (1, "5 1")), (4, 3))
    assert mask.shape == (4, 4, 3)
    assert np.argwhere(mask).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert decode_run_lengths(((4, "12 1"),), (4, 3))[3, 3, 2]


def test_any_mask_survives_its_code() -> None:
    rng = np.random.default_rng(0)
    for density in (0.02, 0.5, 0.98):
        masks = rng.random((4, 16, 25)) < density
        codes = tuple((number + 1, encode_run_lengths(mask)) for number, mask in enumerate(masks))
        assert np.array_equal(decode_run_lengths(codes, (16, 25)), masks)


@pytest.mark.parametrize(
    ("class_id", "code", "complaint"),
    [
        (1, "1 2 x 4", "not made of numbers"),
        (1, "1 2 3", "incomplete"),
        (5, "1 2", "of an unknown class"),
        (1, "0 2", "leaves the 3x4 strip"),
        (1, "11 3", "leaves the 3x4 strip"),
        (1, "3 -1", "leaves the 3x4 strip"),
    ],
)
def test_a_code_that_is_none_is_refused(class_id: int, code: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        decode_run_lengths(((class_id, code),), (4, 3))


def save(path: Path, pixels: NDArray[np.uint8] | NDArray[np.bool_]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def severstal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clean strips; one with class 3 in its first quarter, one with classes 1 and 4 overlapping in its middle."""
    root = tmp_path_factory.mktemp("severstal")
    for number in range(8):
        save(root / "train_images" / f"{number}.jpg", make_strip(1, number).pixels_HW)
    first, middle, overlapping = np.zeros((3, *STRIP), bool)
    first[10:40, 100:160] = True
    middle[100:140, 700:900] = True
    overlapping[120:160, 850:1000] = True
    rows = [("6.jpg", 3, first), ("7.jpg", 1, middle), ("7.jpg", 4, overlapping)]
    with (root / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ImageId", "ClassId", "EncodedPixels"])
        writer.writerows([name, kind, encode_run_lengths(mask)] for name, kind, mask in rows)
    return root


def test_severstal_strips(severstal: Path) -> None:
    data = load_dataset(DatasetConfig("severstal", str(severstal), num_fit=4))
    assert [sample.defect_type for sample in data.fit] == [NOMINAL] * 4
    assert [sample.defect_type for sample in data.test] == [NOMINAL, NOMINAL, "3", "1+4"]
    assert data.test[0].load().shape == (256, 1600, 1)
    mask = data.test[3].load_mask(STRIP)
    assert mask[100:140, 700:900].all()
    assert mask[120:160, 850:1000].all()
    assert mask.sum() == 40 * 200 + 40 * 150 - 20 * 50
    assert not data.test[0].load_mask(STRIP).any()


def test_a_mask_shrinks_with_the_anomaly_map(severstal: Path) -> None:
    sample = load_dataset(DatasetConfig("severstal", str(severstal))).test[-1]
    smaller = sample.load_mask((128, 800))
    assert smaller.shape == (128, 800)
    assert abs(smaller.mean() - sample.load_mask(STRIP).mean()) < 0.001


@pytest.mark.parametrize(("tiling", "tiles_per_strip", "width_px"), [("400x256", 4, 400), ("256x256", 7, 256)])
def test_severstal_tiles(severstal: Path, tiling: str, tiles_per_strip: int, width_px: int) -> None:
    config = DatasetConfig("severstal", str(severstal), tiling=tiling, num_fit=4)  # type: ignore[arg-type]
    data = load_dataset(config)
    assert len(data.fit) == 4 * tiles_per_strip
    assert len(data.test) == 4 * tiles_per_strip
    assert {sample.path for sample in data.fit}.isdisjoint({sample.path for sample in data.test})
    for sample in data.test:
        assert sample.load().shape == (256, width_px, 1)
        assert sample.tile is not None
        assert sample.load_mask((256, width_px)).any() == sample.is_anomalous
    assert len({sample.key for sample in data.test}) == len(data.test)
    by_place = {(s.path.stem, s.tile.left_px): s.defect_type for s in data.test if s.tile}
    assert by_place["6", 0] == "3"
    if tiling == "400x256":
        places = (("6", 400), ("7", 400), ("7", 800), ("7", 1200))
        assert [by_place[place] for place in places] == [NOMINAL, "1", "1+4", NOMINAL]


def test_the_layout_of_the_first_days_is_read_too(severstal: Path, tmp_path: Path) -> None:
    (tmp_path / "train_images").symlink_to(severstal / "train_images")
    (tmp_path / "train.csv").write_text("ImageId_ClassId,EncodedPixels\n0.jpg_1,\n0.jpg_2,\n1.jpg_1,\n1.jpg_2,1 10\n")
    data = load_dataset(DatasetConfig("severstal", str(tmp_path)))
    assert [sample.key for sample in data.test if sample.is_anomalous] == ["1.jpg"]


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ("a,b\n1,2\n", "expected ImageId,ClassId,EncodedPixels"),
        ("ImageId,ClassId,EncodedPixels\n0.jpg,one,1 2\n", "class 'one'"),
    ],
)
def test_a_table_of_another_kind_is_refused(severstal: Path, tmp_path: Path, table: str, complaint: str) -> None:
    (tmp_path / "train_images").symlink_to(severstal / "train_images")
    (tmp_path / "train.csv").write_text(table)
    with pytest.raises(ConfigError, match=complaint):
        load_dataset(DatasetConfig("severstal", str(tmp_path)))


def test_a_split_follows_from_its_seed_alone() -> None:
    strips = [Sample(Path(f"{number:03d}.jpg")) for number in range(40)]
    fit, held_out = split_strips(strips, 30, seed=1)
    assert (fit, held_out) == split_strips(strips[::-1], 30, seed=1)
    assert (len(fit), len(held_out)) == (30, 10)
    assert sorted(fit + held_out, key=lambda s: s.path) == strips
    assert fit == sorted(fit, key=lambda s: s.path)
    assert fit != split_strips(strips, 30, seed=2)[0]
    assert len(split_strips(strips, None, seed=0)[0]) == 30
    with pytest.raises(ConfigError, match="num_fit is 40 but there are 40 nominal strips"):
        split_strips(strips, 40, seed=0)


def test_mvtec(tmp_path: Path) -> None:
    pixels = make_strip(0, 0, size_px=(64, 64)).pixels_HW
    mask = np.zeros((64, 64), np.uint8)
    mask[10:20, 30:50] = 255
    for number in range(3):
        save(tmp_path / "train" / "good" / f"{number:03d}.png", pixels)
    save(tmp_path / "test" / "good" / "000.png", pixels)
    save(tmp_path / "test" / "crack" / "000.png", pixels)
    save(tmp_path / "ground_truth" / "crack" / "000_mask.png", mask)
    data = load_dataset(DatasetConfig("mvtec", str(tmp_path)))
    assert len(data.fit) == 3
    assert [sample.defect_type for sample in data.test] == ["crack", NOMINAL]
    assert np.array_equal(data.test[0].load_mask((64, 64)), mask > 0)
    assert data.test[0].load_mask((32, 32)).sum() == 5 * 10
    (tmp_path / "ground_truth" / "crack" / "000_mask.png").unlink()
    with pytest.raises(ConfigError, match="no mask for test/crack/000"):
        load_dataset(DatasetConfig("mvtec", str(tmp_path)))


def test_folder(tmp_path: Path) -> None:
    pixels = make_strip(0, 0, size_px=(64, 64)).pixels_HW
    for number in range(4):
        save(tmp_path / "nominal" / f"{number}.png", pixels)
    (tmp_path / "nominal" / "notes.txt").touch()
    save(tmp_path / "anomalous" / "unmasked.jpg", pixels)
    save(tmp_path / "anomalous" / "scratch" / "1.bmp", pixels)
    save(tmp_path / "masks" / "scratch" / "1.png", pixels > 100)
    data = load_dataset(DatasetConfig("folder", str(tmp_path)))
    assert (len(data.fit), len(data.test)) == (3, 3)
    masked, unmasked = data.test[1], data.test[2]
    assert (masked.defect_type, unmasked.defect_type) == ("scratch", "anomalous")
    assert np.array_equal(masked.load_mask((64, 64)), pixels > 100)
    assert not unmasked.load_mask((64, 64)).any()


@pytest.mark.parametrize(
    ("kind", "folders", "complaint"),
    [
        ("mvtec", [], "no such folder"),
        ("mvtec", ["train"], "mvtec needs train/good/"),
        ("mvtec", ["train/good", "test"], "no images in train/good/"),
        ("severstal", ["train_images"], "severstal needs train.csv"),
        ("folder", ["anomalous"], "folder dataset needs nominal/"),
        ("folder", ["nominal"], "no nominal images"),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, kind: str, folders: list[str], complaint: str) -> None:
    for folder in folders:
        (tmp_path / "data" / folder).mkdir(parents=True)
    with pytest.raises(ConfigError, match=complaint):
        load_dataset(DatasetConfig(kind, str(tmp_path / "data")))  # type: ignore[arg-type]


def test_real_severstal(real_data: Path) -> None:
    data = load_dataset(DatasetConfig("severstal", str(real_data / "severstal"), num_fit=20))
    assert len(data.fit) == 20
    assert sum(sample.is_anomalous for sample in data.test) == 39
    assert len(data.test) == 7 + 39
    overlapping = next(sample for sample in data.test if sample.key == "008ef3d74.jpg")
    assert overlapping.defect_type == "1+2"
    for sample in data.test[:3] + data.test[-3:]:
        assert sample.load().shape == (256, 1600, 1)
        assert sample.load_mask(STRIP).any() == sample.is_anomalous
    tiles = load_dataset(DatasetConfig("severstal", str(real_data / "severstal"), num_fit=20, tiling="400x256"))
    assert len(tiles.fit) == 80
    assert {sample.path for sample in tiles.fit} == {sample.path for sample in data.fit}


def test_real_mvtec(real_data: Path) -> None:
    data = load_dataset(DatasetConfig("mvtec", str(real_data / "mvtec" / "bottle")))
    assert (len(data.fit), len(data.test)) == (209, 83)
    assert sum(sample.is_anomalous for sample in data.test) == 63
    broken = next(sample for sample in data.test if sample.is_anomalous)
    assert broken.load().shape == (900, 900, 3)
    assert broken.load_mask((900, 900)).any()
