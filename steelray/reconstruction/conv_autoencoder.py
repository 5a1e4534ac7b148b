"""The convolutional autoencoder of the thesis (its table 2).

Shapes: B images, C = 3 channels (RGB), H height and W width, both divisible by 16.
"""

from itertools import pairwise

import torch
from torch import nn

from steelray.reconstruction.config import ConvAutoencoderConfig

CHANNELS = (3, 32, 64, 128, 256)


class ConvAutoencoder(nn.Module):
    """Images to their reconstructions: four convolutions down (3-32-64-128-256), four transposed ones back.

    Kernel 3, stride 2, padding 1 and ReLU throughout, as in the thesis's table 2; the transposed convolutions have
    an output padding of 1, without which the size would not come back.

    Differs from PyTorch's initialisation in one number: the last layer's bias starts at 0.5, since a channel that is
    negative everywhere at the start would get no gradient through its ReLU and stay black for ever.
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
        """images_BCHW float in [0, 1] to reconstructions_BCHW float32."""
        features_BCHW = self.decoder[:-1](self.encoder(images_BCHW))
        with torch.autocast(images_BCHW.device.type, enabled=False):  # in bf16 1/256 could not be told from nothing
            outputs_BCHW: torch.Tensor = self.decoder[-1](features_BCHW.float())
        if self.config.output_activation == "relu":
            return outputs_BCHW.relu()
        return outputs_BCHW.sigmoid() if self.config.output_activation == "sigmoid" else outputs_BCHW
