"""Coreset selection: steelray's rounds against the textbook loop and against anomalib's KCenterGreedy.

One pick of either loop costs the same as any other: a pass over all points. Where a whole selection would take too
long, it is timed over a few picks, three times, and multiplied; `measured_picks` says over how many.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.data import embeddings
from benchmarks.measuring import SCRATCH, ask_reference, timed
from steelray.job import num_cores
from steelray.patchcore.coreset import greedy_coreset

LEVELS = {64: (1, 2), 176: (1, 2, 3)}
SEGMENT_S = 6.0
"""About how long a piece of a loop is timed."""


def coreset(num_points: int, dim: int, ratio: float, *, reference: str, repeats: int = 3) -> dict[str, Any]:
    """One row: N points, D dimensions, M = ratio * N picks.

    Args:
        reference: what to ask anomalib for: `whole` selection, a `part` of it, or `none`.
    """
    torch.set_num_threads(num_cores())
    points_ND = embeddings(num_points, LEVELS[dim])
    count = round(ratio * num_points)
    everything = torch.from_numpy(points_ND)
    picks = torch.empty(0)

    def select() -> None:
        nonlocal picks
        picks = greedy_coreset(everything, count)

    ours = timed(select, repeats)
    row: dict[str, Any] = {
        "points": num_points,
        "dim": dim,
        "picks": count,
        "steelray": {**ours, "cover_radius": cover_radius(everything, everything[picks])},
    }
    for name, loop in (("textbook", difference_loop), ("textbook_matrix_vector", matrix_vector_loop)):
        row[name] = _extrapolated(loop, everything, count)
    if reference != "none":
        row["anomalib"] = _anomalib(points_ND, ratio, reference, everything)
    for name in ("textbook", "textbook_matrix_vector", "anomalib"):
        if name in row:
            row[name]["ratio"] = row[name]["seconds"] / ours["seconds"]
    return row


def difference_loop(points_ND: torch.Tensor, picks: int, start: int = 0) -> list[int]:
    """Gonzalez' loop as it is usually written: all differences to the newest centre, their norm, the minimum."""
    chosen = [start]
    distances_N = torch.linalg.norm(points_ND - points_ND[start], dim=1)
    while len(chosen) < picks:
        chosen.append(int(distances_N.argmax()))
        distances_N = torch.minimum(distances_N, torch.linalg.norm(points_ND - points_ND[chosen[-1]], dim=1))
    return chosen


def matrix_vector_loop(points_ND: torch.Tensor, picks: int, start: int = 0) -> list[int]:
    """The same loop at its best: norms kept, one matrix-vector product per pick, nothing of N x D is written."""
    norms_N = torch.linalg.vecdot(points_ND, points_ND)
    chosen, distances_N = [start], torch.full_like(norms_N, torch.inf)
    while True:
        center_D = points_ND[chosen[-1]]
        torch.minimum(
            distances_N, torch.addmv(norms_N, points_ND, center_D, alpha=-2) + center_D @ center_D, out=distances_N
        )
        if len(chosen) == picks:
            return chosen
        chosen.append(int(distances_N.argmax()))


def _extrapolated(loop: Any, points_ND: torch.Tensor, count: int) -> dict[str, Any]:
    start_s = time.perf_counter()
    loop(points_ND, 4)
    per_pick_s = (time.perf_counter() - start_s) / 4
    picks = int(min(count, max(5, SEGMENT_S / per_pick_s)))
    part = timed(lambda: loop(points_ND, picks))
    return {"seconds": part["seconds"] / picks * count, "measured_picks": picks, "measured_runs_s": part["runs_s"]}


def _anomalib(points_ND: NDArray[np.float32], ratio: float, reference: str, everything: torch.Tensor) -> dict[str, Any]:
    path, picked = SCRATCH / "points.npy", SCRATCH / "picked.npy"
    np.save(path, points_ND)
    picked.unlink(missing_ok=True)
    answer = ask_reference("coreset", path, ratio, reference, picked, SEGMENT_S)
    path.unlink()
    if picked.exists():
        rows = torch.from_numpy(np.load(Path(picked)))
        answer["cover_radius"] = cover_radius(everything, everything[rows])
    return answer


def cover_radius(points_ND: torch.Tensor, centers_MD: torch.Tensor) -> float:
    """Largest distance of a point to its nearest centre, by direct differences where it counts."""
    norms_M = torch.linalg.vecdot(centers_MD, centers_MD)
    nearest = torch.cat(
        [torch.addmm(norms_M, part, centers_MD.T, alpha=-2).argmin(dim=1) for part in points_ND.split(8192)]
    )
    return float(torch.linalg.norm(points_ND - centers_MD[nearest], dim=1).max())


CASES = {
    "50k-10pct": lambda: coreset(50_000, 176, 0.10, reference="part"),
    "200k-1pct": lambda: coreset(200_000, 176, 0.01, reference="whole"),
    "856k-1pct": lambda: coreset(856_000, 64, 0.01, reference="none"),
    "1M-0.5pct": lambda: coreset(1_000_000, 64, 0.005, reference="part"),
}
QUICK_CASES = {
    "50k-1pct": lambda: coreset(50_000, 176, 0.01, reference="part"),
    "200k-1pct": lambda: coreset(200_000, 64, 0.01, reference="none"),
}
