"""List an archive: its manifest, in a fixed order, before anything is read; `ImageSet`, the images of a manifest."""

import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from steelray.config import ArchiveConfig, ConfigError, DecodeConfig
from steelray.schema import MANIFEST
from steelray.storage.location import Location

CHUNK_ROWS = 10_000


@dataclass(frozen=True)
class ImageSet:
    """Images that a pipeline reads.

    Attributes:
        uri: the place that holds them: a URI, or words where `load` is given.
        manifest: schema `MANIFEST`; `image_index` names an image within the place.
        decode: limits of decoding.
        load: returns pixels_HWC uint8 of an `image_index`, for images that do not lie in a store; None reads the
            object `image_key` below `uri`.
    """

    uri: str
    manifest: pa.Table
    decode: DecodeConfig
    load: Callable[[int], NDArray[np.uint8]] | None = None

    def __len__(self) -> int:
        return int(self.manifest.num_rows)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> "ImageSet":
        """Return the images in these rows of the manifest."""
        return replace(self, manifest=self.manifest.take(pa.array(rows, pa.int64())))


def _utc(moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def list_archive(config: ArchiveConfig) -> pa.Table:
    """List the objects of an archive that match its glob and its cut-off times.

    Returns:
        A table of schema `MANIFEST`, sorted bytewise by key: the same archive gives the same table.

    Raises:
        ConfigError: the archive cannot be listed, or nothing in it matches.
    """
    location = Location(config.uri)
    location.check_access()
    matches = re.compile(fnmatch.translate(config.glob)).match
    after, before = _utc(config.modified_after), _utc(config.modified_before)

    # Arrow columns, chunk by chunk: a million keys stay well under a gigabyte
    chunks: list[pa.Table] = []
    keys: list[str] = []
    etags: list[str] = []
    sizes: list[int] = []
    times: list[datetime] = []
    schema = MANIFEST.remove(0)
    seen = 0

    def flush() -> None:
        chunks.append(
            pa.Table.from_arrays(
                [pa.array(c, f.type) for c, f in zip((keys, etags, sizes, times), schema, strict=True)], schema=schema
            )
        )
        for column in (keys, etags, sizes, times):
            column.clear()

    for stored in location.list():
        seen += 1
        if not matches(stored.key):
            continue
        if (after and stored.last_modified < after) or (before and stored.last_modified >= before):
            continue
        keys.append(stored.key)
        etags.append(stored.etag)
        sizes.append(stored.size_bytes)
        times.append(stored.last_modified)
        if len(keys) == CHUNK_ROWS:
            flush()
    flush()
    table = pa.concat_tables(chunks).combine_chunks().sort_by("image_key")
    if config.limit is not None:
        table = table.slice(0, config.limit)
    if table.num_rows == 0:
        if seen:
            raise ConfigError(
                f"{config.uri}: none of its {seen} objects match glob {config.glob!r} and the cut-off times"
            )
        raise ConfigError(f"{config.uri}: the archive is empty; check the prefix")
    return table.add_column(0, MANIFEST.field(0), pa.array(range(table.num_rows), pa.int64()))
