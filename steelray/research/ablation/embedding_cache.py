"""A folder of embeddings, keyed by the content of the image. Several processes may share it."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steelray.patchcore.config import EmbedderConfig, identity
from steelray.patchcore.portable_embedder import EmbedFunction


class CachedEmbedding:
    """Looks an embedding up in a folder before it computes it; an `EmbedFunction`.

    Args:
        folder: gets one subfolder per embedder, named by the digest of its settings and weights.
    """

    def __init__(self, embed: EmbedFunction, config: EmbedderConfig, weights_digest: str, folder: Path) -> None:
        settings = json.dumps([identity(config), weights_digest], sort_keys=True)
        self._folder = folder / hashlib.sha256(settings.encode()).hexdigest()[:16]
        self._folder.mkdir(parents=True, exist_ok=True)
        self._embed = embed

    def __call__(self, images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.stack([self._one(image_HWC) for image_HWC in images_BHWC])

    def _one(self, image_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        image_HWC = np.ascontiguousarray(image_HWC)
        digest = hashlib.blake2b(repr(image_HWC.shape).encode() + image_HWC.tobytes(), digest_size=16).hexdigest()
        path = self._folder / f"{digest}.npy"
        try:
            embeddings_hwD: NDArray[np.float32] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):  # missing, or cut short by a full disk
            embeddings_hwD = self._embed(image_HWC[None])[0]
            unfinished = path.with_suffix(f".{os.getpid()}.tmp")
            with unfinished.open("wb") as file:
                np.save(file, embeddings_hwD, allow_pickle=False)
            unfinished.replace(path)
        return embeddings_hwD
