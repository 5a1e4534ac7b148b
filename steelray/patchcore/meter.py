"""Held-out nominal strips to the profile of nominal distances that `scoring.normalization` compares a patch with.

Shapes: h, w the patch grid of a strip.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from steelray.imaging.decode import resize
from steelray.imaging.foreground import foreground_cells
from steelray.patchcore.config import EmbedderConfig, ScoringConfig
from steelray.patchcore.index import BankSearch, PendingSearch
from steelray.patchcore.portable_embedder import EmbedFunction
from steelray.patchcore.profile import NominalProfile, ProfileSums
from steelray.patchcore.scorer import Images, patch_distances


class NominalMeter:
    """What held-out nominal strips show of the distances that `scoring.normalization` compares a patch with.

    Distances are those to the bank, before any option acts on them. Background, and strips whose embedding is not
    finite, do not count. Arguments as of `PatchCoreScorer`, with a normalisation that is not `none`.

    Args:
        num_vectors: of the bank.
    """

    def __init__(
        self,
        embed: EmbedFunction,
        search: BankSearch,
        embedder: EmbedderConfig,
        scoring: ScoringConfig,
        num_vectors: int,
    ) -> None:
        assert scoring.normalization != "none"
        self._none = ProfileSums.empty(scoring.normalization, num_vectors)
        self._embed, self._search = embed, search
        self._resize_px, self._scoring = embedder.resize_px, scoring

    def __call__(self, images: Images) -> ProfileSums:
        """Of these strips."""
        pending: list[tuple[PendingSearch, NDArray[np.bool_]]] = []
        for image in images:
            image = image if self._resize_px is None else resize(image, self._resize_px)
            embeddings_hwD = self._embed(image[None])[0]
            if not np.isfinite(embeddings_hwD).all():
                continue
            rows, columns, dim = embeddings_hwD.shape
            counted_hw = np.ones((rows, columns), dtype=bool)
            if self._scoring.background_level is not None:
                counted_hw = foreground_cells(image, (rows, columns), self._scoring.background_level)
            search = self._search.submit(embeddings_hwD.reshape(-1, dim), self._scoring.num_neighbors)
            pending.append((search, counted_hw))
        sums = self._none
        for search, counted_hw in pending:
            grid = (counted_hw.shape[0], counted_hw.shape[1])
            sums = sums.with_strip(*patch_distances(search.result(), grid), counted_hw)
        return sums


def measure_profile(
    embed: EmbedFunction,
    search: BankSearch,
    embedder: EmbedderConfig,
    scoring: ScoringConfig,
    num_vectors: int,
    images: Iterable[NDArray[np.uint8]],
) -> NominalProfile | None:
    """What held-out nominal strips show, for `PatchCoreScorer`; None where scores are not normalised.

    Raises:
        ConfigError: no strip could be measured.
    """
    if scoring.normalization == "none":
        return None
    meter = NominalMeter(embed, search, embedder, scoring, num_vectors)
    sums = ProfileSums.empty(scoring.normalization, num_vectors)
    for image in images:
        sums += meter([image])
    return sums.profile()
