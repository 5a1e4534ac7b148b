"""A batch of training samples as tensors. Shapes: B images, C = 3 channels (RGB), H height, W width."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from steelray.reconstruction.synthesis import TrainingSample


@dataclass(frozen=True)
class Batch:
    """Stacked training samples: images and targets float32 in [0, 1], masks and foreground bool."""

    keys: tuple[str, ...]
    images_BCHW: torch.Tensor
    targets_BCHW: torch.Tensor
    masks_BHW: torch.Tensor
    foreground_BHW: torch.Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """Move the batch to a device; images get the channels-last layout, in which convolutions run faster."""

        def move(images_BCHW: torch.Tensor) -> torch.Tensor:
            return images_BCHW.to(device, non_blocking=True, memory_format=torch.channels_last)

        return replace(
            self,
            images_BCHW=move(self.images_BCHW),
            targets_BCHW=move(self.targets_BCHW),
            masks_BHW=self.masks_BHW.to(device, non_blocking=True),
            foreground_BHW=None if self.foreground_BHW is None else self.foreground_BHW.to(device, non_blocking=True),
        )


def collate(samples: Sequence[TrainingSample]) -> Batch:
    """Stack samples of the same size into a batch."""
    counted = [sample.foreground_HW for sample in samples if sample.foreground_HW is not None]
    return Batch(
        keys=tuple(sample.key for sample in samples),
        images_BCHW=torch.from_numpy(np.stack([sample.image_CHW for sample in samples])),
        targets_BCHW=torch.from_numpy(np.stack([sample.target_CHW for sample in samples])),
        masks_BHW=torch.from_numpy(np.stack([sample.mask_HW for sample in samples])),
        foreground_BHW=torch.from_numpy(np.stack(counted)) if counted else None,
    )
