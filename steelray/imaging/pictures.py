"""Small pictures for people: heatmaps, thumbnails, patches and the contact sheet. Pure NumPy and Pillow.

Knows nothing of models, tables or storage. Shapes: H height, W width, C channels (1 grey or 3 RGB).
"""

import io
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_COLOR_STOPS = np.array(
    # position, R, G, B, alpha: amber to magenta, both hue and opacity rise, and grey steel shines through
    [
        [0.00, 255, 224, 102, 0],
        [0.25, 255, 190, 40, 90],
        [0.50, 250, 112, 20, 140],
        [0.75, 220, 20, 60, 175],
        [1.00, 150, 0, 120, 205],
    ]
)

SHEET_STRIP_WIDTH_PX = 800
SHEET_STRIP_MAX_HEIGHT_PX = 400


@cache
def _palette(levels: int = 256) -> NDArray[np.uint8]:
    """Return the heatmap's colours, RGBA; entry 0 is transparent."""
    steps = np.linspace(0, 1, levels)
    columns = [np.interp(steps, _COLOR_STOPS[:, 0], _COLOR_STOPS[:, channel]) for channel in range(1, 5)]
    return np.stack(columns, axis=1).round().astype(np.uint8)


def _color_indices(
    map_HW: NDArray[np.floating[Any]], lower: float, upper: float, levels: int = 256
) -> NDArray[np.uint8]:
    """Return the colour of every pixel: 0 at or below `lower` and for NaN, the last at or above `upper`."""
    upper = max(upper, lower + 1e-12)
    scaled_HW = (np.clip(map_HW, lower, upper) - lower) * ((levels - 1) / (upper - lower))
    indices_HW: NDArray[np.uint8] = np.nan_to_num(scaled_HW.round(), copy=False).astype(np.uint8)
    return indices_HW


def heatmap_png(
    map_HW: NDArray[np.floating[Any]], lower: float, upper: float, width_px: int | None = None, levels: int = 256
) -> bytes:
    """Draw an anomaly map as an overlay for its strip: transparent where nominal, magenta where worst.

    Args:
        map_HW: anomaly map, any float type.
        lower: map value at which the colour begins, such as the median of nominal maps.
        upper: map value of the strongest colour.
        width_px: width to shrink to (never to enlarge to); None keeps the map's size.
        levels: shades, 2 to 256; fewer make a smaller file.

    Returns:
        An 8-bit palette PNG with alpha.
    """
    if width_px is not None and width_px < map_HW.shape[1]:
        height_px = max(1, round(map_HW.shape[0] * width_px / map_HW.shape[1]))
        shrunk = Image.fromarray(map_HW.astype(np.float32)).resize((width_px, height_px), Image.Resampling.BOX)
        map_HW = np.asarray(shrunk)
    image = Image.fromarray(_color_indices(map_HW, lower, upper, levels))
    image.putpalette(_palette(levels)[:, :3].tobytes())
    # at full size, level 1 takes a tenth of level 9's time for a few more bytes
    return _png(image, 1 if width_px is None else 9, transparency=_palette(levels)[:, 3].tobytes())


def _png(image: Image.Image, compress_level: int, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=compress_level, **options)
    return buffer.getvalue()


def _picture(pixels_HWC: NDArray[np.uint8]) -> Image.Image:
    """Return grey or RGB pixels as an image; a single channel may come without its axis."""
    squeezed = pixels_HWC[:, :, 0] if pixels_HWC.ndim == 3 and pixels_HWC.shape[2] == 1 else pixels_HWC
    return Image.fromarray(np.ascontiguousarray(squeezed))


def _jpeg(image: Image.Image, quality: int) -> bytes:
    if image.mode == "RGB":
        channels = np.asarray(image)
        if (channels == channels[:, :, :1]).all():
            image = image.getchannel(0)  # grey stored as RGB: a third of the work, fewer bytes
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def strip_thumbnail(pixels_HWC: NDArray[np.uint8], width_px: int = 800, quality: int = 70) -> bytes:
    """Return the strip as JPEG, shrunk to this width if it is wider."""
    image = _picture(pixels_HWC)
    if width_px < image.width:
        image = image.resize((width_px, max(1, round(image.height * width_px / image.width))), Image.Resampling.LANCZOS)
    return _jpeg(image, quality)


def worst_patch_center(map_HW: NDArray[np.floating[Any]], image_size_px: tuple[float, float]) -> tuple[int, int]:
    """Return row and column of the map's largest value, in pixels of an image of this height and width."""
    finite_HW = np.nan_to_num(map_HW, nan=-math.inf)
    row, column = np.unravel_index(int(finite_HW.argmax()), map_HW.shape)
    return (
        int((row + 0.5) * image_size_px[0] / map_HW.shape[0]),
        int((column + 0.5) * image_size_px[1] / map_HW.shape[1]),
    )


