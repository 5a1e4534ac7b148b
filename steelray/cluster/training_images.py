"""The nominal images of a training run: listed, split by strip, and decoded into Ray's object store.

Every worker reads any image by its number, because the order of a run depends on (seed, epoch) and not on where an
image is. Blocks that do not fit into the object store's memory spill to disk.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from steelray.cluster.image_source import MAX_BLOCK_IMAGES, pixel_columns, read_images
from steelray.cluster.plan import TASK_CPUS
from steelray.config import ConfigError
from steelray.demo.synthetic import make_strip
from steelray.evaluation.datasets import Sample, load_dataset
from steelray.imaging.decode import Undecodable, resize
from steelray.models.calibration import check_groups, split_nominal
from steelray.reconstruction.config import TrainConfig
from steelray.reconstruction.input import black_fraction
from steelray.runs.batch import images_of
from steelray.schema import DECODED, MANIFEST, Status
from steelray.storage.listing import ImageSet, list_archive

CACHED_BLOCKS = 32
"""Blocks of decoded images that a worker keeps mapped; it fetches others from the object store again."""
NO_TIME = 0
GENERATED_SIZE_PX = (256, 256)


@dataclass(frozen=True)
class NominalImages:
    """Images to fit on and images to calibrate on; no strip is in both."""

    fit: ImageSet
    held_out: ImageSet


def list_nominal(config: TrainConfig) -> NominalImages:
    """List the nominal images and hold some of them out to calibrate on.

    Raises:
        ConfigError: there are none, or fewer than two strips, or the pattern names no group of those held out.
    """
    images, strips = _nominal_images(config)
    fit_rows, held_out_rows = split_nominal(strips, config.calibration)
    nominal = NominalImages(images.take(fit_rows), images.take(held_out_rows))
    check_groups(nominal.held_out.manifest.column("image_key").to_pylist(), config.calibration.group_pattern)
    return nominal


def _nominal_images(config: TrainConfig) -> tuple[ImageSet, list[str]]:
    """Return all nominal images, and the strip that each of them shows."""
    data = config.data
    if data.nominal is not None:
        manifest = list_archive(data.nominal)
        return ImageSet(data.nominal.uri, manifest, config.decode), manifest.column("image_key").to_pylist()
    load: Callable[[int], NDArray[np.uint8]]
    if data.dataset is not None:
        samples = load_dataset(data.dataset).fit
        place, strips = f"{data.dataset.kind} in {data.dataset.root}", [str(sample.path) for sample in samples]
        keys, load = [sample.key for sample in samples], _SampleLoader(samples)
    else:
        assert data.generated is not None
        keys = strips = [f"generated-{index:05d}" for index in range(data.generated)]
        place, load = f"{data.generated} generated strips", _StripGenerator(config.seed)
    rows = [{"image_index": i, "image_key": key, "etag": "", "size_bytes": 0, "last_modified": NO_TIME}
            for i, key in enumerate(keys)]  # fmt: skip
    return ImageSet(place, pa.Table.from_pylist(rows, MANIFEST), config.decode, load), strips


class _SampleLoader:
    """Load an image of a dataset by its number."""

    def __init__(self, samples: list[Sample]) -> None:
        self._samples = samples

    def __call__(self, index: int) -> NDArray[np.uint8]:
        try:
            return self._samples[index].load()
        except OSError as error:
            raise Undecodable(Status.MISSING, str(error)) from None


class _StripGenerator:
    """Generate a nominal strip by its number."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, index: int) -> NDArray[np.uint8]:
        return make_strip(self._seed, index, size_px=GENERATED_SIZE_PX).pixels_HW[:, :, None]


class _Preparing:
    """Leave out images that are mostly black, and shrink those that are squeezed into the network's input anyway."""

    def __init__(self, config: TrainConfig) -> None:
        self._most_black = config.data.max_black_fraction if config.input.tiling == "squeeze" else 1.0
        # brightness is normalised before the squeeze, as in scoring
        squeezed = config.input.tiling == "squeeze" and config.input.brightness_norm == "none"
        self._size_px = config.input.size_px if squeezed else None

    def __call__(self, decoded: pa.Table) -> pa.Table:
        rows = decoded.drop_columns(["pixels"]).to_pylist()
        for row, image in zip(rows, images_of(decoded), strict=True):
            if image is None:
                continue
            if self._most_black < 1 and black_fraction(image) > self._most_black:
                row["status"], row["error"] = "too_black", "its black part is larger than data.max_black_fraction"
                continue
            row.update(pixel_columns(image if self._size_px is None else resize(image, self._size_px)))
        return pa.Table.from_pylist(rows, DECODED)


@dataclass(frozen=True)
class StoredImages:
    """The training images in the object store, as the driver passes them to its workers.

    Attributes:
        blocks: references to Arrow tables of schema `DECODED`.
        places: (block, row) of every usable image, in the order of `image_index`.
        skipped: number of images left out, by status.
    """

    blocks: list[ray.ObjectRef]
    places: list[tuple[int, int]]
    skipped: dict[str, int]


def store_images(config: TrainConfig, images: ImageSet) -> StoredImages:
    """Decode the images to fit on into the object store.

    Raises:
        ConfigError: none of them can be used.
    """
    skipped: Counter[str] = Counter()
    decoded = read_images(images, max(1, min(MAX_BLOCK_IMAGES, len(images) // 4)))
    prepared = decoded.map_batches(_Preparing(config), batch_size=None, batch_format="pyarrow", num_cpus=TASK_CPUS)
    blocks = prepared.to_arrow_refs()
    facts_of = ray.remote(_facts_of).options(num_cpus=TASK_CPUS)
    numbered: list[tuple[int, tuple[int, int]]] = []
    for number, facts in enumerate(ray.get([facts_of.remote(block) for block in blocks])):
        for row, (index, status) in enumerate(facts):
            if status == Status.OK:
                numbered.append((index, (number, row)))
            else:
                skipped[status] += 1
    if not numbered:
        raise ConfigError(f"{images.uri}: none of {len(images)} images can be used: {dict(skipped)}")
    return StoredImages(blocks, [place for _, place in sorted(numbered)], dict(skipped))


def _facts_of(block: pa.Table) -> list[tuple[int, str]]:
    return list(zip(block.column("image_index").to_pylist(), block.column("status").to_pylist(), strict=True))


class ImageReader(Sequence[NDArray[np.uint8]]):
    """Read the stored images by number in a worker: a sequence of pixels_HWC uint8, and their keys."""

    def __init__(self, stored: StoredImages) -> None:
        self._stored = stored
        self._block = lru_cache(maxsize=CACHED_BLOCKS)(self._fetch)

    def _fetch(self, number: int) -> tuple[list[NDArray[np.uint8] | None], list[str]]:
        block = ray.get(self._stored.blocks[number])
        return images_of(block), block.column("image_key").to_pylist()

    def __len__(self) -> int:
        return len(self._stored.places)

    def __getitem__(self, index: Any) -> Any:
        if index >= len(self):
            raise IndexError(index)
        number, row = self._stored.places[index]
        pixels_HWC = self._block(number)[0][row]
        assert pixels_HWC is not None
        return pixels_HWC

    def key(self, index: int) -> str:
        number, row = self._stored.places[index]
        return self._block(number)[1][row]
