"""The memory bank and its file format, without pickle.

    bank.json           everything needed to score; written last, so a bank without it is incomplete
    shard-00000.arrow   Arrow IPC: vector fixed_size_list<float32 or float16>[D], image_index, grid_row, grid_column
    images.arrow        Arrow IPC: image_key of every nominal image, by image_index
    index.faiss         inverted file, trained and empty, if search is not exact; every slice of the bank fills a copy

`bank_id` is a digest of vectors, embedder, scoring and index. Calibrations lie beside these files under their own
versions.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from steelray.config import ConfigError, Facts
from steelray.description import Read, dump, fetch, parse
from steelray.patchcore.config import EmbedderConfig, IndexConfig, ScoringConfig, identity, stored_options


@dataclass(frozen=True)
class BankFile:
    """A file of the bank, with the digest by which it is checked before use."""

    name: str
    num_rows: int
    sha256: str

    @classmethod
    def of(cls, name: str, num_rows: int, body: bytes) -> "BankFile":
        """Return the entry of a file with these bytes."""
        return cls(name, num_rows, hashlib.sha256(body).hexdigest())

    def verified(self, read: Read) -> bytes:
        """Read the file's bytes.

        Raises:
            ConfigError: the file is missing, or its digest is not the one in bank.json.
        """
        try:
            body = read(self.name)
        except LookupError:
            raise ConfigError(f"bank file {self.name} is missing: the bank is incomplete, rebuild it") from None
        if hashlib.sha256(body).hexdigest() != self.sha256:
            raise ConfigError(
                f"bank file {self.name}: digest differs from bank.json's; it is damaged, rebuild the bank"
            )
        return body


def to_ipc(table: pa.Table) -> bytes:
    """Return a table as an Arrow IPC file."""
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def from_ipc(body: bytes) -> pa.Table:
    """Return the table of an Arrow IPC file."""
    return pa.ipc.open_file(pa.BufferReader(body)).read_all()


FORMAT_VERSION: Final = 1
SHARD_BYTES = 64 * 2**20
INFO_FILE = "bank.json"
IMAGES_FILE = "images.arrow"
INDEX_FILE = "index.faiss"
ORIGIN = ("image_index", "grid_row", "grid_column")


@dataclass(frozen=True)
class CoresetStatistics:
    """Figures of the selection of a bank's vectors.

    Attributes:
        num_candidates: patches that the vectors were selected from; of a grown bank, over all its selections.
        cover_radius: largest distance of a candidate to its nearest vector, those of dropped suspects included.
        num_rounds, duration_s: of the last selection.
        grown_from: ids of the banks that this one has grown from, oldest first.
    """

    num_candidates: int
    cover_radius: float
    num_rounds: int
    duration_s: float
    grown_from: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BankInfo:
    """Content of bank.json."""

    bank_id: str
    embedder: EmbedderConfig
    weights_digest: str
    scoring: ScoringConfig
    input_size_px: tuple[int, int] | None
    """Height and width of every nominal image; None if they differ, or are resized anyway."""
    num_vectors: int
    dim: int
    coreset: CoresetStatistics
    bytes_per_vector: int
    """Memory of one vector in the index."""
    index: IndexConfig
    recall: dict[str, float] | None = None
    """Recall of an index that is not exact: recall_at_1, distance_error and num_queries of `measure_recall`."""
    shards: tuple[BankFile, ...]
    images: BankFile
    trained: BankFile | None
    created_at: str
    format_version: Literal[1]

    @property
    def model_id(self) -> str:
        """Return the digest of everything but the vectors that a score depends on."""
        return settings_digest(self).hexdigest()[:16]


@dataclass(frozen=True)
class MemoryBank:
    """Vectors in the order of the selection, and where each came from.

    Attributes:
        vectors_ND: float32, or float16 if `info.index.storage` is fp16.
        origins_N3: int32; image index, patch grid row and column of each vector.
        image_keys: of all nominal images, by image index.
        trained: bytes of the trained, empty FAISS index; empty if search is exact.
    """

    info: BankInfo
    vectors_ND: NDArray[np.floating[Any]] = field(repr=False)
    origins_N3: NDArray[np.int32] = field(repr=False)
    image_keys: tuple[str, ...] = field(repr=False)
    trained: bytes = field(default=b"", repr=False)


def make_bank(
    vectors_ND: NDArray[np.float32],
    origins_N3: NDArray[np.int32],
    image_keys: tuple[str, ...],
    *,
    embedder: EmbedderConfig,
    weights_digest: str,
    scoring: ScoringConfig,
    input_size_px: tuple[int, int] | None,
    coreset: CoresetStatistics,
) -> MemoryBank:
    """Make a bank that is stored in float32 and searched exactly, with its id.

    Raises:
        ConfigError: the scoring asks for more than the bank has.
    """
    scoring.check_bank(len(vectors_ND))
    info = BankInfo(
        bank_id="",
        embedder=embedder,
        weights_digest=weights_digest,
        scoring=scoring,
        input_size_px=input_size_px,
        num_vectors=len(vectors_ND),
        dim=vectors_ND.shape[1],
        coreset=coreset,
        bytes_per_vector=4 * vectors_ND.shape[1],
        index=IndexConfig(),
        shards=(),
        images=BankFile.of(IMAGES_FILE, 0, b""),
        trained=None,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        format_version=FORMAT_VERSION,
    )
    return identified(MemoryBank(info, vectors_ND, origins_N3, image_keys))


def identified(bank: MemoryBank) -> MemoryBank:
    """Return the bank with the id that follows from its settings and vectors."""
    digest = settings_digest(bank.info)
    digest.update(np.ascontiguousarray(bank.vectors_ND).data)
    digest.update(bank.trained)
    return replace(bank, info=replace(bank.info, bank_id=digest.hexdigest()[:16]))


def settings_digest(info: BankInfo) -> "hashlib._Hash":
    """Return a SHA-256 over the settings of embedding, scoring and search."""
    settings = {"weights": info.weights_digest}
    sections = {name: identity(getattr(info, name)) for name in ("embedder", "scoring", "index")}
    return hashlib.sha256(json.dumps({**settings, **sections}, sort_keys=True).encode())


def bank_files(bank: MemoryBank) -> Iterator[tuple[str, bytes]]:
    """Yield names and bytes of the bank's files, in the order in which they must be written."""
    rows_per_shard = max(1, SHARD_BYTES // (bank.vectors_ND.itemsize * bank.info.dim))
    shards = []
    for number, start in enumerate(range(0, bank.info.num_vectors, rows_per_shard)):
        rows = slice(start, start + rows_per_shard)
        vectors_ND, origins_N3 = bank.vectors_ND[rows], bank.origins_N3[rows]
        table = pa.table(
            {
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel()), bank.info.dim),
                "image_index": pa.array(origins_N3[:, 0]),
                "grid_row": pa.array(origins_N3[:, 1]),
                "grid_column": pa.array(origins_N3[:, 2]),
            }
        )
        name, body = f"shard-{number:05d}.arrow", to_ipc(table)
        shards.append(BankFile.of(name, len(vectors_ND), body))
        yield name, body
    body = to_ipc(pa.table({"image_key": pa.array(bank.image_keys, pa.string())}))
    images = BankFile.of(IMAGES_FILE, len(bank.image_keys), body)
    yield IMAGES_FILE, body
    trained = None
    if bank.trained:
        trained = BankFile.of(INDEX_FILE, 0, bank.trained)
        yield INDEX_FILE, bank.trained
    info = replace(bank.info, shards=tuple(shards), images=images, trained=trained)
    yield INFO_FILE, dump(info)


