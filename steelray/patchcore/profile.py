"""What distance to the memory bank nominal strips show at a place, so that a patch is judged by what is usual there.

The distances of held-out nominal strips are averaged at the same height of the strip ("row"), at the same place of it
("position"), or over the patches to which the same bank vector is the nearest ("neighborhood"). A patch's distance is
then divided by that average, and multiplied by the average of all, so that it stays a distance.

Shapes: h, w the patch grid of a strip; R, S rows and columns of a table over the strip; N bank vectors.
"""

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steelray.config import ConfigError

PROFILE_FILE = "profile.npz"
TABLE_ROWS, TABLE_COLUMNS = 16, 32
"""A table's cells over the height and the width of the strip, whatever its size in pixels."""
SHRINKAGE = 20.0
"""Patches' worth of the mean of all that is mixed into every average: few patches say little of their place."""
LEAST_SHARE = 0.1
"""What is expected at a place counts as at least this share of the mean of all: nothing is divided by almost 0."""

Kind = Literal["row", "position", "neighborhood"]


@dataclass(frozen=True, eq=False)
class ProfileSums:
    """Sums of nominal distances, place by place, and of how many patches. Those of several strips can be added.

    Attributes:
        sums, counts: float64, of one shape: (R, 1) by row, (R, S) by position, (N,) by nearest vector. A patch that
            lies in several cells of a table counts in each by its share.
    """

    kind: Kind
    sums: NDArray[np.float64]
    counts: NDArray[np.float64]

    @classmethod
    def empty(cls, kind: Kind, num_vectors: int) -> "ProfileSums":
        """Of no strip, for a bank of so many vectors."""
        shapes = {"row": (TABLE_ROWS, 1), "position": (TABLE_ROWS, TABLE_COLUMNS), "neighborhood": (num_vectors,)}
        return cls(kind, np.zeros(shapes[kind]), np.zeros(shapes[kind]))

    def with_strip(
        self, distances_hw: NDArray[np.float32], nearest_hw: NDArray[np.int64], counted_hw: NDArray[np.bool_]
    ) -> "ProfileSums":
        """With a further strip.

        Args:
            distances_hw: of its patches to the bank.
            nearest_hw: ids of the vectors that are nearest to them.
            counted_hw: which patches count; the others may hold anything.
        """
        if self.kind == "neighborhood":
            ids = nearest_hw[counted_hw]
            counts = np.bincount(ids, minlength=len(self.counts)).astype(np.float64)
            sums = np.bincount(ids, weights=distances_hw[counted_hw], minlength=len(self.sums)).astype(np.float64)
        else:
            rows_hR = _shares(counted_hw.shape[0], self.sums.shape[0])
            columns_wS = _shares(counted_hw.shape[1], self.sums.shape[1])
            counts = rows_hR.T @ counted_hw.astype(np.float64) @ columns_wS
            sums = rows_hR.T @ np.where(counted_hw, distances_hw, 0).astype(np.float64) @ columns_wS
        return self + ProfileSums(self.kind, sums, counts)

    def __add__(self, other: "ProfileSums") -> "ProfileSums":
        return ProfileSums(self.kind, self.sums + other.sums, self.counts + other.counts)

    def profile(self) -> "NominalProfile":
        """The averages. Raises `ConfigError` if no patch was counted."""
        total = self.counts.sum()
        if total == 0:
            raise ConfigError(
                f"scoring.normalization {self.kind!r}: no held-out nominal strip could be measured: add nominal images"
            )
        mean = float(self.sums.sum() / total)
        expected = (self.sums + SHRINKAGE * mean) / (self.counts + SHRINKAGE)
        return NominalProfile(self.kind, expected.astype(np.float32), mean)

    def to_bytes(self) -> bytes:
        """As an .npz file, compressed: most vectors of a bank are nearest to no patch of a few strips."""
        return _to_npz(compressed=True, kind=np.array(self.kind), sums=self.sums, counts=self.counts)

    @classmethod
    def from_bytes(cls, body: bytes) -> "ProfileSums":
        """What `to_bytes` gave."""
        arrays = _from_npz(body)
        return cls(_kind(arrays), arrays["sums"], arrays["counts"])


