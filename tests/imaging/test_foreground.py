"""Foreground: margins are background, the strip's edge is not."""

import numpy as np
import pytest

from steelray.imaging.foreground import foreground_cells


def test_a_black_margin_is_background_up_to_one_cell_beside_the_steel() -> None:
    image_HWC = np.full((32, 80, 1), 90, dtype=np.uint8)
    image_HWC[:, :40] = 4
    cells_hw = foreground_cells(image_HWC, (4, 10), background_level=12)
    assert cells_hw.dtype == bool
    assert cells_hw.tolist() == [[False] * 4 + [True] * 6] * 4


@pytest.mark.parametrize(("grey", "expected"), [(0, False), (12, False), (13, True)])
def test_an_image_of_one_grey_is_all_or_nothing(grey: int, expected: bool) -> None:
    image_HWC = np.full((30, 50, 3), grey, dtype=np.uint8)
    assert (foreground_cells(image_HWC, (4, 7), background_level=12) == expected).all()


def test_a_single_bright_pixel_keeps_its_cell_in_any_channel() -> None:
    image_HWC = np.zeros((20, 30, 3), dtype=np.uint8)
    image_HWC[19, 29, 1] = 200
    cells_hw = foreground_cells(image_HWC, (2, 3), background_level=12)
    assert cells_hw.tolist() == [[False, True, True], [False, True, True]]
