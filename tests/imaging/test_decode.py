"""Decoding of every kind of file that a plant's camera writes, and of files that are no images."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from steelray.config import DecodeConfig
from steelray.demo.synthetic import encode, make_strip
from steelray.imaging.decode import Undecodable, decode, resize
from steelray.schema import Status
from tests.awkward import bad_images, decompression_bomb, png

BAD_IMAGES = bad_images()


def gradient(height_px: int = 24, width_px: int = 40) -> NDArray[np.uint8]:
    """Return grey_HW that differs along both axes."""
    rows, columns = np.mgrid[:height_px, :width_px]
    return (40 + 4 * rows + 2 * columns).astype(np.uint8)


def colours(height_px: int = 24, width_px: int = 40) -> NDArray[np.uint8]:
    """Return rgb_HWC with three different channels."""
    grey = gradient(height_px, width_px)
    return np.stack([grey, 255 - grey, grey // 2], axis=2)


def saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def status_of(body: bytes, config: DecodeConfig | None = None) -> Status:
    with pytest.raises(Undecodable) as caught:
        decode(body, config)
    assert "\n" not in str(caught.value)
    return caught.value.status


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF"])
def test_lossless_images_come_back_exactly(image_format: str) -> None:
    assert np.array_equal(decode(encode(gradient(), image_format)), gradient()[:, :, None])
    assert np.array_equal(decode(encode(colours(), image_format)), colours())
    two_levels = np.where(gradient() > 90, 255, 0).astype(np.uint8)
    one_bit = saved(Image.fromarray(two_levels).convert("1"), image_format)
    assert np.array_equal(decode(one_bit), two_levels[:, :, None])
    palette = Image.fromarray((colours() // 64 * 64).astype(np.uint8)).quantize(256)
    assert palette.mode == "P"
    assert np.array_equal(decode(saved(palette, image_format)), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits", "group4"])
def test_compressed_tiff(compression: str) -> None:
    pixels = gradient() if compression != "group4" else np.where(gradient() > 90, 255, 0).astype(np.uint8)
    image = Image.fromarray(pixels)
    body = saved(image.convert("1") if compression == "group4" else image, "TIFF", compression=compression)
    assert np.array_equal(decode(body), pixels[:, :, None])


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_comes_back_closely(options: dict[str, object]) -> None:
    grey = decode(saved(Image.fromarray(gradient()), "JPEG", quality=95, **options))
    assert grey.shape == (24, 40, 1)
    assert np.abs(grey[:, :, 0].astype(int) - gradient()).max() <= 4
    rgb = decode(saved(Image.fromarray(colours()), "JPEG", quality=95, **options))
    assert rgb.shape == (24, 40, 3)
    assert np.abs(rgb.astype(int) - colours()).mean() < 3


def test_rgb_with_equal_channels_is_grey() -> None:
    assert np.array_equal(decode(encode(np.repeat(gradient()[:, :, None], 3, axis=2), "PNG")), gradient()[:, :, None])


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
@pytest.mark.parametrize(("white_level", "factor"), [(65535, 257), (4095, 16)])
def test_16_bit_grey_is_scaled_to_the_white_level(image_format: str, white_level: int, factor: int) -> None:
    body = encode(gradient().astype(np.uint16) * factor, image_format)
    expected = np.rint(gradient().astype(float) * factor * 255.0 / white_level)
    pixels = decode(body, DecodeConfig(white_level=white_level))
    assert pixels.dtype == np.uint8
    assert np.abs(pixels[:, :, 0] - expected).max() == 0


def test_16_bit_values_above_white_are_white() -> None:
    values = np.array([[0, 4095], [5000, 65535]], dtype=np.uint16)
    assert decode(encode(values, "PNG"), DecodeConfig(white_level=4095))[:, :, 0].tolist() == [[0, 255], [255, 255]]


def test_16_bit_big_endian_tiff() -> None:
    values = (gradient().astype(np.uint16) * 257).astype(">u2")
    image = Image.frombytes("I;16B", (40, 24), values.tobytes())
    assert np.array_equal(decode(saved(image, "TIFF")), gradient()[:, :, None])


def test_16_bit_rgb_png() -> None:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours().astype(np.uint16) * 257)
    assert np.array_equal(decode(png(40, 24, 16, 2, rows)), colours())


def test_float_tiff() -> None:
    assert np.array_equal(
        decode(saved(Image.fromarray(gradient().astype(np.float32) * 257), "TIFF")), gradient()[:, :, None]
    )
    broken = gradient().astype(np.float32)
    broken[0, 0] = np.nan
    assert status_of(saved(Image.fromarray(broken), "TIFF")) == Status.UNREADABLE


def test_transparency_is_dropped() -> None:
    alpha = Image.fromarray(gradient())
    grey, rgb = Image.fromarray(gradient()), Image.fromarray(colours())
    grey.putalpha(alpha)
    rgb.putalpha(alpha)
    assert np.array_equal(decode(saved(grey, "PNG")), gradient()[:, :, None])
    assert np.array_equal(decode(saved(rgb, "PNG")), colours())
    palette = Image.fromarray((colours() // 64 * 64).astype(np.uint8)).quantize(256)
    transparent = saved(palette, "PNG", transparency=bytes(range(100)))
    assert np.array_equal(decode(transparent), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_cmyk(image_format: str) -> None:
    image = Image.fromarray(colours()).convert("CMYK")
    pixels = decode(saved(image, image_format))
    assert pixels.shape == (24, 40, 3)
    assert np.abs(pixels.astype(int) - colours()).mean() < 8


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.T),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].T),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation_is_undone(orientation: int, turn: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = saved(Image.fromarray(gradient()), "PNG", exif=exif)
    assert np.array_equal(decode(body)[:, :, 0], turn(gradient()))  # type: ignore[operator]
    rotated_jpeg = decode(saved(Image.fromarray(gradient()), "JPEG", exif=exif, quality=95))
    assert rotated_jpeg.shape[:2] == turn(gradient()).shape  # type: ignore[operator]


def test_damaged_exif_does_not_matter() -> None:
    body = saved(Image.fromarray(gradient()), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\xff\xff")
    assert decode(body).shape == (24, 40, 1)


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_file_that_is_no_strip_says_why(name: str) -> None:
    body, status = BAD_IMAGES[name]
    assert status_of(body) == status


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP", "TIFF"])
def test_a_file_cut_anywhere_is_unreadable(image_format: str) -> None:
    body = encode(make_strip(0, 0, size_px=(64, 160)).pixels_HW, image_format)
    pixels_end = len(body) - (300 if image_format == "TIFF" else 40)  # trailers follow, which may be missing
    for length in np.linspace(1, pixels_end, 25).astype(int):
        assert status_of(body[:length]) == Status.UNREADABLE


def test_a_truncated_progressive_jpeg_is_unreadable() -> None:
    strip = Image.fromarray(make_strip(0, 0, size_px=(64, 160)).pixels_HW)
    body = saved(strip, "JPEG", progressive=True)
    for part in (0.3, 0.6, 0.95):
        assert status_of(body[: int(part * len(body))]) == Status.UNREADABLE


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP", "TIFF"])
def test_damaged_bytes_never_raise_anything_else(image_format: str) -> None:
    rng = np.random.default_rng(0)
    body = encode(make_strip(0, 0, size_px=(32, 48)).pixels_HW, image_format)
    for _ in range(400):
        damaged = bytearray(body)
        reach = len(body) if rng.random() < 0.5 else min(len(body), 200)  # most harm is done in headers
        for place in rng.integers(0, reach, rng.integers(1, 6)):
            damaged[place] = rng.integers(0, 256)
        try:
            pixels = decode(bytes(damaged), DecodeConfig(max_pixels=1_000_000))
        except Undecodable:
            continue
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] in (1, 3)


def test_a_bomb_is_refused_by_its_header_alone() -> None:
    header_only = decompression_bomb()[:60]
    assert status_of(header_only) == Status.TOO_LARGE
    below_pillows_own_limit = decompression_bomb(8_800)[:60]
    assert status_of(below_pillows_own_limit) == Status.TOO_LARGE
    assert status_of(encode(gradient(), "PNG"), DecodeConfig(max_pixels=24 * 40 - 1)) == Status.TOO_LARGE
    assert decode(encode(gradient(), "PNG"), DecodeConfig(max_pixels=24 * 40)).shape == (24, 40, 1)


def test_too_many_bytes_are_refused() -> None:
    body = encode(gradient(), "BMP")
    assert status_of(body, DecodeConfig(max_bytes=len(body) - 1)) == Status.TOO_LARGE
    assert decode(body, DecodeConfig(max_bytes=len(body))).shape == (24, 40, 1)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_one_colour_everywhere_is_blank(level: int) -> None:
    for image_format in ("PNG", "JPEG"):
        assert status_of(encode(np.full((32, 64), level, np.uint8), image_format)) == Status.BLANK
    for colour in ((level, level, level), (level, 20, 30)):
        assert status_of(encode(np.full((32, 64, 3), colour, np.uint8), "PNG")) == Status.BLANK
    almost = np.full((32, 64), level, np.uint8)
    almost[3, 5] ^= 1
    assert decode(encode(almost, "PNG")).shape == (32, 64, 1)


def test_a_single_pixel_decodes() -> None:
    assert decode(encode(np.array([[9]], np.uint8), "PNG")).tolist() == [[[9]]]
    assert decode(encode(np.array([[[9, 8, 7]]], np.uint8), "PNG")).tolist() == [[[9, 8, 7]]]


def test_resize_keeps_channels_and_mean() -> None:
    for pixels in (gradient()[:, :, None], colours()):
        smaller = resize(pixels, (12, 20))
        assert smaller.shape == (12, 20, pixels.shape[2])
        assert smaller.dtype == np.uint8
        assert abs(smaller.mean() - pixels.mean()) < 1
        assert resize(pixels, (24, 40)) is pixels


def test_a_jpeg_that_would_take_hours_is_too_large() -> None:
    """Refinement scans can repeat without end; each takes few bytes and a pass over all pixels."""
    progressive = encode(make_strip(0, 0).pixels_HW, "JPEG", progressive=True)
    assert decode(progressive).shape == (256, 1600, 1)
    last_scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    with pytest.raises(Undecodable, match="scans, the limit is 100") as caught:
        decode(progressive[:-2] + 200 * last_scan + progressive[-2:])
    assert caught.value.status == Status.TOO_LARGE


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_an_image_that_takes_too_long_is_given_up(image_format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (800, 800), dtype=np.uint8))
    body = saved(noise, image_format)
    with pytest.raises(Undecodable, match=r"not decoded after 0.001 s, the limit") as caught:
        decode(body, DecodeConfig(max_seconds=0.001))
    assert caught.value.status == Status.TOO_LARGE
    assert decode(body).shape == (800, 800, 1)
