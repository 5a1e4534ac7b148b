"""The thesis's table 2; every output channel gets a gradient at the start."""

import pytest
import torch
from torch import nn

from steelray.reconstruction.build import build_model
from steelray.reconstruction.config import ConvAutoencoderConfig
from steelray.reconstruction.conv_autoencoder import ConvAutoencoder


def build(activation: str = "relu", seed: int = 0) -> ConvAutoencoder:
    model = build_model(ConvAutoencoderConfig(activation), seed)
    assert isinstance(model, ConvAutoencoder)
    return model


def test_layers_are_those_of_table_2() -> None:
    model = build()
    encoder = [layer for layer in model.encoder if isinstance(layer, nn.Conv2d)]
    decoder = [layer for layer in model.decoder if isinstance(layer, nn.ConvTranspose2d)]
    assert [(c.in_channels, c.out_channels) for c in encoder] == [(3, 32), (32, 64), (64, 128), (128, 256)]
    assert [(c.in_channels, c.out_channels) for c in decoder] == [(256, 128), (128, 64), (64, 32), (32, 3)]
    for layer in encoder + decoder:
        assert (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (2, 2), (1, 1))
    activations = [layer for layer in model.modules() if isinstance(layer, nn.ReLU)]
    assert len(activations) == 7  # the eighth is the output's
    assert model(torch.randn(1, 3, 32, 32) - 5).min() >= 0


@pytest.mark.parametrize("size", [(256, 256), (16, 16), (48, 80)])
def test_a_reconstruction_has_the_size_of_the_image(size: tuple[int, int]) -> None:
    assert build()(torch.rand(2, 3, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("seed", range(5))
def test_no_output_channel_starts_dead(seed: int) -> None:
    model = build(seed=seed)
    (model(torch.rand(2, 3, 32, 32)) - 0.4).square().mean().backward()
    gradient_per_channel = model.decoder[-1].weight.grad.abs().sum(dim=(0, 2, 3))
    assert (gradient_per_channel > 0).all()


@pytest.mark.parametrize(("activation", "low", "high"), [("sigmoid", 0.0, 1.0), ("none", -9.0, 9.0)])
def test_other_output_activations(activation: str, low: float, high: float) -> None:
    outputs = build(activation)(torch.rand(1, 3, 32, 32))
    assert low <= outputs.min() <= outputs.max() <= high


def test_outputs_stay_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        outputs_BCHW = build()(torch.rand(1, 3, 32, 32))
    assert outputs_BCHW.dtype == torch.float32
    assert not torch.equal(outputs_BCHW, outputs_BCHW.bfloat16().float())


def test_it_learns_an_image() -> None:
    model = build()
    image_BCHW = torch.rand(1, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(image_BCHW) - image_BCHW).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.15 * losses[0]


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, second, other = build(seed=1), build(seed=1), build(seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [model.encoder[0].weight for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
