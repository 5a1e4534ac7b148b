"""Plant artificial defects of stated kind, size and contrast in nominal images, to see which of them a model finds.

Several defects stand in one image, so far apart that each can be judged alone. Everything follows from a seed.
Shapes: H height, W width, C channels of an image; h, w of a defect's box.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from steelray.imaging.decode import resize

KINDS = ("texture", "roughness", "spot", "scratch")
"""`texture`: a patch of another image or of generated noise, cut out by a noise mask; `roughness`: fine grain;
`spot`: a soft round stain; `scratch`: a line of `SCRATCH_WIDTH_PX` across the box."""
SIZES_PX = (16, 48, 120)
CONTRASTS = (8, 16, 32, 64, 128)
"""Root mean square of the change inside the defect, grey levels; clipping at black and white lowers it."""
REPEATS = 8
"""Defects of each kind, size and contrast."""
SCRATCH_WIDTH_PX = 3
GAP_PX = 64
"""Least distance of two defects: the embeddings between them see at most one."""
SEEN_PX = 32
"""Margin around a defect within which patches belong to it."""
MAX_TOGETHER = 6
"""Defects in one image: so few that none finds others like it, when a model takes a strip as its own reference."""
ATTEMPTS = 30

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, order=True)
class Defect:
    """A defect to plant; `top_px` and `left_px` place the square box of `size_px` that holds it."""

    kind: str
    size_px: int
    contrast: int
    number: int
    """Distinguishes defects of the same kind, size and contrast, and seeds the shape."""
    top_px: int = 0
    left_px: int = 0

    def box(self, margin_px: int = 0) -> tuple[int, int, int, int]:
        """Return top, left, bottom and right of the box with a margin around it, in pixels."""
        top, left, side = self.top_px - margin_px, self.left_px - margin_px, self.size_px + 2 * margin_px
        return top, left, top + side, left + side


def wanted_defects(size_px: tuple[int, int], kinds: Sequence[str] = KINDS, repeats: int = REPEATS) -> list[Defect]:
    """Return defects of every kind, size and contrast that fits an image of this height and width, not yet placed."""
    sizes = [side for side in SIZES_PX if side <= min(size_px)]
    return [Defect(*cell) for cell in product(kinds, sizes, CONTRASTS, range(repeats))]


def place_defects(
    defects: Sequence[Defect], sizes_px: Sequence[tuple[int, int]], seed: int = 0, max_rounds: int | None = None
) -> Iterator[tuple[int, list[Defect]]]:
    """Distribute defects over images, each at a random place, at least `GAP_PX` apart.

    Args:
        sizes_px: height and width of the images, which are used in turn, as often as it takes.
        max_rounds: passes over images, at most; small images hold few defects each, and the rest is left out.

    Yields:
        The image's index and its defects. Defects larger than an image are left to the next ones; those larger than
        all images are left out.
    """
    rng = np.random.default_rng(seed)
    smallest_px = max((min(size) for size in sizes_px), default=0)
    waiting = [defect for defect in defects if defect.size_px <= smallest_px]
    waiting = [waiting[place] for place in rng.permutation(len(waiting))]
    turn = num_rounds = 0
    while waiting and num_rounds != max_rounds:
        height_px, width_px = sizes_px[turn % len(sizes_px)]
        placed: list[Defect] = []
        left: list[Defect] = []
        for defect in waiting:
            room = len(placed) < MAX_TOGETHER and len(left) < ATTEMPTS
            one = _placed(defect, placed, (height_px, width_px), rng) if room else None
            (left if one is None else placed).append(one or defect)
        waiting = left
        if placed:
            num_rounds += 1
            yield turn % len(sizes_px), placed
        turn += 1


def _placed(
    defect: Defect, others: Sequence[Defect], size_px: tuple[int, int], rng: np.random.Generator
) -> Defect | None:
    rows, columns = (side - defect.size_px for side in size_px)
    if min(rows, columns) < 0:
        return None
    for _ in range(ATTEMPTS):
        moved = replace(defect, top_px=int(rng.integers(rows + 1)), left_px=int(rng.integers(columns + 1)))
        if not any(_overlap(moved.box(GAP_PX), other.box()) for other in others):
            return moved
    return None


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def plant(image_HWC: Pixels, defects: Sequence[Defect], foreign_HWC: Pixels) -> Pixels:
    """Return the image with its defects.

    Args:
        foreign_HWC: another image, the source of half of the textures.
    """
    planted_HWC = image_HWC.astype(np.float32)
    for defect in defects:
        top, left, bottom, right = defect.box()
        rng = np.random.default_rng([KINDS.index(defect.kind), defect.size_px, defect.number])
        window_hwC = planted_HWC[top:bottom, left:right]
        window_hwC += defect.contrast * _change(defect, window_hwC, foreign_HWC, rng)
    return np.clip(planted_HWC.round(), 0, 255).astype(np.uint8)


def _change(
    defect: Defect, window_hwC: NDArray[np.float32], foreign_HWC: Pixels, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return the change of a defect's box, 0 outside the defect and of root mean square 1 inside."""
    side = defect.size_px
    rows_hw, columns_hw = np.mgrid[:side, :side] - (side - 1) / 2
    if defect.kind == "scratch":
        angle = rng.uniform(0, np.pi)
        across_hw = columns_hw * np.sin(angle) - rows_hw * np.cos(angle)
        along_hw = np.hypot(rows_hw, columns_hw) <= side / 2
        alpha_hw = np.clip(SCRATCH_WIDTH_PX / 2 + 0.5 - np.abs(across_hw), 0, 1) * along_hw
        change_hwC = rng.choice([-1.0, 1.0]) * np.ones((side, side, 1))
    elif defect.kind == "spot":
        alpha_hw = np.exp(-((rows_hw**2 + columns_hw**2) / (2 * (side / 4) ** 2)))
        change_hwC = rng.choice([-1.0, 1.0]) * np.ones((side, side, 1))
    else:
        alpha_hw = noise_mask(side, rng)
        change_hwC = _roughness(side, rng) if defect.kind == "roughness" else _texture(window_hwC, foreign_HWC, rng)
    change_hwC = alpha_hw[..., None] * change_hwC
    inside_hw = alpha_hw > 0.5 * alpha_hw.max()
    rms = float(np.sqrt((change_hwC[inside_hw] ** 2).mean()))
    scaled_hwC: NDArray[np.float32] = (change_hwC / max(rms, 1e-6)).astype(np.float32)
    return scaled_hwC


