"""Timing of the stages of scoring, reported to a callback, so that no metrics library is needed here."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from steelray.patchcore.index import BankSearch, Neighbors, PendingSearch
from steelray.patchcore.portable_embedder import EmbedFunction

Observe = Callable[[str, float], None]
"""Takes the name of a stage (`read`, `decode`, `embed`, `search`, `score`, `write`) and the seconds that it took."""


def unobserved(stage: str, seconds: float) -> None:
    """Ignore the time of a stage."""


@contextmanager
def stage(name: str, observe: Observe) -> Iterator[None]:
    """Time a block; one that raises is not reported."""
    start_s = time.perf_counter()
    yield
    observe(name, time.perf_counter() - start_s)


def timed_embed(embed: EmbedFunction, observe: Observe) -> EmbedFunction:
    """Return the same function, with its time reported as `embed`."""

    def embed_timed(images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        with stage("embed", observe):
            return embed(images_BHWC)

    return embed_timed


class TimedSearch:
    """A `BankSearch` that reports the time of asking and of waiting for the answer as `search`."""

    def __init__(self, search: BankSearch, observe: Observe) -> None:
        self._search = search
        self._observe = observe

    def submit(
        self, queries_QD: NDArray[np.float32], num_neighbors: int, without_M: NDArray[np.int64] | None = None
    ) -> "_TimedPending":
        start_s = time.perf_counter()
        pending = self._search.submit(queries_QD, num_neighbors, without_M)
        return _TimedPending(pending, time.perf_counter() - start_s, self._observe)


class _TimedPending:
    def __init__(self, pending: PendingSearch, spent_s: float, observe: Observe) -> None:
        self._pending = pending
        self._spent_s = spent_s
        self._observe = observe

    def result(self) -> Neighbors:
        start_s = time.perf_counter()
        neighbors = self._pending.result()
        self._observe("search", self._spent_s + time.perf_counter() - start_s)
        return neighbors
