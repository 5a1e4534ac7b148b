"""Actors that hold a finished bank, each a slice of it, and the search over all of them.

The class is plain; `ray.remote` is applied where it is started. Ray restarts a lost actor, which reads its slice from
storage again. Shapes as in `steelray.patchcore`.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import ActorUnavailableError, RayError

from steelray.cluster.connect import RESTARTS, SHARD_CPUS
from steelray.cluster.metrics import announce_shard
from steelray.patchcore.bank import read_info
from steelray.patchcore.index import BankUnavailable, load_shard
from steelray.patchcore.merge import Neighbors, merge_neighbors
from steelray.patchcore.planner import shard_bounds
from steelray.storage.location import Location

AWAY_S = 180.0
"""How long a shard may be without an answer: its node is lost, and it starts and loads again elsewhere."""


class SearchServer:
    """A slice of a bank, read from storage."""

    def __init__(self, bank_uri: str, bank_id: str, use_gpu: bool, start: int, stop: int) -> None:
        location = Location(bank_uri)
        info = read_info(location.read, bank_uri)
        if info.bank_id != bank_id:
            raise BankUnavailable(f"{bank_uri} now holds bank {info.bank_id}, not {bank_id}")
        self._shard = load_shard(location.read, info, start, stop, use_gpu=use_gpu)
        announce_shard(bank_id, start)

    def search(self, queries_QD: NDArray[np.float32], num_neighbors: int) -> Neighbors:
        return self._shard.search(queries_QD, num_neighbors)


class ActorSearch:
    """The whole bank over shard actors; a `BankSearch`. Queries go through the object store once."""

    def __init__(self, servers: Sequence[Any]) -> None:
        self._servers = list(servers)

    def submit(self, queries_QD: NDArray[np.float32], num_neighbors: int) -> "_RemoteSearch":
        return _RemoteSearch(self._servers, ray.put(queries_QD), num_neighbors)


class _RemoteSearch:
    def __init__(self, servers: Sequence[Any], queries: Any, num_neighbors: int) -> None:
        self._servers = servers
        self._queries = queries
        self._num_neighbors = num_neighbors
        self._refs = [self._ask(server) for server in servers]

    def _ask(self, server: Any) -> Any:
        return server.search.remote(self._queries, self._num_neighbors)

    def _answer(self, number: int, deadline_s: float) -> Neighbors:
        while True:
            try:
                answer: Neighbors = ray.get(self._refs[number])
                return answer
            except ActorUnavailableError:  # Ray's own retries are over before it knows that the node is gone
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
    """One actor per shard, spread over the nodes, all loaded when this returns.

    Raises:
        BankUnavailable: one of them cannot load its shard.
    """
    actor = ray.remote(SearchServer).options(
        num_cpus=SHARD_CPUS,
        num_gpus=gpus,
        max_restarts=RESTARTS,
        max_task_retries=RESTARTS,
        scheduling_strategy="SPREAD",
    )
    servers = [actor.remote(bank_uri, bank_id, gpus > 0, *bounds) for bounds in shard_bounds(num_vectors, num_shards)]
    try:
        ray.get([server.__ray_ready__.remote() for server in servers])
    except RayError as error:
        raise BankUnavailable(f"a shard of {bank_uri} cannot be loaded: {error}") from error
    return servers
