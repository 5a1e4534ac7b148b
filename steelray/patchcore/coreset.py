"""Exact greedy k-center selection over any shards, in a few dense passes (PatchCore, algorithm 1; Gonzalez 1985).

The textbook loop walks all N points once per pick. Distances to the selected set only ever fall, so the same picks can
be found in rounds:

1. Take the T points that are farthest from the selected set, and τ, the smallest distance among them. No point outside
   this working set can be farther than τ until the round ends.
2. Run the textbook loop inside the working set while its farthest point lies beyond τ.
3. Update all N points against the round's picks with one matrix product per chunk of rows.

Every shard offers its own T farthest points and the coordinator keeps the T farthest of all, so the working set, and
with it every pick, is the same for any number of shards. Ties go to the lowest global index.

Shapes: N points, D dimensions, M centres, T candidates, B picks of one round.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

CANDIDATES = 8192
"""T. A larger working set means fewer passes over all points but more work per pick."""
CHUNK_ROWS = 8192
"""Rows of one matrix product. Memory beyond the embeddings is CHUNK_ROWS * B floats for any N and M."""
MAX_ROUND_PICKS = 2048
"""Most picks of a round, which bounds the memory of step 3."""

Progress = Callable[[int, int, float], None]
"""Takes the picks so far, the picks asked for and the cover radius reached. Called once a second and at the end."""


@dataclass(frozen=True)
class Candidates:
    """A shard's farthest points, by falling distance, then by rising index."""

    squared_distances_T: torch.Tensor
    indices_T: torch.Tensor
    """Global indices, int64."""
    embeddings_TD: torch.Tensor


@dataclass(frozen=True)
class Coreset:
    """A selection and how well it covers all points."""

    indices_M: torch.Tensor
    """int64, in the order of the picks."""
    cover_radius: float
    """Largest distance of any point to its nearest centre."""
    num_rounds: int


class Shard(Protocol):
    """A slice of the points: a `CoresetShard` in this process, or one in an actor of `steelray.cluster`."""

    def points(self, indices_B: torch.Tensor) -> torch.Tensor:
        """Return the points at those of the global indices that lie in this shard, in the given order: (≤B, D)."""

    def candidates(self, count: int, centers_BD: torch.Tensor, picked_B: torch.Tensor) -> Candidates:
        """Update every point's distance with new centres, mark picked points and return the farthest `count`."""


