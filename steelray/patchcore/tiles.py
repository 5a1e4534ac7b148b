"""Embedding of large images tile by tile, blended where the tiles overlap.

Tiles begin at multiples of the coarsest level's stride, so their patch cells are those of the whole image. A cell near
a tile's edge has not seen all of its surroundings, so the weight of a tile falls linearly towards its inner edges.
Three differences from the whole image remain. A cell sees no farther than its tile, and deep levels look far. A
backbone with global attention sees the tile instead of the image. If the stride does not divide the image's size, the
padding of some backbones shifts what a cell sees by some pixels. A bank and its scores must therefore use the same
tiles.

Shapes: B images, H height, W width, C channels; h, w the patch grid, D dimensions of an embedding.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steelray.config import ConfigError
from steelray.patchcore.config import EmbedderConfig
from steelray.patchcore.portable_embedder import EmbedFunction


def check_tiles(config: EmbedderConfig, stride_px: int) -> None:
    """Raise `ConfigError` if the patch cells of overlapping tiles would not coincide.

    Args:
        stride_px: pixels per cell of the coarsest level used.
    """
    if config.tile_px is None:
        return
    where = f"the coarsest stride of {config.backbone}'s levels {list(config.levels)}"
    # two strides: the last tile may be almost one shorter, and no image smaller than one can be embedded
    if any(side_px % stride_px or side_px < 2 * stride_px for side_px in config.tile_px):
        raise ConfigError(
            f"embedder.tile_px is {list(config.tile_px)}: both must be multiples of {stride_px}, {where}, "
            f"and at least {2 * stride_px}"
        )
    if config.tile_overlap_px % stride_px:
        raise ConfigError(
            f"embedder.tile_overlap_px is {config.tile_overlap_px}: it must be a multiple of {stride_px}, {where}"
        )


def tiled_embedding(embed: EmbedFunction, config: EmbedderConfig, stride_px: int) -> EmbedFunction:
    """Return an embedder that takes images larger than `config.tile_px` tile by tile; `embed` itself if that is None.

    Args:
        stride_px: pixels per cell of the coarsest level used; checked by `check_tiles`.
    """
    tile_px, overlap_px = config.tile_px, config.tile_overlap_px
    if tile_px is None:
        return embed

    def embed_tiles(images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        sizes = zip(images_BHWC.shape[1:3], tile_px, strict=True)
        rows, columns = (_spans(size, tile, overlap_px, stride_px) for size, tile in sizes)
        bands = []
        for row in rows:
            tiles = [embed(images_BHWC[:, row, column]) for column in columns]
            bands.append(_joined(tiles, columns, overlap_px, axis=2))
        return _joined(bands, rows, overlap_px, axis=1)

    return embed_tiles


def _spans(size_px: int, tile_px: int, overlap_px: int, stride_px: int) -> list[slice]:
    """Return the tiles' spans along an axis, in pixels. The last one ends with the image and may be shorter."""
    if size_px <= tile_px:
        return [slice(0, size_px)]
    last_px = -(-(size_px - tile_px) // stride_px) * stride_px
    starts = [*range(0, last_px, tile_px - overlap_px), last_px]
    return [slice(start, min(start + tile_px, size_px)) for start in starts]


def _joined(
    parts: Sequence[NDArray[np.float32]], spans: Sequence[slice], overlap_px: int, axis: int
) -> NDArray[np.float32]:
    """Join parts of a grid BhwD along an axis; each part was embedded from the pixels of its span."""
    if len(parts) == 1:
        return parts[0]
    cell_px = spans[0].stop // parts[0].shape[axis]  # the first tile is never cut short
    firsts = [span.start // cell_px for span in spans]
    ramp = max(1, overlap_px // cell_px)
    shape = list(parts[0].shape)
    shape[axis] = firsts[-1] + parts[-1].shape[axis]
    weights, total = [], np.zeros(shape[axis])
    for number, (part, first) in enumerate(zip(parts, firsts, strict=True)):
        inside = np.arange(part.shape[axis]) + 0.5
        from_start = inside if number > 0 else np.inf
        to_stop = len(inside) - inside if number < len(parts) - 1 else np.inf
        weights.append(np.minimum(1, np.minimum(from_start, to_stop) / ramp))
        total[first : first + len(inside)] += weights[-1]
    joined_BhwD = np.zeros(shape, dtype=np.float32)
    for part, first, weight in zip(parts, firsts, weights, strict=True):
        here = slice(first, first + len(weight))
        share = (weight / total[here]).astype(np.float32)  # exactly 1 where tiles do not overlap
        joined_BhwD[(slice(None),) * axis + (here,)] += part * share.reshape(-1, *(1,) * (3 - axis))
    return joined_BhwD
