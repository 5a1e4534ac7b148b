"""The bank vectors of each nominal strip, which are left out when the strip itself is scored.

A strip that a bank was fitted on has distance 0 to its own vectors, which says nothing about fresh strips. Without them
the search answers as if the strip had been left out of the bank, so that every nominal strip serves twice: its patches
teach, and its score sets thresholds (leave-one-out; Barber et al. 2021, "Predictive inference with the jackknife+").
One difference remains: a coreset selected without the strip might have kept a few more of the others' patches, so the
distances are slightly too large, and thresholds err towards fewer false alarms.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

OwnVectors = dict[str, NDArray[np.int64]]
"""Global ids of the vectors that each strip contributed, by its key."""


def own_vectors(origins_N3: NDArray[np.int32], image_keys: Sequence[str], num_neighbors: int = 1) -> OwnVectors:
    """Return the vectors by strip; images with the same key, such as the tiles of a strip, count as one.

    Args:
        origins_N3: image index, row and column of each of the bank's N vectors.
        image_keys: by image index.
        num_neighbors: a strip without which fewer vectors remain has no entry, and is searched whole: the bank holds
            nothing else, because all strips are alike.
    """
    parts: dict[str, list[NDArray[np.int64]]] = {}
    order = np.argsort(origins_N3[:, 0], kind="stable").astype(np.int64)
    images, starts = np.unique(origins_N3[order, 0], return_index=True)
    for image, ids in zip(images.tolist(), np.split(order, starts[1:]), strict=True):
        parts.setdefault(image_keys[image], []).append(ids)
    most = len(origins_N3) - num_neighbors
    own = {key: np.sort(np.concatenate(ids)) for key, ids in parts.items()}
    return {key: ids for key, ids in own.items() if len(ids) <= most}