class CoresetShard:
    """A slice of the points with their squared distance to the nearest centre so far.

    Args:
        embeddings_ND: float32 or float64, finite.
        indices_N: rising global indices; None counts from 0.

    Raises:
        ValueError: not a matrix, or a value that is not finite (the first such row is named).
    """

    def __init__(self, embeddings_ND: torch.Tensor, indices_N: torch.Tensor | None = None) -> None:
        if embeddings_ND.ndim != 2:
            raise ValueError(f"embeddings must have two axes, points and dimensions, not {embeddings_ND.ndim}")
        count, device = len(embeddings_ND), embeddings_ND.device
        self.embeddings_ND = embeddings_ND
        self.indices_N = torch.arange(count, device=device) if indices_N is None else indices_N.to(device)
        self.squared_norms_N = torch.empty(count, dtype=embeddings_ND.dtype, device=device)
        for start in range(0, count, CHUNK_ROWS):
            rows_CD = embeddings_ND[start : start + CHUNK_ROWS]
            self.squared_norms_N[start : start + CHUNK_ROWS] = torch.linalg.vecdot(rows_CD, rows_CD)
        finite_N = torch.isfinite(self.squared_norms_N)
        if not bool(finite_N.all()):
            row = int(self.indices_N[int((~finite_N).to(torch.int8).argmax())])
            raise ValueError(f"embedding {row} is not finite (or too large): check the images and the weights")
        self.squared_distances_N = torch.full((count,), math.inf, dtype=embeddings_ND.dtype, device=device)

    def points(self, indices_B: torch.Tensor) -> torch.Tensor:
        indices_B = indices_B.to(self.indices_N.device)
        if len(self.indices_N) == 0:
            return self.embeddings_ND[:0]
        rows_B = torch.searchsorted(self.indices_N, indices_B).clamp_(max=len(self.indices_N) - 1)
        return self.embeddings_ND[rows_B[self.indices_N[rows_B] == indices_B]]

    def candidates(self, count: int, centers_BD: torch.Tensor, picked_B: torch.Tensor) -> Candidates:
        device = self.embeddings_ND.device
        self._update(centers_BD.to(device))
        if len(self.indices_N) == 0:
            return Candidates(self.squared_distances_N, self.indices_N, self.embeddings_ND)
        picked_B = picked_B.to(device)
        rows_B = torch.searchsorted(self.indices_N, picked_B).clamp_(max=len(self.indices_N) - 1)
        # −1 lies below every distance, so a picked point is never picked again, not even among duplicates
        self.squared_distances_N[rows_B[self.indices_N[rows_B] == picked_B]] = -1.0
        rows_T = farthest(self.squared_distances_N, count)
        return Candidates(self.squared_distances_N[rows_T], self.indices_N[rows_T], self.embeddings_ND[rows_T])

    def _update(self, centers_BD: torch.Tensor) -> None:
        if len(centers_BD) == 0:
            return
        center_norms_B = torch.linalg.vecdot(centers_BD, centers_BD)
        for start in range(0, len(self.embeddings_ND), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            # |x|² + |c|² − 2x·c; |x|² is the same for every centre and is added after the minimum
            partial_CB = torch.addmm(center_norms_B, self.embeddings_ND[rows], centers_BD.T, alpha=-2.0)
            nearest_C, which_C = partial_CB.min(dim=1)
            norms_C = self.squared_norms_N[rows]
            nearest_C = nearest_C + norms_C
            # a distance below the rounding error of the expansion means a duplicate of the centre
            noise_C = 16 * torch.finfo(nearest_C.dtype).eps * (norms_C + center_norms_B[which_C])
            nearest_C[nearest_C <= noise_C] = 0.0
            torch.minimum(self.squared_distances_N[rows], nearest_C, out=self.squared_distances_N[rows])


def farthest(squared_distances_N: torch.Tensor, count: int) -> torch.Tensor:
    """Return the rows of the `count` largest distances, largest first; `topk` alone does not order ties by row."""
    count = min(count, len(squared_distances_N))
    edge = torch.topk(squared_distances_N, count, sorted=True).values[-1]
    above = torch.nonzero(squared_distances_N > edge).flatten()
    at_edge = torch.nonzero(squared_distances_N == edge).flatten()[: count - len(above)]
    rows = torch.cat([above, at_edge]).sort().values
    return rows[torch.sort(squared_distances_N[rows], descending=True, stable=True).indices]


def _merge(offers: Sequence[Candidates], count: int) -> Candidates:
    """Return the `count` farthest points of all shards' offers, in order."""
    offers = [offer for offer in offers if len(offer.indices_T)] or offers[:1]
    if len(offers) == 1:
        return offers[0]
    distances = torch.cat([offer.squared_distances_T for offer in offers])
    indices = torch.cat([offer.indices_T for offer in offers])
    by_index = torch.argsort(indices)
    order = by_index[torch.sort(distances[by_index], descending=True, stable=True).indices][:count]
    embeddings = torch.cat([offer.embeddings_TD for offer in offers])
    return Candidates(distances[order], indices[order], embeddings[order])


def _greedy_within(
    candidates: Candidates, floor: float, max_picks: int, stop_at: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the textbook loop inside the working set while its farthest point lies beyond `floor`.

    Returns:
        Global indices of the picks, and their embeddings.
    """
    # max returns the first of equals: in the order of global indices, ties go to the lowest
    order = torch.argsort(candidates.indices_T)
    indices_T, points_TD = candidates.indices_T[order], candidates.embeddings_TD[order].contiguous()
    start_T = candidates.squared_distances_T[order]
    distances_T = start_T.clone()
    norms_T = torch.linalg.vecdot(points_TD, points_TD)
    noise_T = 16 * torch.finfo(norms_T.dtype).eps * norms_T
    picks: list[torch.Tensor] = []
    while len(picks) < max_picks:
        value, row = distances_T.max(dim=0)
        distance = float(value)  # on a GPU, the one synchronisation per pick
        if distance < floor or distance <= stop_at:
            break
        # points outside the set may tie at the floor; only a point that started at it has a lower index than those
        if distance == floor and float(start_T[row]) > floor:
            break
        picks.append(row)
        center_D = points_TD[row]
        to_center_T = torch.addmv(norms_T + norms_T[row], points_TD, center_D, alpha=-2.0)
        to_center_T[to_center_T <= noise_T + noise_T[row]] = 0.0
        torch.minimum(distances_T, to_center_T, out=distances_T)
        distances_T[row] = -1.0
    rows = torch.stack(picks) if picks else torch.empty(0, dtype=torch.int64, device=points_TD.device)
    return indices_T[rows], points_TD[rows]


def select(
    shards: Sequence[Shard],
    num_centers: int,
    *,
    start_index: int = 0,
    centers_KD: torch.Tensor | None = None,
    cover_radius: float = 0.0,
    num_candidates: int = CANDIDATES,
    progress: Progress | None = None,
    gather: Callable[[int, torch.Tensor, torch.Tensor], Sequence[Candidates]] | None = None,
) -> Coreset:
    """Select centres over shards by greedy k-center.

    Args:
        num_centers: picks to make, besides `centers_KD`.
        start_index: global index of the first pick; unused if there are centres to continue from.
        centers_KD: existing centres; the selection continues from them.
        cover_radius: stop as soon as every point lies within this distance of a centre; 0: no such limit.
        gather: calls `candidates` of all shards at once (actors); None: one after the other.

    Raises:
        ValueError: `start_index` names no point.
    """
    if gather is None:

        def gather(count: int, centers: torch.Tensor, picked: torch.Tensor) -> Sequence[Candidates]:
            return [shard.candidates(count, centers, picked) for shard in shards]

    stop_at = cover_radius**2
    chosen: list[torch.Tensor] = []
    num_chosen = 0
    if centers_KD is None:
        picked_B = torch.tensor([start_index])
        found = [points_BD.cpu() for shard in shards if len(points_BD := shard.points(picked_B))]
        if [len(points_BD) for points_BD in found] != [1]:
            raise ValueError(f"start_index {start_index} names {sum(map(len, found))} points, not one")
        [centers_BD] = found
        chosen.append(picked_B)
        num_chosen = 1
    else:
        picked_B = torch.empty(0, dtype=torch.int64)
        centers_BD = centers_KD
    last_progress_s, rounds = 0.0, 0
    while True:
        for start in range(0, max(1, len(centers_BD)), MAX_ROUND_PICKS):  # there may be many existing centres
            last = start + MAX_ROUND_PICKS >= len(centers_BD)
            part_BD = centers_BD[start : start + MAX_ROUND_PICKS]
            offers = gather(num_candidates if last else 1, part_BD, picked_B if last else picked_B[:0])
        working = _merge(offers, num_candidates)
        rounds += 1
        radius_squared = float(working.squared_distances_T[0]) if len(working.indices_T) else -1.0
        radius = math.sqrt(max(radius_squared, 0.0))
        done = num_chosen >= num_centers or radius_squared < 0 or radius_squared <= stop_at
        if progress is not None and (done or time.monotonic() - last_progress_s > 1):
            last_progress_s = time.monotonic()
            progress(num_chosen, num_centers, radius)
        # without a radius, duplicates (at distance 0) fill up the count, lowest index first
        if num_chosen >= num_centers or radius_squared < 0 or (cover_radius > 0 and radius_squared <= stop_at):
            break
        floor = float(working.squared_distances_T[-1]) if len(working.indices_T) == num_candidates else -0.5
        budget = min(num_centers - num_chosen, MAX_ROUND_PICKS)
        picked_B, centers_BD = _greedy_within(working, floor, budget, stop_at if cover_radius > 0 else -0.5)
        chosen.append(picked_B.cpu())
        num_chosen += len(picked_B)
    return Coreset(torch.cat(chosen) if chosen else torch.empty(0, dtype=torch.int64), radius, rounds)


def greedy_coreset(
    embeddings_ND: torch.Tensor,
    num_centers: int | None = None,
    *,
    start_index: int = 0,
    ratio: float | None = None,
    cover_radius: float = 0.0,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Return the indices of the greedy k-center selection, in the order of the picks: int64, on the CPU.

    The picks are those of the textbook loop from `start_index`. The selection runs on the device of `embeddings_ND` and
    takes CHUNK_ROWS x MAX_ROUND_PICKS values of memory beyond it. The first limit reached (count, ratio or cover
    radius) ends it. Exact duplicates are picked only when nothing else is left, lowest index first.

    Raises:
        ValueError: no limit given, fewer points than centres, a start outside the points, values that are not finite.
    """
    count = len(embeddings_ND)
    limit = num_centers_of(count, num_centers, ratio, cover_radius)
    if not 0 <= start_index < count:
        raise ValueError(f"start_index {start_index} is outside the {count} embeddings")
    shard = CoresetShard(embeddings_ND)
    return select([shard], limit, start_index=start_index, cover_radius=cover_radius, progress=progress).indices_M


def num_centers_of(count: int, num_centers: int | None, ratio: float | None, cover_radius: float | None) -> int:
    """Return the number of picks that the given limits allow among `count` points.

    Raises:
        ValueError: there is no limit, or more centres than points are asked for.
    """
    if count == 0:
        raise ValueError("there are 0 embeddings: nothing to select from")
    if num_centers is None and ratio is None and not cover_radius:
        raise ValueError("give num_centers, ratio or cover_radius")
    if num_centers is not None and not 1 <= num_centers <= count:
        raise ValueError(f"num_centers is {num_centers} but there are {count} embeddings")
    limits = [count]
    if num_centers is not None:
        limits.append(num_centers)
    if ratio is not None:
        limits.append(max(1, round(ratio * count)))
    return min(limits)
