"""From a network's config to the network."""

import torch

from steelray.reconstruction.config import DraemConfig, NetworkConfig
from steelray.reconstruction.conv_autoencoder import ConvAutoencoder
from steelray.reconstruction.draem import Draem

Network = Draem | ConvAutoencoder


def build_model(config: NetworkConfig, seed: int = 0) -> Network:
    """The network with its initial weights, the same for the same seed; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Draem(config) if isinstance(config, DraemConfig) else ConvAutoencoder(config)
