"""Labelled datasets in the layouts in which they are downloaded: Severstal (Kaggle), MVTec AD, plain folders.

A dataset becomes two lists of `Sample`: nominal ones to fit on, and labelled ones to test on. It is split by strip,
never by tile. Shapes: H height, W width, C channels, K defect classes.
"""

import csv
import random
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steelray.config import ConfigError, DatasetConfig
from steelray.imaging.decode import decode
from steelray.imaging.tiling import Tile, tile_grid

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"}
STRIP_SIZE_PX = (256, 1600)
SEVERSTAL_CLASSES = 4
NOMINAL = "nominal"


@dataclass(frozen=True)
class Sample:
    """One image, or one tile of it, with its label."""

    path: Path
    defect_type: str = NOMINAL
    """`nominal`, or the kind of defect: MVTec's folder name, Severstal's classes as in `1` or `1+3`."""
    tile: Tile | None = None
    mask_path: Path | None = None
    run_lengths: tuple[tuple[int, str], ...] = field(default=(), repr=False)
    """Severstal: (class, run-length code) pairs of the whole strip; classes count from 1."""

    @property
    def is_anomalous(self) -> bool:
        return self.defect_type != NOMINAL

    @property
    def key(self) -> str:
        return f"{self.path.name}#{self.tile.left_px},{self.tile.top_px}" if self.tile else self.path.name

    def load(self) -> NDArray[np.uint8]:
        """Read pixels_HWC uint8 of the image or its tile. Raise `Undecodable` if that fails."""
        pixels_HWC = decode(self.path.read_bytes())
        return self.tile.cut(pixels_HWC) if self.tile else pixels_HWC

    def load_mask(self, size_px: tuple[int, int]) -> NDArray[np.bool_]:
        """Read mask_HW, True on the defect, resized to `size_px` (height, width) by nearest neighbour."""
        if self.run_lengths:
            mask_HW = np.asarray(decode_run_lengths(self.run_lengths, STRIP_SIZE_PX).any(axis=0))
            if self.tile:
                mask_HW = self.tile.cut(mask_HW)
        elif self.mask_path is not None:
            mask_HW = decode_mask(self.mask_path)
        else:
            return np.zeros(size_px, dtype=bool)
        if mask_HW.shape != size_px:
            resized = Image.fromarray(mask_HW).resize(size_px[::-1], Image.Resampling.NEAREST)
            mask_HW = np.asarray(resized)
        return np.asarray(mask_HW, dtype=bool)


@dataclass(frozen=True)
class Dataset:
    """Nominal samples to fit on; nominal and anomalous samples to test on. No strip is in both."""

    fit: list[Sample]
    test: list[Sample]


