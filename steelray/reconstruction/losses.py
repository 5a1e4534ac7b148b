"""DRAEM's loss terms (Zavrtanik et al. 2021, section 3): L2, SSIM and focal, always in float32.

Shapes: B images, C channels, H height, W width. Images lie in [0, 1]; a reconstruction may leave that range.
"""

from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional

SSIM_WINDOW_PX = 11
SSIM_SIGMA_PX = 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
"""(K1 L)² and (K2 L)² with a fixed dynamic range L = 1. Differs from the official code, which infers L from the
reconstruction's values, so that its loss jumps when one pixel falls below -0.5."""


def l2_loss(
    reconstructions_BCHW: torch.Tensor, targets_BCHW: torch.Tensor, weights_BHW: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean squared error over the pixels weighted by `weights_BHW` (None: all)."""
    return _mean((reconstructions_BCHW.float() - targets_BCHW.float()).square(), weights_BHW)


def ssim_loss(
    reconstructions_BCHW: torch.Tensor, targets_BCHW: torch.Tensor, weights_BHW: torch.Tensor | None = None
) -> torch.Tensor:
    """Return 1 - SSIM over the pixels weighted by `weights_BHW` (None: all); in [0, 2]."""
    return 1 - _mean(ssim_map(reconstructions_BCHW, targets_BCHW), weights_BHW)


def ssim_map(first_BCHW: torch.Tensor, second_BCHW: torch.Tensor) -> torch.Tensor:
    """Compute the structural similarity around every pixel (Wang et al. 2004), similarity_BCHW float32.

    The window is Gaussian, of 11 pixels and sigma 1.5, with zeros beyond the image's edge, as in the official code.
    Autocast is off because E[x²] - μ² is a difference of nearly equal numbers.
    """
    with torch.autocast(first_BCHW.device.type, enabled=False):
        x, y = first_BCHW.float(), second_BCHW.float()
        # two banded matrix products per plane equal a convolution, and use TF32 only if it is enabled
        rows_HH = _window_matrix(x.shape[-2], x.device)
        columns_WW = _window_matrix(x.shape[-1], x.device)
        planes = torch.stack((x, y, x * x, y * y, x * y)).contiguous()
        mean_x, mean_y, mean_xx, mean_yy, mean_xy = rows_HH @ planes @ columns_WW
        variances = mean_xx - mean_x.square() + mean_yy - mean_y.square()
        covariance = mean_xy - mean_x * mean_y
        luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x.square() + mean_y.square() + SSIM_C1)
        similarity_BCHW: torch.Tensor = luminance * (2 * covariance + SSIM_C2) / (variances + SSIM_C2)
        return similarity_BCHW


@lru_cache(maxsize=32)
def _window_matrix(size_px: int, device: torch.device) -> torch.Tensor:
    """Build a symmetric, banded matrix: row i holds the window centred on pixel i, cut off at the edges."""
    offsets = np.arange(size_px)[:, None] - np.arange(size_px)[None, :]
    kernel = np.exp(-(offsets**2) / (2 * SSIM_SIGMA_PX**2)) * (np.abs(offsets) <= SSIM_WINDOW_PX // 2)
    reach = np.arange(SSIM_WINDOW_PX) - SSIM_WINDOW_PX // 2
    kernel /= np.exp(-(reach**2) / (2 * SSIM_SIGMA_PX**2)).sum()
    with torch.inference_mode(False):  # the cached matrix may be made in an evaluation and used in a training step
        return torch.tensor(kernel, dtype=torch.float32, device=device)


def focal_loss(logits_B2HW: torch.Tensor, masks_BHW: torch.Tensor, gamma: float = 2.0) -> torch.Tensor:
    """Return -(1 - p)^γ log p averaged over all pixels, p the probability of a pixel's true class (Lin et al. 2017).

    Both classes have the same weight: no α. Differs from the official code numerically: log p comes from the
    log-softmax, instead of labels smoothed by 1e-5 and the logarithm of p + 1e-5.

    Args:
        masks_BHW: True or 1 where the pixel is anomalous (class 1).
    """
    log_probabilities_B2HW = functional.log_softmax(logits_B2HW.float(), dim=1)
    chosen_B1HW = masks_BHW.long().unsqueeze(1)
    log_p = log_probabilities_B2HW.gather(1, chosen_B1HW)
    if gamma == 0:
        return -log_p.mean()
    other_p = log_probabilities_B2HW.gather(1, 1 - chosen_B1HW).exp()  # 1 - p without cancellation
    return -(other_p.pow(gamma) * log_p).mean()


def _mean(values_BCHW: torch.Tensor, weights_BHW: torch.Tensor | None) -> torch.Tensor:
    if weights_BHW is None:
        return values_BCHW.mean()
    weights_B1HW = weights_BHW.to(values_BCHW.dtype).unsqueeze(1)
    counted = (weights_B1HW.sum() * values_BCHW.shape[1]).clamp(min=1)
    return (values_BCHW * weights_B1HW).sum() / counted
