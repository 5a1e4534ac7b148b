"""Generated strips are the same everywhere, and their defects show where the mask says."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from steelray.demo.synthetic import DEFECTS, SIZE_PX, make_strip
from steelray.imaging.decode import decode

SMALL = (64, 400)


def test_a_strip_looks_like_a_strip() -> None:
    strip = make_strip(0, 0)
    assert strip.pixels_HW.shape == SIZE_PX
    assert strip.pixels_HW.dtype == np.uint8
    assert strip.defect is None
    assert not strip.mask_HW.any()
    assert 80 < make_strip(0, 0, brightness=110).pixels_HW.mean() < 140


def test_the_same_arguments_give_the_same_strip_in_another_process() -> None:
    make = "make_strip(3, 5, defect='scratch', size_px=(64, 400)).pixels_HW.tobytes()"
    script = f"from steelray.demo.synthetic import make_strip; import sys; sys.stdout.buffer.write({make})"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    assert answer == make_strip(3, 5, defect="scratch", size_px=(64, 400)).pixels_HW.tobytes()


def test_seed_and_index_make_different_strips() -> None:
    strips = [make_strip(seed, index, size_px=SMALL).pixels_HW for seed in (0, 1) for index in (0, 1)]
    assert all(not np.array_equal(a, b) for i, a in enumerate(strips) for b in strips[:i])


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_stands_out_from_what_surrounds_its_mask(defect: str) -> None:
    for index in range(15):
        strip = make_strip(1, index, defect=defect, size_px=SMALL)
        assert strip.defect == defect
        assert 0.0001 < strip.mask_HW.mean() < 0.35, index
        near_HW, edge_HW = (ndimage.binary_dilation(strip.mask_HW, iterations=count) for count in (6, 1))
        grey_HW = strip.pixels_HW.astype(float)
        around_HW = near_HW & ~edge_HW & (grey_HW > 5)
        contrast_HW = np.abs(grey_HW - np.median(grey_HW[around_HW]))
        assert contrast_HW[strip.mask_HW].mean() > 3 * contrast_HW[around_HW].mean(), index


def test_some_strips_have_a_black_margin() -> None:
    margins = [make_strip(0, index, size_px=SMALL).pixels_HW[:, :20].max() < 10 for index in range(40)]
    assert 2 <= sum(margins) <= 16


def test_a_jpeg_of_a_strip_decodes_to_it() -> None:
    strip = make_strip(0, 1, size_px=SMALL)
    assert np.abs(decode(strip.jpeg())[:, :, 0].astype(int) - strip.pixels_HW).mean() < 4
