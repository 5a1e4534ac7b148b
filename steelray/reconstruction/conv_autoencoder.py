"""The convolutional autoencoder of the thesis (its table 2).

Shapes: B images, C = 3 channels (RGB), H height and W width, both divisible by 16.
"""

from itertools import pairwise

import torch
from torch import nn

from steelray.reconstruction.config import ConvAutoencoderConfig

CHANNELS = (3, 32, 64, 128, 256)


class ConvAutoencoder(nn.Module):
    """Autoencoder of four convolutions (channels 3-32-64-128-256) and four transposed convolutions.

    Kernel 3, stride 2, padding 1 and ReLU throughout, as in the thesis's table 2. The transposed convolutions have
    an output padding of 1, which restores the input's size.

    Differs from PyTorch's default initialisation in the last layer's bias, which starts at 0.5: a channel that is
    negative everywhere at the start would get no gradient through its ReLU and stay black.
    """

    def __init__(self, config: ConvAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        for inside, outside in pairwise(CHANNELS):
            layers += [nn.Conv2d(inside, outside, 3, stride=2, padding=1), nn.ReLU(inplace=True)]
        self.encoder = nn.Sequential(*layers)
        layers = []
        for inside, outside in pairwise(CHANNELS[::-1]):
            up = nn.ConvTranspose2d(inside, outside, 3, stride=2, padding=1, output_padding=1)
            layers += [up, nn.ReLU(inplace=True)]
        layers.pop()
        self.decoder = nn.Sequential(*layers)
        if config.output_activation == "relu":
            nn.init.constant_(self.decoder[-1].bias, 0.5)  # type: ignore[arg-type]

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Reconstruct images_BCHW (float in [0, 1]) as reconstructions_BCHW (float32)."""
        features_BCHW = self.decoder[:-1](self.encoder(images_BCHW))
        with torch.autocast(images_BCHW.device.type, enabled=False):  # bf16 cannot resolve 1/256 near 1
            outputs_BCHW: torch.Tensor = self.decoder[-1](features_BCHW.float())
        if self.config.output_activation == "relu":
            return outputs_BCHW.relu()
        return outputs_BCHW.sigmoid() if self.config.output_activation == "sigmoid" else outputs_BCHW
