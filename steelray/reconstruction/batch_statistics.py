"""The running statistics of batch normalisation: where they are, and how a pass leaves them as they were."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """The layers that have them."""
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d | nn.SyncBatchNorm)]


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Undoes what a pass in training mode does to running statistics, and restores the mode."""
    was_training = model.training
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in saved:
                buffer.copy_(value)
        model.train(was_training)
