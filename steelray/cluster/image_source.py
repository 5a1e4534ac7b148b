"""A manifest through decoding tasks and a pool of actors: one row per object, whatever its state."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from steelray.cluster.connect import TASK_CPUS, ComputePlan
from steelray.cluster.metrics import observe_stage
from steelray.config import ComputeConfig, DecodeConfig
from steelray.imaging.decode import Undecodable, decode
from steelray.patchcore.timing import stage
from steelray.schema import DECODED, Status
from steelray.storage.location import Location, ObjectChanged, ObjectMissing

FETCHERS = 8
"""Threads of one reading task: they wait for the store, not for the CPU."""
MAX_BLOCK_BYTES = 32 * 2**20
"""Decoded pixels per block, so that large images do not pile up in memory."""
MAX_BLOCK_IMAGES = 64


def images_per_task(num_images: int, num_scorers: int, batch_size: int) -> int:
    """Images per reading task: whole batches, and enough tasks to keep every scorer busy to the end."""
    wanted = num_images // (num_scorers * 8)
    return max(1, min(MAX_BLOCK_IMAGES, wanted) // batch_size) * batch_size


def read_image(location: Location, row: dict[str, Any], config: DecodeConfig) -> dict[str, Any]:
    """One manifest row to one row of schema `DECODED`. Raises `OSError` only if the store itself fails."""
    result = {**row, "status": Status.OK, "error": None}
    try:
        if row["size_bytes"] > config.max_bytes:
            raise Undecodable(Status.TOO_LARGE, f"{row['size_bytes']} bytes, the limit is {config.max_bytes}")
        with stage("read", observe_stage):
            body = location.read_listed(row["image_key"], row["etag"], row["size_bytes"])
        with stage("decode", observe_stage):
            pixels_HWC = decode(body, config)
    except Undecodable as error:
        return {**result, "status": error.status, "error": str(error)}
    except ObjectMissing:
        return {**result, "status": Status.MISSING, "error": "deleted since it was listed"}
    except PermissionError as error:
        return {**result, "status": Status.DENIED, "error": str(error)}
    except ObjectChanged as error:
        return {**result, "status": Status.CHANGED, "error": str(error)}
    height_px, width_px, channels = pixels_HWC.shape
    return {
        **result,
        "height_px": height_px,
        "width_px": width_px,
        "channels": channels,
        "mean_brightness": float(pixels_HWC.mean()),
        "pixels": pixels_HWC.tobytes(),
    }


def _reader(uri: str, rows: bytes, config: DecodeConfig) -> Callable[[], Iterable[pa.Table]]:
    def read() -> Iterator[pa.Table]:
        location = Location(uri)
        pending: list[dict[str, Any]] = []
        size = 0
        listed = pa.ipc.open_stream(rows).read_all().to_pylist()
        with ThreadPoolExecutor(min(FETCHERS, len(listed))) as pool:
            for row in _ahead(pool, lambda one: read_image(location, one, config), listed):
                pending.append(row)
                size += len(row.get("pixels") or b"")
                if size >= MAX_BLOCK_BYTES:
                    yield pa.Table.from_pylist(pending, schema=DECODED)
                    pending, size = [], 0
        if pending:
            yield pa.Table.from_pylist(pending, schema=DECODED)

    return read


def _ahead(pool: ThreadPoolExecutor, read: Callable[[Any], Any], rows: list[Any]) -> Iterator[Any]:
    """Results in order, at most `2 * FETCHERS` of them begun and not yet taken."""
    begun: deque[Future[Any]] = deque()
    for row in rows:
        if len(begun) == 2 * FETCHERS:
            yield begun.popleft().result()
        begun.append(pool.submit(read, row))
    while begun:
        yield begun.popleft().result()


class ImageDatasource(Datasource):  # type: ignore[misc]
    """Reading tasks over slices of a manifest."""

    def __init__(self, uri: str, manifest: pa.Table, config: DecodeConfig, rows_per_task: int) -> None:
        super().__init__()
        self._uri = uri
        self._manifest = manifest
        self._config = config
        self._rows_per_task = rows_per_task

    @property
    def num_tasks(self) -> int:
        return math.ceil(int(self._manifest.num_rows) / self._rows_per_task)

    def get_name(self) -> str:
        return "Images"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        tasks = []
        for start in range(0, self._manifest.num_rows, self._rows_per_task):
            part = self._manifest.slice(start, self._rows_per_task)
            sink = pa.BufferOutputStream()  # a slice pickles with its whole table; a stream holds its own rows only
            with pa.ipc.new_stream(sink, part.schema) as writer:
                writer.write_table(part)
            metadata = BlockMetadata(part.num_rows, None, None, None)
            read = _reader(self._uri, sink.getvalue().to_pybytes(), self._config)
            tasks.append(ReadTask(read, metadata, DECODED, per_task_row_limit))
        return tasks


def map_images(
    uri: str,
    manifest: pa.Table,
    decode_config: DecodeConfig,
    compute: ComputeConfig,
    plan: ComputePlan,
    actor: type,
    arguments: tuple[Any, ...],
) -> ray.data.Dataset:
    """The images of a manifest, decoded in tasks of their own, through a pool of actors.

    Args:
        actor: called with tables of schema `DECODED`, `compute.batch_size` rows each.
        arguments: of its constructor.
    """
    rows_per_task = images_per_task(manifest.num_rows, plan.num_scorers, compute.batch_size)
    source = ImageDatasource(uri, manifest, decode_config, rows_per_task)
    images = ray.data.read_datasource(source, override_num_blocks=source.num_tasks, num_cpus=TASK_CPUS)
    return images.map_batches(
        actor,
        fn_constructor_args=arguments,
        compute=ActorPoolStrategy(size=min(plan.num_scorers, source.num_tasks)),
        batch_size=compute.batch_size,
        batch_format="pyarrow",
        num_cpus=plan.scorer_cpus,
        num_gpus=plan.scorer_gpus or None,
    )
