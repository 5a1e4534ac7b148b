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

    `measure` does the expensive part; `judge` reads the result. Between them a part of one image's evidence can be
    replaced by another's, to see what a single place is worth.
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

    @abstractmethod
    def judge(self, evidence: Evidence, size_px: tuple[int, int]) -> tuple[Floats, float]:
        """Return anomaly map and raw anomaly score of an image of this height and width."""

    def score(self, images: Images, keys: Sequence[str] | None = None) -> tuple[AnomalyMaps, NDArray[np.float32]]:
        """Return anomaly maps and raw anomaly scores, in the order of the images. `keys`: as of `measure`."""
        measured = zip(self.measure(images, keys), images, strict=True)
        answers = [self.judge(evidence, (image.shape[0], image.shape[1])) for evidence, image in measured]
        return [map_HW for map_HW, _ in answers], np.array([score for _, score in answers], dtype=np.float32)
