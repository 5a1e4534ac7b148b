"""DRAEM's two networks (Zavrtanik et al. 2021, section 3): one repairs an image, the other compares it with the repair.

Anomalies, losses and training are not handled here. Shapes: B images, C = 3 channels (RGB), H height and W width, both
divisible by 32.
"""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from steelray.reconstruction.config import DraemConfig

RECONSTRUCTIVE_CHANNELS = 128
DISCRIMINATIVE_CHANNELS = 64
"""Channels of each network's first block at width 1."""


class Draem(nn.Module):
    """Reconstructive and discriminative network in sequence.

    Initialised as in the official code: convolution weights N(0, 0.02), normalisation weights N(1, 0.02).
    """

    def __init__(self, config: DraemConfig) -> None:
        super().__init__()
        self.config = config
        width = round(RECONSTRUCTIVE_CHANNELS * config.width)
        self.reconstructive = ReconstructiveNetwork(width, config.norm, config.halvings)
        self.discriminative = DiscriminativeNetwork(round(DISCRIMINATIVE_CHANNELS * config.width), config.norm)
        self.apply(_initialize)

    def forward(
        self, images_BCHW: torch.Tensor, detach_reconstruction: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruct images_BCHW (float32 in [0, 1]) and segment their anomalies.

        Args:
            detach_reconstruction: stop the discriminative network's gradient before the reconstructive one.

        Returns:
            reconstructions_BCHW and logits_B2HW of (nominal, anomalous), both float32.
        """
        reconstructions_BCHW = self.reconstructive(images_BCHW)
        seen_BCHW = reconstructions_BCHW.detach() if detach_reconstruction else reconstructions_BCHW
        return reconstructions_BCHW, self.discriminative(torch.cat((seen_BCHW, images_BCHW), dim=1))


class ReconstructiveNetwork(nn.Module):
    """Autoencoder without skip connections: up to four halvings, channels w, 2w, 4w, 8w, 8w; linear output."""

    def __init__(self, width: int, norm: str, halvings: int = 4) -> None:
        super().__init__()
        w = width
        down, up = (w, 2 * w, 4 * w, 8 * w, 8 * w)[: halvings + 1], (4 * w, 2 * w, w, w)[-halvings:]
        self.encoder = nn.Sequential(
            _block(3, w, w, norm),
            *(layer for inside, outside in pairwise(down)
              for layer in (nn.MaxPool2d(2), _block(inside, outside, outside, norm))),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            *(layer for inside, outside in pairwise((down[-1], *up))
              for layer in (_up(inside, inside, norm), _block(inside, inside, outside, norm))),
        )  # fmt: skip
        self.head = Float32Conv2d(w, 3, kernel_size=3, padding=1)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        reconstructions_BCHW: torch.Tensor = self.head(self.decoder(self.encoder(images_BCHW)))
        return reconstructions_BCHW


class DiscriminativeNetwork(nn.Module):
    """U-Net over reconstruction and image: five halvings, channels w, 2w, 4w, 8w, 8w, 8w; two logits."""

    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        w = width
        sizes = (w, 2 * w, 4 * w, 8 * w, 8 * w, 8 * w)
        self.encoder = nn.ModuleList(
            _block(inside, outside, outside, norm) for inside, outside in zip((6, *sizes[:-1]), sizes, strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        steps = ((8 * w, 8 * w, 8 * w), (8 * w, 8 * w, 4 * w), (4 * w, 4 * w, 2 * w), (2 * w, 2 * w, w), (w, w, w))
        self.up = nn.ModuleList(_up(below, outside, norm) for below, _, outside in steps)
        self.decoder = nn.ModuleList(_block(outside + skip, outside, outside, norm) for _, skip, outside in steps)
        self.head = Float32Conv2d(w, 2, kernel_size=3, padding=1)

    def forward(self, pairs_BCHW: torch.Tensor) -> torch.Tensor:
        """Compute logits_B2HW from pairs_BCHW, C = 6: the reconstruction, then the image."""
        skips = []
        features_BCHW = pairs_BCHW
        for level, block in enumerate(self.encoder):
            features_BCHW = block(self.pool(features_BCHW) if level else features_BCHW)
            skips.append(features_BCHW)
        skips.pop()
        for up, block in zip(self.up, self.decoder, strict=True):
            features_BCHW = block(torch.cat((up(features_BCHW), skips.pop()), dim=1))
        logits_B2HW: torch.Tensor = self.head(features_BCHW)
        return logits_B2HW


class Float32Conv2d(nn.Conv2d):
    """Convolution that stays in float32 under autocast: bf16 cannot resolve 1/256 in an output near 1."""

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images_BCHW.device.type, enabled=False):
            return super().forward(images_BCHW.float())


def _conv(inside: int, outside: int, norm: str) -> list[nn.Module]:
    layer = nn.BatchNorm2d(outside) if norm == "bn" else nn.GroupNorm(num_groups(outside), outside)
    return [nn.Conv2d(inside, outside, kernel_size=3, padding=1), layer, nn.ReLU(inplace=True)]


def _block(inside: int, middle: int, outside: int, norm: str) -> nn.Sequential:
    return nn.Sequential(*_conv(inside, middle, norm), *_conv(middle, outside, norm))


def _up(inside: int, outside: int, norm: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), *_conv(inside, outside, norm)
    )


def num_groups(channels: int) -> int:
    """Return the number of groups of a group normalisation: at most 32, with at least four channels each."""
    return math.gcd(32, channels // 4)


def _initialize(module: Any) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
