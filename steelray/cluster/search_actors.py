"""Actors that hold the slices of a finished bank, and the search over all of them.

Ray restarts a lost actor, which then reads its slice from storage again. Shapes as in `steelray.patchcore`.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import ActorUnavailableError, RayError

from steelray.cluster.metrics import announce_shard
from steelray.cluster.plan import MAX_RESTARTS, SHARD_CPUS
from steelray.patchcore.bank import read_info
from steelray.patchcore.index import BankUnavailable, Neighbors, load_shard, merge_neighbors
from steelray.patchcore.planner import shard_bounds
from steelray.storage.location import Location

AWAY_S = 180.0
"""Seconds that a shard may take to answer after its node was lost: it must start and load again elsewhere."""


class SearchServer:
    """A slice of a bank, read from storage. A plain class; `start_search_servers` makes actors of it."""

    def __init__(self, bank_uri: str, bank_id: str, use_gpu: bool, start: int, stop: int) -> None:
        location = Location(bank_uri)
        info = read_info(location.read, bank_uri)
        if info.bank_id != bank_id:
            raise BankUnavailable(f"{bank_uri} now holds bank {info.bank_id}, not {bank_id}")
        self._shard = load_shard(location.read, info, start, stop, use_gpu=use_gpu)
        announce_shard(bank_id, start)

    def search(
        self, queries_QD: NDArray[np.float32], num_neighbors: int, without_M: NDArray[np.int64] | None
    ) -> Neighbors:
        return self._shard.search(queries_QD, num_neighbors, without_M)


class ActorSearch:
    """Search the whole bank over shard actors; a `BankSearch`. All of them read the queries from the object store."""

    def __init__(self, servers: Sequence[Any]) -> None:
        self._servers = list(servers)

    def submit(
        self, queries_QD: NDArray[np.float32], num_neighbors: int, without_M: NDArray[np.int64] | None = None
    ) -> "_RemoteSearch":
        return _RemoteSearch(self._servers, ray.put(queries_QD), num_neighbors, without_M)


class _RemoteSearch:
    def __init__(
        self, servers: Sequence[Any], queries: Any, num_neighbors: int, without_M: NDArray[np.int64] | None
    ) -> None:
        self._servers = servers
        self._queries = queries
        self._num_neighbors = num_neighbors
        self._without_M = without_M
        self._refs = [self._ask(server) for server in servers]

    def _ask(self, server: Any) -> Any:
        return server.search.remote(self._queries, self._num_neighbors, self._without_M)

    def _answer(self, number: int, deadline_s: float) -> Neighbors:
        while True:
            try:
                answer: Neighbors = ray.get(self._refs[number])
                return answer
            except ActorUnavailableError:  # Ray's own retries end before it notices that the node is gone
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(1)
                self._refs[number] = self._ask(self._servers[number])

    def result(self) -> Neighbors:
        deadline_s = time.monotonic() + AWAY_S
        try:
            answers = [self._answer(number, deadline_s) for number in range(len(self._refs))]
        except RayError as error:
            raise BankUnavailable(f"a shard of the memory bank did not answer ({type(error).__name__})") from error
        return merge_neighbors(answers, self._num_neighbors)


def start_search_servers(bank_uri: str, bank_id: str, num_vectors: int, num_shards: int, gpus: float = 0) -> list[Any]:
    """Start one actor per shard, spread over the nodes, and wait until all have loaded their slices.

    Raises:
        BankUnavailable: one of them cannot load its shard.
    """
    actor = ray.remote(SearchServer).options(
        num_cpus=SHARD_CPUS,
        num_gpus=gpus,
        max_restarts=MAX_RESTARTS,
        max_task_retries=MAX_RESTARTS,
        scheduling_strategy="SPREAD",
    )
    servers = [actor.remote(bank_uri, bank_id, gpus > 0, *bounds) for bounds in shard_bounds(num_vectors, num_shards)]
    try:
        ray.get([server.__ray_ready__.remote() for server in servers])
    except RayError as error:
        raise BankUnavailable(f"a shard of {bank_uri} cannot be loaded: {error}") from error
    return servers
