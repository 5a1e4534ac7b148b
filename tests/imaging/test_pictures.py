import io
import time

import numpy as np
import pytest
from PIL import Image

from steelray.imaging import pictures


def _opened(data):
    return Image.open(io.BytesIO(data))


@pytest.fixture
def map_HW():
    rows, columns = np.mgrid[:64, :400]
    return np.exp(-((rows - 40) ** 2 + (columns - 300) ** 2) / 200).astype(np.float32)


def test_a_heatmap_is_transparent_where_nominal_and_opaque_where_worst(map_HW):
    image = _opened(pictures.heatmap_png(map_HW, lower=0.1, upper=1.0))
    assert (image.mode, image.size) == ("P", (400, 64))
    alpha_HW = np.asarray(image.convert("RGBA"))[..., 3]
    assert (alpha_HW[map_HW < 0.1] == 0).all()
    assert alpha_HW[40, 300] == alpha_HW.max() > 180
    order = np.argsort(map_HW[40, :300])
    assert (np.diff(alpha_HW[40, :300][order].astype(int)) >= 0).all()


def test_a_heatmap_takes_maps_that_are_flat_out_of_range_or_not_finite(map_HW):
    map_HW = map_HW.copy()
    map_HW[0, 0] = np.nan
    map_HW[0, 1] = np.inf
    alpha_HW = np.asarray(_opened(pictures.heatmap_png(map_HW, 0.1, 0.5)).convert("RGBA"))[..., 3]
    assert alpha_HW[0, 0] == 0
    assert alpha_HW[0, 1] == alpha_HW.max()
    assert _opened(pictures.heatmap_png(np.zeros((8, 8)), 0.0, 0.0)).size == (8, 8)


def test_a_small_heatmap_is_shrunk_not_cropped(map_HW):
    full = pictures.heatmap_png(map_HW, 0.1, 1.0)
    small = pictures.heatmap_png(map_HW, 0.1, 1.0, width_px=100, levels=16)
    image = _opened(small)
    assert image.size == (100, 16)
    assert len(small) < len(full) / 4
    assert len(np.unique(np.asarray(image))) <= 16
    alpha_HW = np.asarray(image.convert("RGBA"))[..., 3]
    assert np.unravel_index(alpha_HW.argmax(), alpha_HW.shape) == pytest.approx((10, 75), abs=1)


def test_a_heatmap_of_a_strip_takes_milliseconds():
    map_HW = np.random.default_rng(0).random((256, 1600), dtype=np.float32)
    seconds = []
    for _ in range(5):
        start_s = time.thread_time()  # other work on the machine does not count
        pictures.heatmap_png(map_HW, 0.2, 1.0)
        seconds.append(time.thread_time() - start_s)
    assert min(seconds) < 0.06  # noise is the worst case; smooth maps take 5 ms


@pytest.mark.parametrize("channels", [1, 3])
def test_a_thumbnail_keeps_the_proportions(channels):
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (256, 1600, channels), dtype=np.uint8)
    image = _opened(pictures.strip_thumbnail(pixels_HWC, 800))
    assert (image.format, image.size) == ("JPEG", (800, 128))
    assert image.mode == ("L" if channels == 1 else "RGB")
    assert _opened(pictures.strip_thumbnail(pixels_HWC, 5000)).size == (1600, 256)


def test_grey_stored_as_rgb_becomes_a_grey_jpeg():
    grey_HW1 = np.random.default_rng(0).integers(0, 256, (32, 200, 1), dtype=np.uint8)
    assert _opened(pictures.strip_thumbnail(np.repeat(grey_HW1, 3, axis=2), 100)).mode == "L"


def test_the_worst_patch_is_found_and_cut_out_whole(map_HW):
    assert pictures.worst_patch_center(map_HW, (64, 400)) == (40, 300)
    assert pictures.worst_patch_center(map_HW, (256, 1600)) == (162, 1202)
    pixels_HWC = np.zeros((256, 1600, 1), np.uint8)
    pixels_HWC[:20, 1580:] = 255
    corner = _opened(pictures.patch_jpeg(pixels_HWC, (0, 1599), side_px=40))
    assert corner.size == (40, 40)
    assert np.asarray(corner)[:19, 21:].min() > 200
    assert np.asarray(corner)[22:, :18].max() < 60
    assert _opened(pictures.patch_jpeg(pixels_HWC[:30], (15, 800), side_px=64)).size == (64, 30)


def test_a_contact_sheet_shows_each_strip_twice_once_under_its_heatmap(map_HW):
    pixels_HWC = np.full((64, 400, 1), 90, np.uint8)
    items = [(f"line1/strip_{n}.jpg", 2.0 - n / 10, pixels_HWC, map_HW) for n in range(6)]
    one, six = (_opened(pictures.contact_sheet(items[:n], 0.1, 1.0)) for n in (1, 6))
    assert six.format == "PNG"
    assert six.width == one.width > 2 * pictures.SHEET_STRIP_WIDTH_PX
    assert six.height > one.height + 5 * 128
    pixels = np.asarray(one.convert("RGB")).astype(int)
    colored = np.ptp(pixels, axis=2) > 60
    strip_rows = slice(60, 60 + 120)
    assert not colored[strip_rows, : one.width // 2].any()
    assert colored[strip_rows, one.width // 2 :].any()


@pytest.mark.parametrize("shape", [(900, 900, 3), (16, 3000, 1), (1, 1, 1)])
def test_a_contact_sheet_takes_images_of_any_shape_and_keys_of_any_length(shape):
    key = "camera 1/<script>\n\u65e5\u672c" + "x" * 400
    pixels_HWC = np.zeros(shape, np.uint8)
    sheet = _opened(pictures.contact_sheet([(key, 1.0, pixels_HWC, np.zeros(shape[:2]))], 0.0, 1.0))
    assert sheet.height < pictures.SHEET_STRIP_MAX_HEIGHT_PX + 200


def test_no_strips_make_an_empty_sheet():
    assert _opened(pictures.contact_sheet([], 0.0, 1.0)).height < 100


def test_the_pictures_of_a_gallery_are_small_and_show_the_worst_place(map_HW):
    pixels_HWC = np.random.default_rng(0).integers(90, 120, (256, 1600, 1), dtype=np.uint8)
    center_px = pictures.worst_patch_center(map_HW, (256, 1600))
    assert center_px == (162, 1202)
    strip, patch = pictures.strip_thumbnail(pixels_HWC), pictures.patch_jpeg(pixels_HWC, center_px)
    overlay = pictures.heatmap_png(map_HW, 0.1, 1.0, width_px=400, levels=24)
    assert _opened(strip).size == (800, 128)
    assert _opened(overlay).size == (400, 64)
    assert _opened(patch).size == (96, 96)
    assert len(strip) + len(overlay) + len(patch) < 25_000
