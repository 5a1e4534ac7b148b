"""Read and decode an `ImageSet` in tasks, one row per image, and map its images over a pool of actors."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from steelray.cluster.metrics import observe_stage
from steelray.cluster.plan import TASK_CPUS, ComputePlan
from steelray.config import ConfigError
from steelray.imaging.decode import Undecodable, decode
from steelray.patchcore.timing import stage
from steelray.schema import DECODED, Row, Status
from steelray.storage.listing import ImageSet
from steelray.storage.location import Location, ObjectChanged, ObjectMissing

FETCHERS = 8
"""Threads of a reading task; they wait for the store, not for the CPU."""
MAX_BLOCK_BYTES = 32 * 2**20
"""Decoded pixels per block, so that large images do not fill the memory."""
MAX_BLOCK_IMAGES = 64
MAX_TRIED = 100
"""Images that are tried where one is wanted."""


def images_per_task(num_images: int, num_scorers: int, batch_size: int) -> int:
    """Return the images per reading task: whole batches, and enough tasks to keep every scorer busy to the end."""
    wanted = num_images // (num_scorers * 8)
    return max(1, min(MAX_BLOCK_IMAGES, wanted) // batch_size) * batch_size


def read_image(images: ImageSet, location: Location, row: Row) -> Row:
    """Read and decode one image.

    Args:
        location: of `images.uri`.
        row: of the manifest.

    Returns:
        A row of schema `DECODED`.

    Raises:
        OSError: the store itself fails.
    """
    result = {**row, "status": Status.OK, "error": None}
    try:
        pixels_HWC = _pixels(images, location, row)
    except Undecodable as error:
        return {**result, "status": error.status, "error": str(error)}
    except ObjectMissing:
        return {**result, "status": Status.MISSING, "error": "deleted since it was listed"}
    except PermissionError as error:
        return {**result, "status": Status.DENIED, "error": str(error)}
    except ObjectChanged as error:
        return {**result, "status": Status.CHANGED, "error": str(error)}
    return {**result, **pixel_columns(pixels_HWC)}


def first_readable(images: ImageSet, start: int = 0) -> NDArray[np.uint8]:
    """Return pixels_HWC of the first image from row `start` on that can be decoded.

    Raises:
        ConfigError: none of `MAX_TRIED` can.
    """
    location, statuses = Location(images.uri), []
    for row in images.manifest.slice(start, MAX_TRIED).to_pylist():
        found = read_image(images, location, row)
        if found["status"] == Status.OK:
            shape = (found["height_px"], found["width_px"], found["channels"])
            return np.frombuffer(found["pixels"], np.uint8).reshape(shape)
        statuses.append(f"{row['image_key']}: {found['status']}")
    raise ConfigError(f"{images.uri}: none of {len(statuses)} images tried can be used: {'; '.join(statuses[:3])}")


def _pixels(images: ImageSet, location: Location, row: Row) -> NDArray[np.uint8]:
    if images.load is not None:
        return images.load(row["image_index"])
    if row["size_bytes"] > images.decode.max_bytes:
        raise Undecodable(Status.TOO_LARGE, f"{row['size_bytes']} bytes, the limit is {images.decode.max_bytes}")
    with stage("read", observe_stage):
        body = location.read_listed(row["image_key"], row["etag"], row["size_bytes"])
    with stage("decode", observe_stage):
        return decode(body, images.decode)


def pixel_columns(pixels_HWC: NDArray[np.uint8]) -> Row:
    """Return the columns of schema `DECODED` that come from the pixels."""
    height_px, width_px, channels = pixels_HWC.shape
    return {
        "height_px": height_px,
        "width_px": width_px,
        "channels": channels,
        "mean_brightness": float(pixels_HWC.mean()),
        "pixels": pixels_HWC.tobytes(),
    }


def _read(images: ImageSet, listed: bytes) -> Iterator[pa.Table]:
    """Read the images of a reading task, block by block.

    Args:
        images: the set with an empty manifest.
        listed: the task's rows of the manifest, as an Arrow stream.
    """
    location = Location(images.uri)
    pending: list[Row] = []
    size = 0
    rows = pa.ipc.open_stream(listed).read_all().to_pylist()
    with ThreadPoolExecutor(min(FETCHERS, len(rows))) as pool:
        for row in _ahead(pool, lambda one: read_image(images, location, one), rows):
            pending.append(row)
            size += len(row.get("pixels") or b"")
            if size >= MAX_BLOCK_BYTES:
                yield pa.Table.from_pylist(pending, schema=DECODED)
                pending, size = [], 0
    if pending:
        yield pa.Table.from_pylist(pending, schema=DECODED)


def _ahead(pool: ThreadPoolExecutor, read: Callable[[Any], Any], rows: list[Any]) -> Iterator[Any]:
    """Yield results in order, with at most `2 * FETCHERS` of them begun and not yet taken."""
    begun: deque[Future[Any]] = deque()
    for row in rows:
        if len(begun) == 2 * FETCHERS:
            yield begun.popleft().result()
        begun.append(pool.submit(read, row))
    while begun:
        yield begun.popleft().result()


class ImageDatasource(Datasource):  # type: ignore[misc]
    """Reading tasks over slices of a manifest."""

    def __init__(self, images: ImageSet, rows_per_task: int) -> None:
        super().__init__()
        self._images = images
        self._rows_per_task = rows_per_task

    @property
    def num_tasks(self) -> int:
        return math.ceil(len(self._images) / self._rows_per_task)

    def get_name(self) -> str:
        return "Images"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        manifest = self._images.manifest
        bare = replace(self._images, manifest=manifest.slice(0, 0).combine_chunks())
        tasks = []
        for start in range(0, manifest.num_rows, self._rows_per_task):
            part = manifest.slice(start, self._rows_per_task)
            sink = pa.BufferOutputStream()  # a pickled slice brings its whole table; a stream holds its own rows only
            with pa.ipc.new_stream(sink, part.schema) as writer:
                writer.write_table(part)
            metadata = BlockMetadata(part.num_rows, None, None, None)
            read = partial(_read, bare, sink.getvalue().to_pybytes())
            tasks.append(ReadTask(read, metadata, DECODED, per_task_row_limit))
        return tasks


def read_images(images: ImageSet, rows_per_task: int) -> ray.data.Dataset:
    """Return a lazy dataset of schema `DECODED` that reads and decodes images in tasks."""
    source = ImageDatasource(images, rows_per_task)
    return ray.data.read_datasource(source, override_num_blocks=source.num_tasks, num_cpus=TASK_CPUS)


def map_images(
    images: ImageSet, plan: ComputePlan, batch_size: int, actor: type, arguments: tuple[Any, ...]
) -> ray.data.Dataset:
    """Return a lazy dataset that reads and decodes images in tasks and maps them over a pool of actors.

    Args:
        actor: class called with tables of schema `DECODED`, `batch_size` rows each.
        arguments: of its constructor.
    """
    rows_per_task = images_per_task(len(images), plan.num_scorers, batch_size)
    return read_images(images, rows_per_task).map_batches(
        actor,
        fn_constructor_args=arguments,
        compute=ActorPoolStrategy(size=min(plan.num_scorers, math.ceil(len(images) / rows_per_task))),
        batch_size=batch_size,
        batch_format="pyarrow",
        num_cpus=plan.scorer_cpus,
        num_gpus=plan.scorer_gpus or None,
    )