def decode_mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask image, white on the defect, as mask_HW bool."""
    with Image.open(path) as image:
        return np.asarray(image.convert("L")) > 127


def decode_run_lengths(run_lengths: tuple[tuple[int, str], ...], size_px: tuple[int, int]) -> NDArray[np.bool_]:
    """Decode Severstal's masks: `start length start length …`, 1-based, counted down the columns.

    Args:
        run_lengths: (class, code) pairs of one strip; classes may overlap, and a class may occur twice.
        size_px: height and width of the strip.

    Returns:
        mask_KHW bool, K = 4.

    Raises:
        ConfigError: a code is not a run-length code, has an unknown class, or leaves the strip.
    """
    height_px, width_px = size_px
    mask_KN = np.zeros((SEVERSTAL_CLASSES, height_px * width_px), dtype=bool)
    for class_id, code in run_lengths:
        try:
            numbers = [int(word) for word in code.split()]
        except ValueError:
            raise ConfigError(f"run-length code of class {class_id} is not made of numbers: {code[:40]!r}") from None
        if len(numbers) % 2 or not 1 <= class_id <= SEVERSTAL_CLASSES:
            raise ConfigError(
                f"run-length code of class {class_id} is incomplete or of an unknown class: {code[:40]!r}"
            )
        for start, length in zip(numbers[::2], numbers[1::2], strict=True):
            if start < 1 or length < 0 or start - 1 + length > height_px * width_px:
                raise ConfigError(f"run {start} {length} of class {class_id} leaves the {width_px}x{height_px} strip")
            mask_KN[class_id - 1, start - 1 : start - 1 + length] = True
    return mask_KN.reshape(SEVERSTAL_CLASSES, width_px, height_px).transpose(0, 2, 1)


def load_dataset(config: DatasetConfig) -> Dataset:
    """Read a dataset's file lists and labels; pixels are read later, sample by sample.

    Raises:
        ConfigError: the folder does not have the layout of `config.kind`, or has no nominal images.
    """
    root = Path(config.root).expanduser()
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder: give the dataset's folder as --data.root")
    if config.kind == "mvtec":
        return _load_mvtec(root)
    nominal, anomalous = _load_severstal(root) if config.kind == "severstal" else _load_folder(root)
    if not nominal:
        raise ConfigError(f"{root}: no nominal images found: nothing to learn from")
    fit, held_out = split_strips(nominal, config.num_fit, config.seed)
    return Dataset(_tiled(fit, config), _tiled(held_out + anomalous, config))


def split_strips(nominal: list[Sample], num_fit: int | None, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Split nominal strips at random, by `seed`, into those to fit on and those to test on, each in key order.

    Raises:
        ConfigError: there are too few strips to leave one to test on.
    """
    count = num_fit if num_fit is not None else max(1, len(nominal) * 3 // 4)
    if count >= len(nominal):
        raise ConfigError(f"num_fit is {count} but there are {len(nominal)} nominal strips: leave some to test on")
    shuffled = sorted(nominal, key=lambda sample: sample.path)
    random.Random(seed).shuffle(shuffled)  # noqa: S311 (a split, not a secret)
    return sorted(shuffled[:count], key=lambda s: s.path), sorted(shuffled[count:], key=lambda s: s.path)


def _images_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def _load_severstal(root: Path) -> tuple[list[Sample], list[Sample]]:
    table, images = root / "train.csv", root / "train_images"
    if not table.is_file() or not images.is_dir():
        raise ConfigError(f"{root}: severstal needs train.csv and train_images/")
    codes: dict[str, list[tuple[int, str]]] = defaultdict(list)
    with table.open(newline="") as file:
        reader = csv.DictReader(file)
        names = set(reader.fieldnames or [])
        joined = "ImageId_ClassId" in names  # the competition's first layout
        if not joined and not names >= {"ImageId", "ClassId", "EncodedPixels"}:
            raise ConfigError(f"{table}: columns are {sorted(names)}, expected ImageId,ClassId,EncodedPixels")
        for row in reader:
            name = row["ImageId_ClassId"] if joined else f"{row['ImageId']}_{row['ClassId']}"
            image_id, _, class_id = name.rpartition("_")
            if not class_id.isdecimal():
                raise ConfigError(f"{table}: line {reader.line_num} has class {class_id!r}, not a number")
            if row["EncodedPixels"]:
                codes[image_id].append((int(class_id), row["EncodedPixels"]))
    nominal, anomalous = [], []
    for path in _images_in(images):
        runs = tuple(sorted(codes.get(path.name, ())))
        if runs:
            kind = "+".join(str(class_id) for class_id in sorted({class_id for class_id, _ in runs}))
            anomalous.append(Sample(path, kind, run_lengths=runs))
        else:
            nominal.append(Sample(path))
    return nominal, anomalous


def _load_mvtec(root: Path) -> Dataset:
    if not (root / "train" / "good").is_dir() or not (root / "test").is_dir():
        raise ConfigError(f"{root}: mvtec needs train/good/ and test/: give one category, such as bottle")
    fit = [Sample(path) for path in _images_in(root / "train" / "good")]
    test = []
    for path in _images_in(root / "test"):
        kind = path.parent.name
        if kind == "good":
            test.append(Sample(path))
            continue
        mask_path = root / "ground_truth" / kind / f"{path.stem}_mask.png"
        if not mask_path.is_file():
            raise ConfigError(f"{mask_path}: no mask for {path.relative_to(root)}")
        test.append(Sample(path, kind, mask_path=mask_path))
    if not fit:
        raise ConfigError(f"{root}: no images in train/good/: nothing to learn from")
    return Dataset(fit, test)


def _load_folder(root: Path) -> tuple[list[Sample], list[Sample]]:
    if not (root / "nominal").is_dir():
        raise ConfigError(
            f"{root}: a folder dataset needs nominal/ (and anomalous/ to test on, masks/ with the same names)"
        )
    anomalous = []
    for path in _images_in(root / "anomalous"):
        relative = path.relative_to(root / "anomalous")
        mask_path = (root / "masks" / relative).with_suffix(".png")
        kind = relative.parts[0] if len(relative.parts) > 1 else "anomalous"
        anomalous.append(Sample(path, kind, mask_path=mask_path if mask_path.is_file() else None))
    return [Sample(path) for path in _images_in(root / "nominal")], anomalous


def _tiled(samples: list[Sample], config: DatasetConfig) -> list[Sample]:
    if config.tiling == "none":
        return samples
    tile_width_px, tile_height_px = (int(word) for word in config.tiling.split("x"))
    tiles = []
    for sample in samples:
        mask_KHW = decode_run_lengths(sample.run_lengths, STRIP_SIZE_PX)
        for tile in tile_grid(STRIP_SIZE_PX, (tile_height_px, tile_width_px)):
            kinds = np.flatnonzero(tile.cut(mask_KHW.transpose(1, 2, 0)).any(axis=(0, 1))) + 1
            kind = "+".join(map(str, kinds)) or NOMINAL
            runs = sample.run_lengths if len(kinds) else ()
            tiles.append(Sample(sample.path, kind, tile, run_lengths=runs))
    return tiles