REMOVED_OPTIONS: dict[str, dict[str, Any]] = {
    "embedder": {"position": "none"},
    "scoring": {
        "area_distance": None,
        "strip_median_weight": 0.0,
        "normalization": "none",
        "background_level": None,
        "reweight_neighbors": 9,
        "own_strip_margin_cells": 2,
    },
    "coreset": {"projection_dim": None},
}
"""Removed options by section of bank.json, with their value when off."""
REMEDY = "rebuild the bank"


@dataclass(frozen=True)
class _StoredOptions:
    embedder: Facts
    scoring: Facts
    coreset: Facts
    index: Facts
    format_version: Literal[1]

    def __post_init__(self) -> None:
        if self.scoring.get("image_score") == "area":
            raise ConfigError("scoring.image_score is 'area', but this option was removed")
        for section, options in REMOVED_OPTIONS.items():
            for name, off in options.items():
                if (value := getattr(self, section).get(name, off)) != off:
                    raise ConfigError(f"{section}.{name} is {value!r}, but this option was removed")
        # without this check, a default would replace a setting that the bank was built with
        for section, kind in {"embedder": EmbedderConfig, "scoring": ScoringConfig, "index": IndexConfig}.items():
            for name in stored_options(kind):
                if name not in getattr(self, section):
                    raise ConfigError(f"{section}.{name}: Field required")