def patch_jpeg(
    pixels_HWC: NDArray[np.uint8], center_px: tuple[int, int], side_px: int = 96, quality: int = 75
) -> bytes:
    """Cut a square around `center_px` (row, column) as JPEG; at the image's edge it moves inwards, without padding."""
    height, width = pixels_HWC.shape[:2]
    rows, columns = min(side_px, height), min(side_px, width)
    top = min(max(center_px[0] - rows // 2, 0), height - rows)
    left = min(max(center_px[1] - columns // 2, 0), width - columns)
    return _jpeg(_picture(pixels_HWC[top : top + rows, left : left + columns]), quality)


def contact_sheet(
    items: Sequence[tuple[str, float, NDArray[np.uint8], NDArray[np.floating[Any]]]], lower: float, upper: float
) -> bytes:
    """Draw a PNG with a row per strip: the strip, and the strip under its heatmap, titled with key and score.

    Args:
        items: image_key, anomaly_score, pixels_HWC and anomaly map_HW of each strip, worst first.
        lower: map value at which the colour begins.
        upper: map value of the strongest colour.
    """
    margin, title_px, footer_px = 24, 34, 56
    rows = [(f"{number}.  {key}", f"score {score:.3f}", *_pair(pixels_HWC, map_HW, lower, upper))
            for number, (key, score, pixels_HWC, map_HW) in enumerate(items, start=1)]  # fmt: skip
    width = 2 * SHEET_STRIP_WIDTH_PX + 3 * margin
    height = margin + sum(title_px + plain.height + 14 for _, _, plain, _ in rows) + footer_px
    sheet = Image.new("RGB", (width, height), "#ffffff")
    draw = ImageDraw.Draw(sheet)
    top = margin
    for title, score, plain, overlaid in rows:
        right = width - margin
        draw.text((right, top), score, fill="#101820", font=_font(18), anchor="ra")
        room = right - margin - draw.textlength(score, font=_font(18)) - 30
        draw.text((margin, top), _shortened(title, room), fill="#101820", font=_font(18))
        top += title_px
        sheet.paste(plain, (margin, top))
        sheet.paste(overlaid, (2 * margin + SHEET_STRIP_WIDTH_PX, top))
        top += plain.height + 14
    _draw_scale(sheet, draw, (margin, top + 8), lower, upper)
    return _png(sheet, 6)


def _pair(
    pixels_HWC: NDArray[np.uint8], map_HW: NDArray[np.floating[Any]], lower: float, upper: float
) -> tuple[Image.Image, Image.Image]:
    """Return the strip without and with its heatmap, both fitted to the sheet's column."""
    plain = _picture(pixels_HWC).convert("RGB")
    scale = min(SHEET_STRIP_WIDTH_PX / plain.width, SHEET_STRIP_MAX_HEIGHT_PX / plain.height)
    size = max(1, round(plain.width * scale)), max(1, round(plain.height * scale))
    plain = plain.resize(size, Image.Resampling.LANCZOS)
    map_resized = Image.fromarray(map_HW.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    colors_HW4 = _palette()[_color_indices(np.asarray(map_resized), lower, upper)]
    overlaid = Image.alpha_composite(plain.convert("RGBA"), Image.fromarray(colors_HW4))
    return plain, overlaid.convert("RGB")


def _draw_scale(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], lower: float, upper: float
) -> None:
    """Draw the colour scale on the grey of a strip."""
    ramp = Image.fromarray(np.broadcast_to(_palette()[None], (14, 256, 4)).copy())
    bar = Image.alpha_composite(Image.new("RGBA", ramp.size, "#808080"), ramp).convert("RGB")
    left, top = corner
    sheet.paste(bar, (left, top))
    label = f"anomaly map: {lower:.3g} (nominal) to {upper:.3g}"
    draw.text((left + bar.width + 12, top - 2), label, fill="#44505c", font=_font(15))


def _shortened(text: str, width_px: float) -> str:
    """Return the text, without its middle if it is too long: keys differ at their ends."""
    text = "".join(character if character.isprintable() else "�" for character in text)
    if _font(18).getlength(text) <= width_px:
        return text
    keep = len(text) - 1
    while keep > 2 and _font(18).getlength(text) > width_px:
        keep -= 1
        text = f"{text[: keep // 2]}…{text[len(text) - (keep - keep // 2) :]}"
    return text


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans, which comes with matplotlib: keys are not always ASCII."""
    import matplotlib  # here, because scoring actors draw heatmaps but no text

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size_px)
