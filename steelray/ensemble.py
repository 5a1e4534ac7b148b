"""Which models count as one, an ensemble, and how their answers are added up; its file format.

    ensemble.json    members with their identity, weight and scale

`model_id` is a digest of all that a score depends on: the members' identities, weights and scales, in their order.
Calibrations lie beside it, as beside a memory bank.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from steelray.config import ConfigError
from steelray.description import Read, read_description
from steelray.fusion import NominalScale

FORMAT_VERSION = 1
INFO_FILE = "ensemble.json"

REMEDY = "rebuild it with jobs/fuse_models.py"


@dataclass(frozen=True)
class EnsembleMember:
    """A model of an ensemble, as it was when it was fused."""

    uri: str
    """Where it lies; it must stay there, and stay the same."""
    model_id: str
    """Of the member: another one at its URI is refused."""
    bank_id: str | None
    """Of the member's memory bank; null where it has none."""
    weight: float
    """How much it counts."""
    scale: NominalScale
    """What it gives nominal strips that no member was fitted on."""


@dataclass(frozen=True)
class EnsembleInfo:
    """ensemble.json"""

    members: tuple[EnsembleMember, ...]
    """At least two; the first one's anomaly maps give the ensemble's their size."""
    num_strips: int
    """Held-out nominal strips that the scales rest on."""
    created_at: str
    """UTC."""
    format_version: int = FORMAT_VERSION
    """An ensemble of another version is refused, with both numbers."""

    @property
    def model_id(self) -> str:
        """Digest of everything that a score depends on."""
        parts = [
            {name: value for name, value in asdict(member).items() if name != "uri"}  # it may be moved
            for member in self.members
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> bytes:
        """ensemble.json's bytes."""
        return json.dumps({"model_id": self.model_id, **asdict(self)}, indent=2).encode()


def make_ensemble(members: Sequence[EnsembleMember], num_strips: int) -> EnsembleInfo:
    """An ensemble of today."""
    return EnsembleInfo(tuple(members), num_strips, datetime.now(UTC).isoformat(timespec="seconds"))


def read_info(read: Read, where: str) -> EnsembleInfo:
    """Parses ensemble.json.

    Args:
        where: the ensemble's URI, for messages.

    Raises:
        ConfigError: no ensemble, one of another format version, or a damaged one.
    """
    raw = read_description(read, INFO_FILE, where, "ensemble", FORMAT_VERSION, REMEDY)
    try:
        stored_id = raw.pop("model_id")
        members = [EnsembleMember(**{**member, "scale": NominalScale(**member["scale"])}) for member in raw["members"]]
        info = EnsembleInfo(**{**raw, "members": tuple(members)})
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{where}/{INFO_FILE}: incomplete or damaged ({error}); {REMEDY}") from None
    if info.model_id != stored_id:
        raise ConfigError(
            f"{where}/{INFO_FILE}: its members are not those of ensemble {stored_id}; it was changed by hand"
        )
    return info


def check_identity(member: EnsembleMember, model_id: str, bank_id: str | None, where: str) -> None:
    """Raises `ConfigError` if what lies at a member's URI is not what was fused.

    Args:
        model_id, bank_id: of what lies there.
        where: the ensemble's URI, for messages.
    """
    if (model_id, bank_id) != (member.model_id, member.bank_id):
        raise ConfigError(
            f"ensemble {where}: its member {member.uri} is no longer the one that was fused (model {model_id}, bank "
            f"{bank_id}; not model {member.model_id}, bank {member.bank_id}): {REMEDY}"
        )


def common_strips(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """The rows of each table whose strips are in all of them, in the order of key and ETag.

    Args:
        tables: with the columns `image_key` and `etag`; a strip is the same only if both are.
    """
    names = [pc.binary_join_element_wise(table["image_key"], table["etag"], "\0").to_pylist() for table in tables]
    places = [{name: row for row, name in enumerate(of_table)} for of_table in names]
    shared = sorted(set.intersection(*(set(of_table) for of_table in names)))
    return [
        table.take(pa.array([rows[name] for name in shared], pa.int64()))  # typed: there may be none
        for table, rows in zip(tables, places, strict=True)
    ]


def scale_of(rows: pa.Table) -> NominalScale:
    """The scale of a model from its score rows (schema `SCORES`) of nominal strips that it was not fitted on."""
    means_N, peaks_N, scores_N = (
        rows.column(name).to_numpy().astype(np.float64) for name in ("map_mean", "map_peak", "anomaly_score")
    )
    return NominalScale.of(means_N, peaks_N, scores_N)
