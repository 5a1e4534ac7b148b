"""Where the strip is in the image: black margins beside the steel are background."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def foreground_cells(image_HWC: NDArray[np.uint8], grid: tuple[int, int], background_level: int) -> NDArray[np.bool_]:
    """Which cells of a patch grid show steel, or touch a cell that does: defects on the strip's edge are kept.

    Args:
        grid: rows and columns of the patch grid.
        background_level: a cell whose brightest pixel is no brighter than this shows none.
    """
    brightest_HW = image_HWC.max(axis=2)
    # the first pixel of every cell: sizes that the grid does not divide give cells of two sizes
    tops, lefts = (np.arange(cells) * size // cells for cells, size in zip(grid, brightest_HW.shape, strict=True))
    brightest_hw = np.maximum.reduceat(np.maximum.reduceat(brightest_HW, tops, axis=0), lefts, axis=1)
    steel_hw: NDArray[np.bool_] = ndimage.binary_dilation(brightest_hw > background_level, np.ones((3, 3), dtype=bool))
    return steel_hw