def noise_mask(side_px: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return alpha_hw in [0, 1] of an irregular patch that about fills a square, with an edge of about a pixel."""
    noise_hw = ndimage.gaussian_filter(rng.standard_normal((side_px, side_px)), side_px / 8, mode="reflect")
    rows_hw, columns_hw = np.mgrid[:side_px, :side_px] - (side_px - 1) / 2
    radius_hw = np.hypot(rows_hw, columns_hw) / (side_px / 2)
    edge_hw = 0.75 + 0.25 * _standardised(noise_hw) - radius_hw
    return np.asarray(np.clip(0.5 + edge_hw * side_px / 4, 0, 1) * (radius_hw <= 1))


def _roughness(side_px: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return ndimage.gaussian_filter(rng.standard_normal((side_px, side_px)), rng.uniform(0.5, 1.5))[..., None]


def _texture(window_hwC: NDArray[np.float32], foreign_HWC: Pixels, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return what turns the window into a foreign texture: another image's, turned and resized, or noise."""
    side = len(window_hwC)
    if rng.random() < 0.5:
        frequencies_hw = np.maximum(np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)), 1 / side)
        spectrum_hw = np.fft.fft2(rng.standard_normal((side, side))) / frequencies_hw ** rng.uniform(0.5, 2.0)
        texture_hw = np.fft.ifft2(spectrum_hw).real
    else:
        cut = max(1, min(round(side * rng.uniform(0.4, 1.5)), *foreign_HWC.shape[:2]))
        top, left = (int(rng.integers(size - cut + 1)) for size in foreign_HWC.shape[:2])
        piece = np.rot90(foreign_HWC[top : top + cut, left : left + cut], int(rng.integers(1, 4)))
        texture_hw = resize(np.ascontiguousarray(piece), (side, side)).mean(axis=2, dtype=np.float64)
    own_hw = window_hwC.mean(axis=2, dtype=np.float64)
    return np.asarray((_standardised(texture_hw) - _standardised(own_hw))[..., None])


def _standardised(grey_hw: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((grey_hw - grey_hw.mean()) / max(float(grey_hw.std()), 1e-6))
