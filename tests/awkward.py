"""Awkward contents of real archives: keys that break careless programs, and files that are not strips."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from steelray.demo.synthetic import encode, make_strip
from steelray.schema import Status

AWKWARD_KEYS = [
    "plain.jpg",
    "line 1/strip 7.jpg",
    "quotes'and\"more.jpg",
    "unicode/блок-Ω-钢.jpg",
    "<script>alert(1)</script>.jpg",
    "a&b=c?d#e+f%20g.jpg",
    "same/name.jpg",
    "other/name.jpg",
]


def png(width_px: int, height_px: int, bit_depth: int, color_type: int, rows: bytes) -> bytes:
    """Return a PNG file of rows that begin with their filter byte, for kinds that Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width_px, height_px, bit_depth, color_type, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def decompression_bomb(side_px: int = 20_000) -> bytes:
    """Return a valid PNG of one bit per pixel: 220 kB that decode to 400 megapixels."""
    return png(side_px, side_px, 1, 0, bytes((1 + side_px // 8) * side_px))


def bad_images() -> dict[str, tuple[bytes, Status]]:
    """Return contents and the status that decoding must give, by file name."""
    strip = make_strip(0, 0).jpeg()
    return {
        "empty.jpg": (b"", Status.EMPTY),
        "truncated.jpg": (strip[: len(strip) // 2], Status.UNREADABLE),
        "text.jpg": (b"Coil 4711, shift 2: camera was cleaned.\n" * 20, Status.UNREADABLE),
        "page.png": (b"<html><body>503 Service Unavailable</body></html>", Status.UNREADABLE),
        "bomb.png": (decompression_bomb(), Status.TOO_LARGE),
        "blank.png": (encode(np.full((256, 1600), 7, np.uint8), "PNG"), Status.BLANK),
        "animation.gif": (_gif(), Status.UNREADABLE),
    }


def _gif() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(make_strip(0, 1, size_px=(32, 64)).pixels_HW).save(buffer, "GIF")
    return buffer.getvalue()
