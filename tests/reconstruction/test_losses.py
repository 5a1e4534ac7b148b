"""Each loss term against its formula written out, and mistakes of published implementations."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from steelray.reconstruction.losses import focal_loss, l2_loss, ssim_loss, ssim_map
from steelray.research.study.diagnostics import grain_floor
from steelray.research.study.probe import best_constant_focal


def images(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def written_out_ssim(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """SSIM by an 11x11 convolution with zero padding, in double precision."""
    reach = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(reach**2) / (2 * 1.5**2))
    window = torch.outer(line, line)
    window = (window / window.sum()).expand(x.shape[1], 1, 11, 11)

    def mean(planes: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(planes, window, padding=5, groups=x.shape[1])

    x, y = x.double(), y.double()
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))


@pytest.mark.parametrize("size", [(2, 3, 32, 48), (1, 1, 64, 64), (1, 3, 8, 20)])
def test_ssim_is_the_written_out_formula(size: tuple[int, ...]) -> None:
    x, y = images(*size), images(*size, seed=1)
    assert torch.allclose(ssim_map(x, y).double(), written_out_ssim(x, y), atol=1e-4)


def test_ssim_of_equal_images_is_no_loss_and_of_inverted_ones_more_than_one() -> None:
    x = images(1, 3, 32, 32)
    assert ssim_loss(x, x).item() == pytest.approx(0, abs=1e-5)
    assert ssim_loss(1 - x, x).item() > 1


def test_the_range_of_ssim_is_fixed() -> None:
    """The official code takes 2 for the dynamic range as soon as one value of the reconstruction is below -0.5."""
    x, y = images(1, 3, 64, 64), images(1, 3, 64, 64, seed=1)
    spoiled = x.clone()
    spoiled[0, 0, 0, 0] = -0.6
    assert abs(ssim_loss(spoiled, y) - ssim_loss(x, y)).item() < 2e-3


def test_ssim_is_float32_under_autocast() -> None:
    """In bf16, E[x²] - μ² of faint grain would be noise."""
    x = 0.5 + 0.01 * images(1, 3, 32, 32)
    y = 0.5 + 0.01 * images(1, 3, 32, 32, seed=1)
    expected = ssim_loss(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        got = ssim_loss(x, y)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


def test_ssim_has_a_gradient_after_an_evaluation_came_first() -> None:
    with torch.inference_mode():
        ssim_map(images(1, 1, 24, 40), images(1, 1, 24, 40))
    x = images(1, 1, 24, 40).requires_grad_()
    ssim_loss(x, images(1, 1, 24, 40, seed=1)).backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("levels", [2, 8, 12])
def test_a_smooth_reconstruction_of_grain_cannot_pass_the_floor(levels: int) -> None:
    grain = torch.randn((1, 1, 256, 256), generator=torch.Generator().manual_seed(0)) * levels / 255
    smooth = torch.full_like(grain, 0.5)
    inner = ssim_map(smooth, smooth + grain)[..., 8:-8, 8:-8]
    assert 1 - inner.mean().item() == pytest.approx(grain_floor(levels / 255), abs=0.04)


def test_an_offset_in_black_costs_much_of_ssim_and_nearly_nothing_of_l2() -> None:
    black = torch.zeros(1, 3, 64, 64)
    assert 0.25 < ssim_loss(black + 2 / 255, black).item() < 0.45
    assert l2_loss(black + 2 / 255, black).item() < 1e-4


def test_l2_is_the_mean_square() -> None:
    x, y = images(2, 3, 8, 8), images(2, 3, 8, 8, seed=1)
    assert l2_loss(x, y).item() == pytest.approx(functional.mse_loss(x, y).item(), rel=1e-6)


@pytest.mark.parametrize("loss", [l2_loss, ssim_loss])
def test_weights_choose_the_pixels_that_count(loss) -> None:  # type: ignore[no-untyped-def]
    x, y = images(2, 3, 64, 64), images(2, 3, 64, 64, seed=1)
    everywhere = torch.ones(2, 64, 64, dtype=torch.bool)
    assert torch.allclose(loss(x, y, everywhere), loss(x, y), rtol=1e-5)
    left = everywhere.clone()
    left[:, :, 32:] = False
    far_right = x.clone()
    far_right[..., 48:] = 0
    assert torch.equal(loss(far_right, y, left), loss(x, y, left))
    assert torch.isfinite(loss(x, y, torch.zeros_like(everywhere)))


@pytest.mark.parametrize("gamma", [0.0, 2.0, 4.0])
def test_focal_is_the_written_out_formula(gamma: float) -> None:
    logits, masks = 4 * images(2, 2, 8, 8) - 2, images(2, 8, 8, seed=1) > 0.7
    p = logits.softmax(dim=1)
    p = torch.where(masks, p[:, 1], p[:, 0])
    expected = (-((1 - p) ** gamma) * p.log()).mean()
    assert focal_loss(logits, masks, gamma).item() == pytest.approx(expected.item(), rel=1e-5)


def test_focal_weighs_the_background_as_much_as_the_anomaly() -> None:
    """A port of this loss multiplies the background by 1 - α = 0."""
    sure = torch.tensor([-3.0, 3.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    nominal, anomalous = torch.zeros(1, 4, 4, dtype=torch.bool), torch.ones(1, 4, 4, dtype=torch.bool)
    false_alarm, missed = focal_loss(sure, nominal), focal_loss(-sure, anomalous)
    assert false_alarm.item() == pytest.approx(missed.item(), rel=1e-5)
    assert false_alarm.item() > 5
    logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
    focal_loss(logits, nominal).backward()
    assert (logits.grad != 0).all()


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_stays_finite_with_a_gradient_where_it_is_surely_wrong_or_right(gamma: float) -> None:
    logits = torch.tensor([[-200.0, 200.0]]).view(1, 2, 1, 1).expand(1, 2, 2, 2).clone().requires_grad_()
    loss = focal_loss(logits, torch.tensor([[[True, False], [True, False]]]), gamma)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("fraction", [0.0, 0.0236, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 2.0, 4.0])
def test_the_best_constant_is_the_least_of_all_constants(fraction: float, gamma: float) -> None:
    q = np.linspace(1e-6, 1 - 1e-6, 20_001)
    losses = -fraction * (1 - q) ** gamma * np.log(q) - (1 - fraction) * q**gamma * np.log(1 - q)
    assert best_constant_focal(fraction, gamma) == pytest.approx(losses.min(), abs=1e-5)


def test_a_share_outside_0_to_1_is_refused() -> None:
    with pytest.raises(ValueError, match="must lie in"):
        best_constant_focal(1.5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_ssim_on_a_gpu_is_that_of_the_cpu() -> None:
    x, y = images(2, 3, 64, 64), 0.9 * images(2, 3, 64, 64) + 0.02
    assert ssim_loss(x.cuda(), y.cuda()).item() == pytest.approx(ssim_loss(x, y).item(), abs=1e-5)
