"""Find the bank vectors that only one strip has: defects among the nominal strips, which no one has sorted out.

A greedy coreset picks the farthest patches first, so a defect is in the bank and hides every later one of its kind. A
vector is a suspect if both hold:

1. It is far from all patches of all other strips (its distance), compared with the farthest vectors of the other
   strips. The usual distance of its own strip is subtracted first: a strip that is unlike the others as a whole has a
   new finish, not a defect.
2. It is as far from nearly all of its own strip. A finish on a part of a strip repeats itself there.

A defect on a strip with a new finish is found only if it is much farther from the other strips than the finish.

In the spirit of SoftPatch (Jiang et al. 2022) and InReaCh (McIntosh and Albu 2023). Their measures relative to the
local density find fewer of the defects here (`benchmarks/contamination.py` judges the whole).

Shapes: M bank vectors, P patches of one image, D dimensions, U patches that sample an image, S strips.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from steelray.patchcore.config import OWN_STRIP_MARGIN_CELLS

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

MIN_STRIPS = 8
"""Fewest strips with vectors of their own that are judged; among fewer, many nominal patches are unique."""
SPREADS = 3.0
"""Number of spreads above the median of the strips at which a vector is a suspect."""
LEAST_SPREAD = 0.05
"""Least spread, as a share of the strips' median distance: strips that are nearly copies differ by noise only."""
OWN_FRACTION = 0.025
"""Share of its own image that a vector must resemble to be a finish. A larger defect that repeats itself stays too."""
SAMPLE = 64
"""Patches by which the usual distance of an image is measured, evenly spaced over its grid."""
CHUNK_VALUES = 2**24
"""Distances of one matrix product, which bounds the memory."""
MAX_SHOWN, MAX_SHOWN_PER_STRIP = 40, 4
"""Most suspects that are listed for a person; all are dropped."""
APART_CELLS = 4
"""Suspects of a strip that are listed lie farther apart than this, so that each shows another place."""


@dataclass(frozen=True)
class Suspect:
    """A patch of a nominal strip that no other strip has.

    Attributes:
        grid_row, grid_column: of the patch grid, as in the bank's origins.
        distance: to the nearest patch of any other strip.
    """

    image_key: str
    grid_row: int
    grid_column: int
    distance: float


@dataclass(frozen=True)
class Comparison:
    """Bank vectors compared with the patches of other strips.

    Attributes:
        nearest_M: distance of each vector to the nearest patch of other strips; infinite if there are none.
        usual: distances of an image's sample patches to the nearest vector of other strips, by image index.
    """

    nearest_M: Floats
    usual: dict[int, Floats]


class Patches(Protocol):
    """The embeddings of all nominal images, by image index, wherever they lie."""

    def compare(self, vectors_MD: Floats, strips_M: Ids, strip_of: Sequence[int]) -> Comparison:
        """Compare bank vectors with the patches of other strips.

        Args:
            strips_M: strip that each vector comes from.
            strip_of: strip of each image, by image index.
        """

    def own_distances(self, origins_M3: NDArray[np.int32]) -> Floats:
        """Return the distance of each of these patches to the `OWN_FRACTION` of its own image that is nearest."""


def judge(
    patches: Patches, vectors_MD: Floats, origins_M3: NDArray[np.int32], strips: Sequence[str]
) -> tuple[Ids, Floats]:
    """Find the suspects among bank vectors.

    Args:
        strips: the strip of each image, by image index.

    Returns:
        Rising rows of the suspects and their distances; none if there are too few strips to judge. At least half of the
        strips keep all of their vectors.
    """
    strip_of = np.unique(np.array(strips), return_inverse=True)[1]
    if len(np.unique(strip_of)) < MIN_STRIPS:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    strips_M = strip_of[origins_M3[:, 0]]
    compared = patches.compare(vectors_MD, strips_M, strip_of.tolist())
    excess_M, limit = exceeding(compared, strips_M, strip_of)
    rows = np.flatnonzero(excess_M > limit)
    if len(rows):
        usual_M = compared.nearest_M[rows] - excess_M[rows]
        rows = rows[patches.own_distances(origins_M3[rows]) - usual_M > limit]
    return rows, compared.nearest_M[rows]


def exceeding(compared: Comparison, strips_M: Ids, strip_of: Ids) -> tuple[Floats, float]:
    """Return by how much each vector's distance exceeds the usual one of its strip, and the limit of that excess.

    The limit follows from the largest excess of every strip, so that it hardly depends on the size of the bank. Strips
    without a vector, or with a copy, do not count; if too few others are left, the limit is infinite.
    """
    usual_S = np.zeros(int(strip_of.max()) + 1, np.float32)
    for strip in range(len(usual_S)):
        samples = [compared.usual[int(image)] for image in np.flatnonzero(strip_of == strip)]
        usual_S[strip] = np.median(np.concatenate(samples))
    excess_M = compared.nearest_M - usual_S[strips_M]
    largest_S, farthest_S = (np.full(len(usual_S), -np.inf, np.float32) for _ in range(2))
    np.maximum.at(largest_S, strips_M, excess_M)
    np.maximum.at(farthest_S, strips_M, compared.nearest_M)
    counts_S = (farthest_S > 0) & np.isfinite(farthest_S) & np.isfinite(largest_S)
    if counts_S.sum() < MIN_STRIPS:
        return excess_M, np.inf
    middle = float(np.median(largest_S[counts_S]))
    spread = 1.4826 * float(np.median(np.abs(largest_S[counts_S] - middle)))  # a Gaussian's standard deviation
    spread = max(spread, LEAST_SPREAD * float(np.median(farthest_S[counts_S])))
    return excess_M, middle + SPREADS * spread


