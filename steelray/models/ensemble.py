"""Ensembles: their description, ensemble.json, the scales of their members, and the scorer that adds up their answers.

An ensemble's `model_id` is a digest of the members' identities, weights and scales in their order, and so of everything
that a score depends on. Its calibrations are stored beside ensemble.json, as beside a memory bank.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from steelray.config import ConfigError
from steelray.description import Read, dump, fetch, parse
from steelray.imaging.scorer import Evidence, Floats, Images, Scorer
from steelray.patchcore.scorer import upsample

INFO_FILE = "ensemble.json"
FORMAT_VERSION: Final = 1
REMEDY = "rebuild it with jobs/fuse_models.py"


@dataclass(frozen=True)
class NominalScale:
    """Statistics of a member's answers for nominal strips that it was not fitted on, which put members on one scale."""

    map_offset: float
    """Mean of its anomaly maps, which becomes 0."""
    map_scale: float
    """Mean distance of a map's peak above the offset, which becomes 1."""
    score_offset: float
    """Mean of its anomaly scores, which becomes 0."""
    score_sd: float
    """Standard deviation of its anomaly scores, which becomes 1."""

    @staticmethod
    def of(
        map_means_N: NDArray[np.floating[Any]],
        map_peaks_N: NDArray[np.floating[Any]],
        scores_N: NDArray[np.floating[Any]],
    ) -> "NominalScale":
        """Return the scale of a model; one that answers the same for every strip gets scale 1 and so adds nothing.

        Args:
            map_means_N, map_peaks_N: mean and largest anomaly_map value of each strip.
        """
        means, peaks, scores = (values.astype(np.float64) for values in (map_means_N, map_peaks_N, scores_N))
        above = float(peaks.mean() - means.mean())
        spread = float(scores.std())
        return NominalScale(
            map_offset=float(means.mean()),
            map_scale=above if above > 0 else 1.0,
            score_offset=float(scores.mean()),
            score_sd=spread if spread > 0 else 1.0,
        )


@dataclass(frozen=True)
class EnsembleMember:
    """A model of an ensemble, described as it was when it was fused."""

    uri: str
    """Location of the model, which must stay there unchanged."""
    model_id: str
    """Identity of the model; another one at its URI is refused."""
    bank_id: str | None
    """Identity of its memory bank; null if it has none."""
    weight: float
    """Factor of its answers."""
    scale: NominalScale
    """Scale from nominal strips that no member was fitted on."""