@dataclass(frozen=True, eq=False)
class NominalProfile:
    """What nominal distance is expected at a place.

    Attributes:
        expected: float32; (R, 1) by row, (R, S) by position, (N,) by nearest vector.
        mean: of all nominal distances.
    """

    kind: Kind
    expected: NDArray[np.float32]
    mean: float

    def normalized(self, distances_hw: NDArray[np.float32], nearest_hw: NDArray[np.int64]) -> NDArray[np.float32]:
        """Distances as they would be if nominal strips were equally far from the bank everywhere: distances_hw.

        Args:
            distances_hw: of a strip that is not mirrored.
            nearest_hw: ids of the bank vectors that are nearest.
        """
        if self.mean == 0:  # every held-out patch is in the bank: no place is unlike another
            return distances_hw
        expected_hw: NDArray[np.floating[Any]]
        if self.kind == "neighborhood":
            expected_hw = self.expected[nearest_hw]
        else:
            rows, columns = distances_hw.shape
            rows_hR, columns_wS = (
                _interpolation(cells, bins) for cells, bins in zip((rows, columns), self.expected.shape, strict=True)
            )
            expected_hw = rows_hR @ self.expected @ columns_wS.T
        factor_hw = self.mean / np.maximum(expected_hw, LEAST_SHARE * self.mean)
        return (distances_hw * factor_hw).astype(np.float32)

    def grown(self, num_vectors: int) -> "NominalProfile":
        """For the bank with further vectors behind its own, of which nothing is known: the mean is expected there."""
        if self.kind != "neighborhood":
            return self
        unknown = np.full(num_vectors - len(self.expected), self.mean, dtype=np.float32)
        return NominalProfile(self.kind, np.concatenate([self.expected, unknown]), self.mean)

    def to_bytes(self) -> bytes:
        """The bytes of profile.npz; the same profile gives the same bytes."""
        return _to_npz(kind=np.array(self.kind), expected=self.expected, mean=np.array(self.mean))

    @classmethod
    def from_bytes(cls, body: bytes, kind: str, num_vectors: int) -> "NominalProfile":
        """Reads profile.npz, whose digest the bank has checked.

        Args:
            kind: `scoring.normalization` of the bank.
            num_vectors: of the bank.

        Raises:
            ConfigError: no profile, or not one of such a bank.
        """
        try:
            arrays = _from_npz(body)
            found = cls(_kind(arrays), arrays["expected"], float(arrays["mean"]))
        except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile):
            raise ConfigError(f"{PROFILE_FILE}: not a profile of nominal distances: rebuild the bank") from None
        wanted = ProfileSums.empty(found.kind, num_vectors).sums.shape
        if found.kind != kind or found.expected.shape != wanted:
            raise ConfigError(
                f"{PROFILE_FILE}: a profile by {found.kind} of shape {found.expected.shape}, not one by {kind} "
                f"for {num_vectors} vectors: it is of another bank, rebuild this one"
            )
        return found


def _shares(cells: int, bins: int) -> NDArray[np.float64]:
    """shares_hR: how much of each of `cells` equal parts of an edge lies in each of `bins` equal parts of it."""
    starts, ends = np.arange(cells) / cells, np.arange(1, cells + 1) / cells
    lows, highs = np.arange(bins) / bins, np.arange(1, bins + 1) / bins
    overlap_hR = np.minimum(ends[:, None], highs) - np.maximum(starts[:, None], lows)
    shares_hR: NDArray[np.float64] = np.maximum(overlap_hR, 0) * cells
    return shares_hR


def _interpolation(cells: int, bins: int) -> NDArray[np.float64]:
    """weights_hR of the bins in a value at the middle of each cell: linear between the middles of two bins."""
    middles_h, middles_R = (np.arange(cells) + 0.5) / cells, (np.arange(bins) + 0.5) / bins
    return np.stack([np.interp(middles_h, middles_R, unit_R) for unit_R in np.eye(bins)], axis=1)


def _kind(arrays: dict[str, NDArray[Any]]) -> Kind:
    kinds: tuple[Kind, ...] = ("row", "position", "neighborhood")
    [kind] = [kind for kind in kinds if kind == str(arrays["kind"])]
    return kind


def _to_npz(*, compressed: bool = False, **arrays: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    save: Callable[..., None] = np.savez_compressed if compressed else np.savez
    save(buffer, **arrays)
    return buffer.getvalue()


def _from_npz(body: bytes) -> dict[str, NDArray[Any]]:
    with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
        return dict(arrays)
