"""Actors that hold the bank: slices of the finished one for search, and embeddings while one is being selected.

The classes are plain; `ray.remote` is applied where they are started. Both kinds restore themselves from storage when
Ray restarts them. Shapes as in `steelray.memory_bank`.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayError

from steelray.data.storage import Location
from steelray.distributed.cluster import SHARD_CPUS
from steelray.memory_bank.bank import read_info, read_vectors
from steelray.memory_bank.coreset import Candidates, CoresetShard, project
from steelray.memory_bank.merge import Neighbors, merge_neighbors
from steelray.memory_bank.planner import shard_bounds
from steelray.memory_bank.shard import BankUnavailable, IndexShard

RESTARTS = 3


class SearchServer:
    """A slice of a bank, read from storage."""

    def __init__(self, bank_uri: str, bank_id: str, start: int, stop: int) -> None:
        location = Location(bank_uri)
        info = read_info(location.read, bank_uri)
        if info.bank_id != bank_id:
            raise BankUnavailable(f"{bank_uri} now holds bank {info.bank_id}, not {bank_id}")
        use_gpu = torch.cuda.is_available()
        self._shard = IndexShard(read_vectors(location.read, info, start, stop), first_id=start, use_gpu=use_gpu)

    def search(self, queries_QD: NDArray[np.float32], num_neighbors: int) -> Neighbors:
        return self._shard.search(queries_QD, num_neighbors)


class ActorSearch:
    """The whole bank over shard actors; a `BankSearch`. Queries go through the object store once."""

    def __init__(self, servers: Sequence[Any]) -> None:
        self._servers = list(servers)

    def submit(self, queries_QD: NDArray[np.float32], num_neighbors: int) -> "_RemoteSearch":
        queries = ray.put(queries_QD)
        return _RemoteSearch([s.search.remote(queries, num_neighbors) for s in self._servers], num_neighbors)


class _RemoteSearch:
    def __init__(self, refs: Sequence[Any], num_neighbors: int) -> None:
        self._refs = list(refs)
        self._num_neighbors = num_neighbors

    def result(self) -> Neighbors:
        try:
            answers = ray.get(self._refs)
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
    servers = [actor.remote(bank_uri, bank_id, *bounds) for bounds in shard_bounds(num_vectors, num_shards)]
    try:
        ray.get([server.__ray_ready__.remote() for server in servers])
    except RayError as error:
        raise BankUnavailable(f"a shard of {bank_uri} cannot be loaded: {error}") from error
    return servers


class EmbeddingServer:
    """Embeddings of the nominal images that fall to one shard, while the coreset is selected.

    Every image's embeddings are written to storage before they are acknowledged; a restarted actor reads them back,
    and is told the rounds that it missed.
    """

    def __init__(self, scratch_uri: str, number: int, projection: tuple[int, int] | None) -> None:
        self._scratch = Location(f"{scratch_uri}/{number}")
        self._projection = projection
        self._images: dict[int, NDArray[np.float32]] = {}
        self._shard: CoresetShard | None = None
        self._round = 0
        self._scratch.check_access(create=True)
        for stored in self._scratch.list():
            body = self._scratch.read(stored.key)
            self._images[int(stored.key.removesuffix(".npy"))] = np.load(io.BytesIO(body), allow_pickle=False)

    def add(self, image_index: int, embeddings_QD: NDArray[np.float32]) -> None:
        buffer = io.BytesIO()
        np.save(buffer, embeddings_QD, allow_pickle=False)
        self._scratch.write(f"{image_index:08d}.npy", buffer.getvalue())
        self._images[image_index] = np.array(embeddings_QD)

    def points(self, first_index_of: dict[int, int], indices_B: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embeddings (before projection) of those global indices that lie here, in the order given."""
        firsts = sorted((first_index_of[image], image) for image in self._images)
        starts = np.array([first for first, _ in firsts], dtype=np.int64)
        found = []
        for index in indices_B:
            place = int(np.searchsorted(starts, index, side="right")) - 1
            if place >= 0 and index - starts[place] < len(self._images[firsts[place][1]]):
                found.append(self._images[firsts[place][1]][index - starts[place]])
        dim = next(iter(self._images.values())).shape[1] if self._images else 0
        return np.stack(found) if found else np.empty((0, dim), dtype=np.float32)

    def candidates(
        self,
        first_index_of: dict[int, int],
        round_number: int,
        count: int,
        centers_BD: torch.Tensor,
        picked_B: torch.Tensor,
    ) -> Candidates | None:
        """One round of `steelray.memory_bank.coreset.select`; None if this actor has missed earlier rounds."""
        if round_number == 0 or self._shard is None:
            self._shard, self._round = self._build(first_index_of), 0
        if self._round != round_number:
            self._shard = None
            return None
        self._round += 1
        return self._shard.candidates(count, centers_BD, picked_B)

    def _build(self, first_index_of: dict[int, int]) -> CoresetShard:
        images = sorted(self._images, key=lambda image: first_index_of[image])
        if not images:
            return CoresetShard(torch.empty((0, 1)))
        # one matrix per shard, after which the images' own arrays are views into it: never two copies
        matrix = np.concatenate([self._images[image] for image in images])
        indices, row = [], 0
        for image in images:
            rows = len(self._images[image])
            indices.append(np.arange(rows) + first_index_of[image])
            self._images[image] = matrix[row : row + rows]
            row += rows
        points_ND = torch.from_numpy(matrix)
        if self._projection is not None:
            points_ND = project(points_ND, *self._projection)
        if torch.cuda.is_available():
            points_ND = points_ND.cuda()
        return CoresetShard(points_ND, torch.from_numpy(np.concatenate(indices)))


class RemoteShards:
    """All embedding actors together, as `select` asks them: one gather per round, lost rounds replayed."""

    def __init__(
        self, servers: Sequence[Any], first_index_of: dict[int, int], projection: tuple[int, int] | None
    ) -> None:
        self._servers = list(servers)
        self._first_index_of = ray.put(first_index_of)
        self._projection = projection
        self._rounds: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def vectors(self, indices_M: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embeddings of global indices, in the order given, before projection."""
        parts = ray.get([server.points.remote(self._first_index_of, np.sort(indices_M)) for server in self._servers])
        # every part keeps rising order, and each index lies in one shard: find out which by asking for the indices
        owners = ray.get([server.owned.remote(self._first_index_of, np.sort(indices_M)) for server in self._servers])
        rows = {int(i): v for part, owned in zip(parts, owners, strict=True) for i, v in zip(owned, part, strict=True)}
        return np.stack([rows[int(index)] for index in indices_M])

    def gather(self, count: int, centers_BD: torch.Tensor, picked_B: torch.Tensor) -> list[Candidates]:
        """One round."""
        self._rounds.append((count, centers_BD, picked_B))
        offers = self._ask(self._servers, len(self._rounds) - 1)
        for place, offer in enumerate(offers):
            if offer is None:
                for number in range(len(self._rounds)):
                    [offers[place]] = self._ask([self._servers[place]], number)
        return [self._complete(offer) for offer in offers]

    def _ask(self, servers: Sequence[Any], number: int) -> list[Candidates | None]:
        count, centers_BD, picked_B = self._rounds[number]
        shared = ray.put((centers_BD, picked_B))
        refs = [server.candidates.remote(self._first_index_of, number, count, shared) for server in servers]
        return list(ray.get(refs))

    @staticmethod
    def _complete(offer: Candidates | None) -> Candidates:
        if offer is None:
            raise BankUnavailable("an embedding shard was lost twice in one round")
        return offer