@dataclass(frozen=True)
class EnsembleInfo:
    """The content of ensemble.json."""

    members: tuple[EnsembleMember, ...]
    """At least two; the ensemble's anomaly maps have the size of the first one's."""
    num_strips: int
    """Number of held-out nominal strips that the scales rest on."""
    created_at: str
    """Time in UTC."""
    format_version: Literal[1]
    """Version of the format; others are refused."""

    @property
    def model_id(self) -> str:
        """Return the digest of everything that a score depends on."""
        parts = [
            {name: value for name, value in asdict(member).items() if name != "uri"}  # a member may be moved
            for member in self.members
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> bytes:
        """Return the bytes of ensemble.json."""
        return dump(self, model_id=self.model_id)


def make_ensemble(members: Sequence[EnsembleMember], num_strips: int) -> EnsembleInfo:
    """Return an ensemble created now."""
    return EnsembleInfo(tuple(members), num_strips, datetime.now(UTC).isoformat(timespec="seconds"), FORMAT_VERSION)


def read_info(read: Read, where: str) -> EnsembleInfo:
    """Read ensemble.json.

    Args:
        where: the ensemble's URI, for messages.

    Raises:
        ConfigError: there is no ensemble, it has another format version, or it is damaged.
    """
    body, file = fetch(read, INFO_FILE, where, "ensemble"), f"{where}/{INFO_FILE}"
    info = parse(EnsembleInfo, body, file, REMEDY)
    stored = parse(_Stored, body, file, REMEDY)
    if info.model_id != stored.model_id:
        raise ConfigError(
            f"{file}: its members are not those of ensemble {stored.model_id}: it was changed by hand; {REMEDY}"
        )
    return info


def check_identity(member: EnsembleMember, model_id: str, bank_id: str | None, where: str) -> None:
    """Raise `ConfigError` if the model at a member's URI is not the one that was fused.

    Args:
        model_id, bank_id: identity of the model there.
        where: the ensemble's URI, for messages.
    """
    if (model_id, bank_id) != (member.model_id, member.bank_id):
        raise ConfigError(
            f"ensemble {where}: its member {member.uri} is no longer the one that was fused (model {model_id}, bank "
            f"{bank_id}; not model {member.model_id}, bank {member.bank_id}): {REMEDY}"
        )


def common_strips(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """Return each table's rows of the strips that are in all tables, in the order of key and ETag.

    Args:
        tables: have the columns `image_key` and `etag`, which identify a strip together.
    """
    names = [pc.binary_join_element_wise(table["image_key"], table["etag"], "\0").to_pylist() for table in tables]
    places = [{name: row for row, name in enumerate(of_table)} for of_table in names]
    shared = sorted(set.intersection(*(set(of_table) for of_table in names)))
    return [
        table.take(pa.array([rows[name] for name in shared], pa.int64()))  # typed: there may be none
        for table, rows in zip(tables, places, strict=True)
    ]


def scale_of(rows: pa.Table) -> NominalScale:
    """Return a model's scale from its score rows (schema `SCORES`) of nominal strips that it was not fitted on."""
    means_N, peaks_N, scores_N = (rows.column(name).to_numpy() for name in ("map_mean", "map_peak", "anomaly_score"))
    return NominalScale.of(means_N, peaks_N, scores_N)


def fuse_maps(maps: Sequence[Floats], scales: Sequence[NominalScale], weights: Sequence[float]) -> Floats:
    """Return the weighted sum of the members' maps of an image, at the size of the first one."""
    size = maps[0].shape[:2]
    total_HW = np.zeros(size, dtype=np.float32)
    for map_HW, scale, weight in zip(maps, scales, weights, strict=True):
        resized_HW = map_HW if map_HW.shape == size else upsample(map_HW, size, 0.0)
        total_HW += np.float32(weight) * ((resized_HW - scale.map_offset) / scale.map_scale)
    return total_HW


def fuse_scores(scores: Sequence[float], scales: Sequence[NominalScale], weights: Sequence[float]) -> float:
    """Return the weighted sum of the members' scores of an image."""
    total = np.float32(0)
    for score, scale, weight in zip(scores, scales, weights, strict=True):
        total += np.float32(weight) * np.float32((np.float32(score) - scale.score_offset) / scale.score_sd)
    return float(total)


class FusedScorer(Scorer):
    """A scorer that adds up the weighted answers of others."""

    def __init__(self, members: Sequence[Scorer], scales: Sequence[NominalScale], weights: Sequence[float]) -> None:
        self.min_size_px = max(member.min_size_px for member in members)
        self.num_grids = sum(member.num_grids for member in members)
        self._members, self._scales, self._weights = list(members), list(scales), list(weights)

    def measure(self, images: Images, keys: Sequence[str] | None = None) -> list[Evidence]:
        """Return the evidence of all members one after the other."""
        of_members = [member.measure(images, keys) for member in self._members]
        return [[grid for evidence in of_image for grid in evidence] for of_image in zip(*of_members, strict=True)]

    def covered_px(self, size_px: tuple[int, int]) -> list[tuple[int, int]]:
        return [covered for member in self._members for covered in member.covered_px(size_px)]

    def anomaly_map(self, evidence: Evidence, size_px: tuple[int, int]) -> Floats:
        parts = zip(self._members, self._parts(evidence), strict=True)
        return fuse_maps([member.anomaly_map(part, size_px) for member, part in parts], self._scales, self._weights)

    def anomaly_score(self, evidence: Evidence) -> float:
        parts = zip(self._members, self._parts(evidence), strict=True)
        return fuse_scores([member.anomaly_score(part) for member, part in parts], self._scales, self._weights)

    def _parts(self, evidence: Evidence) -> Iterator[Evidence]:
        start = 0
        for member in self._members:
            yield evidence[start : start + member.num_grids]
            start += member.num_grids


@dataclass(frozen=True)
class _Stored:
    model_id: str
