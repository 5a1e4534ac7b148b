"""Construction of a network from its config."""

import torch

from steelray.reconstruction.config import DraemConfig, NetworkConfig
from steelray.reconstruction.conv_autoencoder import ConvAutoencoder
from steelray.reconstruction.draem import Draem

Network = Draem | ConvAutoencoder


def build_model(config: NetworkConfig, seed: int = 0) -> Network:
    """Build a network with initial weights that follow from the seed alone; torch's global generator is unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Draem(config) if isinstance(config, DraemConfig) else ConvAutoencoder(config)
