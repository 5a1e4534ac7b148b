"""`Scorer`, which every trained method implements: images to anomaly maps and scores.

Shapes: H height, W width, C channels of an image or its map; h, w of a grid over it; N images.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Images = Sequence[NDArray[np.uint8]]
"""pixels_HWC uint8, C = 1 or 3; sizes may differ."""
Floats = NDArray[np.float32]
AnomalyMaps = list[Floats]
"""map_HW float32 of each image; larger is more anomalous. Its size is `resize_px`, or the image's own."""
Evidence = list[Floats]
"""Grids over one image, hw float32, from which its map and score are made."""


class Scorer(ABC):
    """A trained method. A score depends on its image alone, never on the batch.

    `measure` does the expensive part; map and score are read from its evidence. A part of one image's evidence can be
    replaced by another's first, to see what a single place is worth.
    """

    min_size_px: int
    """Least height and width that it can score."""
    num_grids: int = 1
    """Grids in the evidence of an image."""

    @abstractmethod
    def measure(self, images: Images, keys: Sequence[str] | None = None) -> list[Evidence]:
        """Return the evidence of each image.

        Args:
            keys: of the nominal images that these are. Each is compared with what the model learned from the others;
                None: fresh images.
        """

    def covered_px(self, size_px: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the height and width that each grid covers of an image of this size, perhaps beyond its end."""
        return [size_px] * self.num_grids

    @abstractmethod
    def anomaly_map(self, evidence: Evidence, size_px: tuple[int, int]) -> Floats:
        """Return the anomaly map of an image of this height and width."""

    @abstractmethod
    def anomaly_score(self, evidence: Evidence) -> float:
        """Return the raw anomaly score of an image."""

    def score(self, images: Images, keys: Sequence[str] | None = None) -> tuple[AnomalyMaps, NDArray[np.float32]]:
        """Return anomaly maps and raw anomaly scores, in the order of the images. `keys`: as of `measure`."""
        measured = self.measure(images, keys)
        sizes_px = [(image.shape[0], image.shape[1]) for image in images]
        maps = [self.anomaly_map(evidence, size_px) for evidence, size_px in zip(measured, sizes_px, strict=True)]
        return maps, np.array([self.anomaly_score(evidence) for evidence in measured], dtype=np.float32)