def read_info(read: Read, where: str) -> BankInfo:
    """Read bank.json.

    Args:
        where: the bank's URI, for messages.

    Raises:
        ConfigError: no bank, another format version, or a bank built with an option that was removed.
    """
    body, file = fetch(read, INFO_FILE, where, "memory bank"), f"{where}/{INFO_FILE}"
    parse(_StoredOptions, body, file, REMEDY)
    return parse(BankInfo, body, file, REMEDY)


def read_vectors(read: Read, info: BankInfo, start: int = 0, stop: int | None = None) -> NDArray[Any]:
    """Read vectors `start` to `stop` (global ids) as stored, float32 or float16, from only the files that hold them.

    Raises:
        ConfigError: as `BankFile.verified`.
    """
    return _read_columns(read, info, ["vector"], start, info.num_vectors if stop is None else stop)[0]


def read_trained(read: Read, info: BankInfo) -> bytes:
    """Read the trained, empty index; no bytes if search is exact. Raises `ConfigError` as `read_vectors`."""
    return b"" if info.trained is None else info.trained.verified(read)


def read_origins(read: Read, info: BankInfo) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Read the origins_N3 of all vectors and the image keys. Raises `ConfigError` as `read_vectors`."""
    return np.stack(_read_columns(read, info, ORIGIN, 0, info.num_vectors), axis=1), _read_keys(read, info)


def read_bank(read: Read, where: str) -> MemoryBank:
    """Read the whole bank. Raises `ConfigError` as `read_info` and `read_vectors`."""
    info = read_info(read, where)
    vectors_ND, *origins = _read_columns(read, info, ["vector", *ORIGIN], 0, info.num_vectors)
    origins_N3 = np.stack(origins, axis=1)
    return MemoryBank(info, vectors_ND, origins_N3, _read_keys(read, info), read_trained(read, info))


def _read_columns(read: Read, info: BankInfo, names: Sequence[str], start: int, stop: int) -> list[NDArray[Any]]:
    """Read rows `start` to `stop` of some columns; every file is read once."""
    parts, first = [], 0
    for file in info.shards:
        low, high = max(start, first), min(stop, first + file.num_rows)
        if low < high:
            table = from_ipc(file.verified(read)).slice(low - first, high - low)
            parts.append([_to_numpy(table.column(name).combine_chunks()) for name in names])
        first += file.num_rows
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _to_numpy(column: pa.Array) -> NDArray[Any]:
    if pa.types.is_fixed_size_list(column.type):
        vectors_ND: NDArray[Any] = column.flatten().to_numpy().reshape(-1, column.type.list_size)
        return vectors_ND
    values: NDArray[Any] = column.to_numpy()
    return values


def _read_keys(read: Read, info: BankInfo) -> tuple[str, ...]:
    return tuple(from_ipc(info.images.verified(read)).column("image_key").to_pylist())
