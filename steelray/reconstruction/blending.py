"""Blending of an anomaly source into an image: alpha blending as in DRAEM, and a seamless variant.

Shapes: C = 3 channels, H height, W width; values in [0, 1].
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

RELAXATIONS = 20
COARSEST_PX = 4


def alpha_blend(image_CHW: Floats, source_CHW: Floats, mask_HW: Mask, opacity: float) -> Floats:
    """Blend a source into an image under a mask.

    I_a = M̄ ⊙ I + β (M ⊙ I) + (1 - β)(M ⊙ A) with β = 1 - opacity: β is the image's weight, as in DRAEM's code.
    """
    blended_CHW = image_CHW.copy()
    inside_CN = image_CHW[:, mask_HW]
    blended_CHW[:, mask_HW] = inside_CN + np.float32(opacity) * (source_CHW[:, mask_HW] - inside_CN)
    return blended_CHW


def match_contrast(source_CHW: Floats, image_CHW: Floats, mask_HW: Mask) -> Floats:
    """Rescale each channel of the source to the image's mean and standard deviation under the mask."""
    source_CN, image_CN = source_CHW[:, mask_HW], image_CHW[:, mask_HW]
    gain_C = image_CN.std(axis=1) / np.maximum(source_CN.std(axis=1), 1e-3)
    shifted_CHW = (source_CHW - source_CN.mean(axis=1)[:, None, None]) * gain_C[:, None, None]
    return np.asarray(np.clip(shifted_CHW + image_CN.mean(axis=1)[:, None, None], 0, 1), dtype=np.float32)


def meet_at_edge(source_CHW: Floats, image_CHW: Floats, mask_HW: Mask) -> Floats:
    """Shift the source so that it equals the image at the mask's edge and keeps its gradients inside.

    Poisson blending (Pérez et al. 2003) in its membrane form: the shift is harmonic under the mask and equals
    image - source around it. It is solved approximately, coarse to fine.
    """
    if mask_HW.all():
        return source_CHW
    return np.asarray(np.clip(source_CHW + harmonic_fill(image_CHW - source_CHW, mask_HW), 0, 1), dtype=np.float32)


def harmonic_fill(values_CHW: Floats, unknown_HW: Mask) -> Floats:
    """Replace the unknown values by a solution of Laplace's equation, with no flux across the image's border.

    The solution is approximate: a fixed number of Jacobi relaxations that start from the solution at half the size.
    At least one value must be known.
    """
    if not unknown_HW.any():
        return values_CHW
    known_HW = ~unknown_HW
    if min(unknown_HW.shape) <= COARSEST_PX:
        guess_CHW = np.broadcast_to(values_CHW[:, known_HW].mean(axis=1)[:, None, None], values_CHW.shape)
    else:
        count_hw = _halved_sum(known_HW[None].astype(np.float32))
        sums_Chw = _halved_sum(values_CHW * known_HW)
        means_Chw = np.asarray(sums_Chw / np.maximum(count_hw, 1), dtype=np.float32)
        coarse_Chw = harmonic_fill(means_Chw, count_hw[0] == 0)
        height_px, width_px = unknown_HW.shape
        guess_CHW = coarse_Chw.repeat(2, axis=1).repeat(2, axis=2)[:, :height_px, :width_px]
    filled_CHW = np.where(unknown_HW, guess_CHW, values_CHW)
    for _ in range(RELAXATIONS):
        wide_CHW = np.pad(filled_CHW, ((0, 0), (1, 1), (1, 1)), mode="edge")
        around_CHW = wide_CHW[:, :-2, 1:-1] + wide_CHW[:, 2:, 1:-1] + wide_CHW[:, 1:-1, :-2] + wide_CHW[:, 1:-1, 2:]
        filled_CHW = np.where(unknown_HW, around_CHW / 4, values_CHW)
    return filled_CHW


def _halved_sum(planes_CHW: Floats) -> Floats:
    """Sum every 2x2 block of pixels; an odd edge is padded with zeros."""
    channels, height_px, width_px = planes_CHW.shape
    even_CHW = np.pad(planes_CHW, ((0, 0), (0, height_px % 2), (0, width_px % 2)))
    blocks = even_CHW.reshape(channels, (height_px + 1) // 2, 2, (width_px + 1) // 2, 2)
    return np.asarray(blocks.sum(axis=(2, 4)), dtype=np.float32)