def shown(suspects: Sequence[Suspect]) -> tuple[Suspect, ...]:
    """Return the suspects to list for a person, farthest first: a few places of each strip."""
    chosen: list[Suspect] = []
    for suspect in sorted(suspects, key=lambda one: (-one.distance, one.image_key, one.grid_row, one.grid_column)):
        same = [other for other in chosen if other.image_key == suspect.image_key]
        apart = all(
            max(abs(other.grid_row - suspect.grid_row), abs(other.grid_column - suspect.grid_column)) > APART_CELLS
            for other in same
        )
        if apart and len(same) < MAX_SHOWN_PER_STRIP:
            chosen.append(suspect)
        if len(chosen) == MAX_SHOWN:
            break
    return tuple(chosen)


class LocalPatches:
    """Embeddings of images in this process; `Patches` and a part of those of a cluster.

    Args:
        images: patches_PD of each image, by image index.
        columns: of each image's patch grid.
    """

    def __init__(self, images: Mapping[int, Floats], columns: Mapping[int, int]) -> None:
        self._images, self._columns = images, columns
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def compare(self, vectors_MD: Floats, strips_M: Ids, strip_of: Sequence[int]) -> Comparison:
        """Compare bank vectors with the patches of other strips, among these images only."""
        all_MD, places_M = torch.tensor(vectors_MD, device=self._device), torch.tensor(strips_M, device=self._device)
        nearest_M = torch.full((len(vectors_MD),), torch.inf, device=self._device)
        usual: dict[int, Floats] = {}
        for image, patches_PD in self._images.items():
            points_PD = torch.from_numpy(patches_PD).to(self._device)
            sample_U = torch.from_numpy(sampled(len(patches_PD))).to(self._device)
            usual_U = torch.full((len(sample_U),), torch.inf, device=self._device)
            for rows in _chunks(len(vectors_MD), len(patches_PD)):
                own_C = places_M[rows] == strip_of[image]
                squared_PC, noise_C = squared_distances(points_PD, all_MD[rows])
                least_C = squared_PC.amin(dim=0)
                least_C = least_C.masked_fill(least_C <= noise_C, 0.0).masked_fill(own_C, torch.inf)
                torch.minimum(nearest_M[rows], least_C, out=nearest_M[rows])
                to_others_UC = squared_PC[sample_U].masked_fill(own_C, torch.inf)
                torch.minimum(usual_U, to_others_UC.amin(dim=1), out=usual_U)
            usual[image] = usual_U.clamp_min(0).sqrt().cpu().numpy()
        return Comparison(nearest_M.sqrt().cpu().numpy(), usual)

    def own_distances(self, origins_M3: NDArray[np.int32]) -> Floats:
        """Return the distance of each of these patches to the `OWN_FRACTION` of its own image that is nearest.

        Patches within the margin overlap a patch and are ignored. The distance is NaN if the image is not one of these,
        and infinite if the image is too small.
        """
        distances_M = np.full(len(origins_M3), np.nan, np.float32)
        for image in np.unique(origins_M3[:, 0]).tolist():
            if image in self._images:
                of_image_M = origins_M3[:, 0] == image
                distances_M[of_image_M] = self._within(image, origins_M3[of_image_M, 1:].astype(np.int64))
        return distances_M

    def _within(self, image: int, cells_M2: Ids) -> Floats:
        """Return the distance of an image's patches at these rows and columns to the nearest tenth of the image."""
        points_PD, columns = torch.from_numpy(self._images[image]).to(self._device), self._columns[image]
        rank = max(1, int(OWN_FRACTION * len(points_PD)))
        place_P1 = torch.arange(len(points_PD), device=self._device)[:, None]
        row_M, column_M = torch.from_numpy(cells_M2).to(self._device).T
        parts = []
        for part in _chunks(len(cells_M2), len(points_PD)):
            row_C, column_C = row_M[part], column_M[part]
            squared_PC, _ = squared_distances(points_PD, points_PD[row_C * columns + column_C])
            near_PC = (place_P1 // columns - row_C).abs() <= OWN_STRIP_MARGIN_CELLS
            near_PC &= (place_P1 % columns - column_C).abs() <= OWN_STRIP_MARGIN_CELLS
            squared_PC[near_PC] = torch.inf
            parts.append(squared_PC.kthvalue(rank, dim=0).values.clamp_min(0).sqrt())
        distances_M: Floats = torch.cat(parts).cpu().numpy()
        return distances_M


def _chunks(count: int, num_patches: int) -> list[slice]:
    """Return the slices of so many vectors that are compared with an image's patches at once."""
    size = max(1, CHUNK_VALUES // num_patches)
    return [slice(start, start + size) for start in range(0, count, size)]


def sampled(count: int) -> Ids:
    """Return evenly spaced rows of an image's patches, at most `SAMPLE`."""
    return np.unique(np.linspace(0, count - 1, min(SAMPLE, count)).astype(np.int64))


def squared_distances(points_PD: torch.Tensor, vectors_CD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return squared_PC, and noise_C: a distance that is not larger is 0 but for rounding."""
    points_P, vectors_C = torch.linalg.vecdot(points_PD, points_PD), torch.linalg.vecdot(vectors_CD, vectors_CD)
    squared_PC = torch.addmm(vectors_C, points_PD, vectors_CD.T, alpha=-2.0).add_(points_P[:, None])
    return squared_PC, 32 * torch.finfo(squared_PC.dtype).eps * vectors_C


def merged(parts: Sequence[Comparison]) -> Comparison:
    """Merge comparisons with the images of several shards."""
    nearest_M = np.min([part.nearest_M for part in parts], axis=0)
    return Comparison(nearest_M, {image: distances for part in parts for image, distances in part.usual.items()})
