"""DRAEM's two networks: the published widths, initialisation and wiring."""

import pytest
import torch
from torch import nn

from steelray.reconstruction.build import build_model
from steelray.reconstruction.config import DraemConfig
from steelray.reconstruction.draem import Draem, num_groups

SMALL = DraemConfig(width=1 / 16)


def build(config: DraemConfig = SMALL) -> Draem:
    model = build_model(config)
    assert isinstance(model, Draem)
    return model


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts_at_full_width() -> None:
    with torch.device("meta"):
        model = Draem(DraemConfig())
    assert round(count(model.reconstructive) / 1e6, 2) == 69.05
    assert round(count(model.discriminative) / 1e6, 2) == 28.37


@pytest.mark.parametrize(
    "config", [SMALL, DraemConfig(width=1 / 16, norm="gn"), *(DraemConfig(width=1 / 16, halvings=n) for n in (1, 2, 3))]
)
@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
def test_shapes(config: DraemConfig, size: tuple[int, int]) -> None:
    reconstructions_BCHW, logits_B2HW = build(config)(torch.rand(2, 3, *size))
    assert reconstructions_BCHW.shape == (2, 3, *size)
    assert logits_B2HW.shape == (2, 2, *size)


@pytest.mark.parametrize("halvings", [1, 2, 3, 4])
def test_the_field_of_view_shrinks_with_the_halvings(halvings: int) -> None:

    network = Draem(DraemConfig(width=1 / 16, halvings=halvings)).eval().reconstructive
    images_BCHW = torch.rand(1, 3, 128, 128, requires_grad=True)
    network(images_BCHW)[0, :, 64, 64].sum().backward()
    assert images_BCHW.grad is not None
    rows = torch.nonzero(images_BCHW.grad[0].abs().amax(dim=(0, 2)))
    reach = int(rows.max() - rows.min()) + 1
    assert 7 * 2**halvings <= reach <= 16 * 2**halvings


def test_initial_weights() -> None:
    model = build(DraemConfig(width=0.25))
    convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 20_000]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for weight in convolutions:
        assert weight.mean().abs() < 1e-3
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    scales = torch.cat([norm.weight for norm in norms])
    assert scales.mean().item() == pytest.approx(1.0, abs=2e-3)
    assert scales.std().item() == pytest.approx(0.02, rel=0.1)
    assert all(not norm.bias.any() for norm in norms)


def test_the_discriminative_network_sees_the_reconstruction_and_then_the_image() -> None:
    model, seen = build(), []
    model.discriminative.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images_BCHW = torch.rand(2, 3, 32, 32)
    reconstructions_BCHW, _ = model(images_BCHW)
    assert torch.equal(seen[0], torch.cat((reconstructions_BCHW, images_BCHW), dim=1))


def test_the_reconstruction_is_linear_and_may_leave_the_unit_range() -> None:
    model = build()
    nn.init.constant_(model.reconstructive.head.bias, -3.0)
    assert model(torch.rand(2, 3, 32, 32))[0].min() < -1


@pytest.mark.parametrize("detach", [False, True])
def test_the_segmentation_reaches_the_reconstructive_network_unless_detached(detach: bool) -> None:
    model = build()
    model(torch.rand(2, 3, 32, 32), detach_reconstruction=detach)[1].square().mean().backward()
    gradients = [p.grad for p in model.reconstructive.parameters()]
    assert all(g is None for g in gradients) if detach else all(g is not None and g.any() for g in gradients)


def test_only_batch_normalisation_looks_at_other_images() -> None:
    images_BCHW = torch.rand(3, 3, 64, 64)
    for norm, alone_equals_batch in (("bn", False), ("gn", True)):
        model = build(DraemConfig(width=1 / 16, norm=norm)).train()
        together, alone = model(images_BCHW)[1][:1], model(images_BCHW[:1])[1]
        assert torch.allclose(together, alone, atol=1e-5) == alone_equals_batch


def test_evaluation_mode_uses_running_statistics() -> None:
    model, images_BCHW = build(), torch.rand(4, 3, 32, 32)
    in_training = model.train()(images_BCHW)[1]
    model.eval()
    in_evaluation = model(images_BCHW)[1]
    assert not torch.allclose(in_training, in_evaluation, atol=1e-4)
    assert torch.allclose(in_evaluation[:1], model(images_BCHW[:1])[1], atol=1e-5)


def test_outputs_stay_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        reconstructions_BCHW, logits_B2HW = build()(torch.rand(2, 3, 32, 32))
    assert reconstructions_BCHW.dtype == logits_B2HW.dtype == torch.float32
    assert not torch.equal(reconstructions_BCHW, reconstructions_BCHW.bfloat16().float())


@pytest.mark.parametrize("channels", [4, 8, 12, 24, 64, 128, 1024])
def test_group_sizes(channels: int) -> None:
    groups = num_groups(channels)
    assert channels % groups == 0
    assert 1 <= groups <= 32
    assert channels // groups >= 4
