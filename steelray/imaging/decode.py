"""Decoding of JPEG, PNG, BMP and TIFF to 8-bit pixels, and resizing.

Reads 8 and 16 bit, grey, RGB, palette and CMYK, and turns images upright by EXIF. Every failure to decode is an
`Undecodable` with a status; nothing else is raised. Shapes: H height, W width, C channels.
"""

import io
import struct
import time
import warnings
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from steelray.config import DecodeConfig
from steelray.schema import Status

FORMATS = ("JPEG", "PNG", "BMP", "TIFF")
MAX_SCANS = 100
"""Scans that a JPEG may have. A progressive one has about ten; each is a pass over all pixels: thousands take hours."""
START_OF_SCAN = b"\xff\xda"


class Undecodable(Exception):
    """The bytes are no usable image; `status` says why."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


class _TimedBytes(io.BytesIO):
    """A body that raises once its time is up; Pillow reads it piece by piece while it decodes."""

    def __init__(self, body: bytes, max_seconds: float) -> None:
        super().__init__(body)
        self._max_seconds = max_seconds
        self._deadline_s = time.monotonic() + max_seconds

    def read(self, size: int | None = -1) -> bytes:
        if time.monotonic() > self._deadline_s:
            raise Undecodable(Status.TOO_LARGE, f"not decoded after {self._max_seconds:g} s, the limit")
        return super().read(size)


def decode(body: bytes, config: DecodeConfig | None = None) -> NDArray[np.uint8]:
    """Decode one image.

    Returns:
        pixels_HWC uint8, C = 1 if the image is grey (or all its channels are equal), else 3 (RGB).
        16-bit values are scaled so that `white_level` becomes 255.

    Raises:
        Undecodable: empty, unreadable, truncated, too large or blank.
    """
    config = config or DecodeConfig()
    if not body:
        raise Undecodable(Status.EMPTY, "0 bytes")
    if len(body) > config.max_bytes:
        raise Undecodable(Status.TOO_LARGE, f"{len(body)} bytes, the limit is {config.max_bytes}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; only the pixels matter here
            with Image.open(_TimedBytes(body, config.max_seconds), formats=FORMATS) as image:
                width_px, height_px = image.size
                if width_px * height_px > config.max_pixels:
                    raise Undecodable(
                        Status.TOO_LARGE, f"{width_px}x{height_px} pixels, the limit is {config.max_pixels} in all"
                    )
                if image.format == "JPEG" and (scans := body.count(START_OF_SCAN)) > MAX_SCANS:
                    raise Undecodable(Status.TOO_LARGE, f"{scans} scans, the limit is {MAX_SCANS}")
                image.load()
                pixels_HWC = _to_uint8(ImageOps.exif_transpose(image), config.white_level)
    except UnidentifiedImageError:
        raise Undecodable(Status.UNREADABLE, f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image") from None
    except Image.DecompressionBombError:
        raise Undecodable(Status.TOO_LARGE, f"more than {config.max_pixels} pixels") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError,
            MemoryError, struct.error, zlib.error) as error:  # fmt: skip
        raise Undecodable(Status.UNREADABLE, str(error) or type(error).__name__) from None
    if pixels_HWC.shape[2] == 3 and _is_grey(pixels_HWC):
        pixels_HWC = pixels_HWC[:, :, :1]
    pixels_HWC = np.ascontiguousarray(pixels_HWC)
    if pixels_HWC.size > pixels_HWC.shape[2] and (pixels_HWC == pixels_HWC[0, 0]).all():
        raise Undecodable(Status.BLANK, f"every pixel is {', '.join(map(str, pixels_HWC[0, 0]))}")
    return pixels_HWC


def _to_uint8(image: Image.Image, white_level: int) -> NDArray[np.uint8]:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values_HW = np.asarray(image).astype(np.float32)
        if not np.isfinite(values_HW).all():
            raise ValueError("has values that are not finite")
        scaled_HW = np.rint(np.clip(values_HW * (255.0 / white_level), 0, 255))
        return np.asarray(scaled_HW, dtype=np.uint8)[:, :, None]
    if image.mode in ("L", "1"):
        return np.asarray(image.convert("L"))[:, :, None]
    if image.mode == "LA":
        return np.asarray(image.getchannel("L"))[:, :, None]
    return np.asarray(image.convert("RGB"))


def _is_grey(pixels_HWC: NDArray[np.uint8]) -> bool:
    red, green, blue = pixels_HWC[:, :, 0], pixels_HWC[:, :, 1], pixels_HWC[:, :, 2]
    return bool(np.array_equal(red, green) and np.array_equal(green, blue))


def resize(pixels_HWC: NDArray[np.uint8], size_px: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize to height and width `size_px`, bilinear with anti-aliasing (Pillow); uint8 in, uint8 out."""
    if pixels_HWC.shape[:2] == size_px:
        return pixels_HWC
    channels = pixels_HWC.shape[2]
    image = Image.fromarray(pixels_HWC[:, :, 0] if channels == 1 else pixels_HWC)
    resized = np.asarray(image.resize(size_px[::-1], Image.Resampling.BILINEAR))
    return resized[:, :, None] if channels == 1 else resized
