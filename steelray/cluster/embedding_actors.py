"""Actors that hold the embeddings of the nominal images while a coreset is selected from them.

Shapes as in `steelray.patchcore`.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayTaskError

from steelray.cluster.plan import MAX_RESTARTS, SHARD_CPUS
from steelray.patchcore.coreset import Candidates, CoresetShard
from steelray.patchcore.index import BankUnavailable
from steelray.patchcore.suspects import Comparison, Floats, Ids, LocalPatches, merged
from steelray.storage.location import Location

Placement = tuple[dict[int, int], dict[int, int]]
"""Number of each usable image by its index in the manifest, and columns of its patch grid by number."""


class EmbeddingServer:
    """The embeddings of one shard's images. A plain class; `start_embedding_servers` makes actors of it.

    Embeddings are written to storage before they are acknowledged. A restarted actor reads them back, and its caller
    replays the rounds that it missed.
    """

    def __init__(self, scratch_uri: str, number: int, num_threads: int) -> None:
        self._scratch = Location(f"{scratch_uri}/{number}")
        self._num_threads = num_threads
        self._images: dict[int, NDArray[np.float32]] = {}
        self._shard: CoresetShard | None = None
        self._round = 0
        self._scratch.check_access(create=True)
        for stored in self._scratch.list():
            body = self._scratch.read(stored.key)
            self._images[int(stored.key.removesuffix(".npy"))] = np.load(io.BytesIO(body), allow_pickle=False)

    def add(self, image_index: int, embeddings_QD: NDArray[np.float32]) -> None:
        """Keep one image's embeddings; adding them again changes nothing."""
        buffer = io.BytesIO()
        np.save(buffer, embeddings_QD, allow_pickle=False)
        self._scratch.write(f"{image_index:08d}.npy", buffer.getvalue())
        self._images[image_index] = np.array(embeddings_QD)

    def points(
        self, first_index_of: dict[int, int], indices_B: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return those of the global indices that this shard holds, and their embeddings."""
        firsts = sorted((first_index_of[image], image) for image in self._images)
        starts = np.array([first for first, _ in firsts], dtype=np.int64)
        places = np.searchsorted(starts, indices_B, side="right") - 1
        found, vectors = [], []
        for index, place in zip(indices_B.tolist(), places.tolist(), strict=True):
            if place >= 0:
                rows_QD = self._images[firsts[place][1]]
                if index - firsts[place][0] < len(rows_QD):
                    found.append(index)
                    vectors.append(rows_QD[index - firsts[place][0]])
        dim = next(iter(self._images.values())).shape[1] if self._images else 0
        return np.array(found, dtype=np.int64), np.stack(vectors) if vectors else np.empty((0, dim), dtype=np.float32)

    def candidates(
        self, first_index_of: dict[int, int], number: int, count: int, centers: tuple[torch.Tensor, torch.Tensor]
    ) -> Candidates | None:
        """Run round `number` of `steelray.patchcore.coreset.select`; return None if earlier rounds were missed."""
        if number == 0:
            self._shard, self._round = self._build(first_index_of), 0
        if self._shard is None or self._round != number:
            self._shard = None
            return None
        self._round += 1
        return self._shard.candidates(count, *centers)

    def compare(self, place: Placement, vectors_MD: Floats, strips_M: Ids, strip_of: Sequence[int]) -> Comparison:
        """Compare bank vectors with the patches of this shard; see `steelray.patchcore.suspects`."""
        return self._patches(place).compare(vectors_MD, strips_M, strip_of)

    def own_distances(self, place: Placement, origins_M3: NDArray[np.int32]) -> Floats:
        """Return the distances of patches to their own image; NaN where this shard does not hold it."""
        return self._patches(place).own_distances(origins_M3)

    def _patches(self, place: Placement) -> LocalPatches:
        torch.set_num_threads(self._num_threads)
        numbers, columns = place
        return LocalPatches({numbers[image]: rows_QD for image, rows_QD in sorted(self._images.items())}, columns)

    def _build(self, first_index_of: dict[int, int]) -> CoresetShard:
        torch.set_num_threads(self._num_threads)  # embedding is over, so the cores are free
        images = sorted(self._images, key=lambda image: first_index_of[image])
        if not images:
            return CoresetShard(torch.empty((0, 1)))
        # one matrix per shard; the images' own arrays become views of it, so that no embedding is held twice
        matrix = np.concatenate([self._images[image] for image in images])
        indices, row = [], 0
        for image in images:
            rows = len(self._images[image])
            indices.append(np.arange(rows) + first_index_of[image])
            self._images[image] = matrix[row : row + rows]
            row += rows
        points_ND = torch.from_numpy(matrix)
        if torch.cuda.is_available():
            points_ND = points_ND.cuda()
        return CoresetShard(points_ND, torch.from_numpy(np.concatenate(indices)))


class RemoteShards:
    """All embedding actors as the one shard that `select` sees; replays the rounds that a restarted actor missed."""

    def __init__(self, servers: Sequence[Any], first_index_of: dict[int, int]) -> None:
        self._servers = list(servers)
        self._first_index_of = ray.put(first_index_of)
        self._rounds: list[tuple[int, Any]] = []

    def vectors(self, indices_M: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the embeddings of global indices, in the order given."""
        answers = ray.get([server.points.remote(self._first_index_of, indices_M) for server in self._servers])
        found = np.concatenate([indices for indices, _ in answers])
        vectors = np.concatenate([part for indices, part in answers if len(indices)])
        order = np.argsort(found)
        return vectors[order[np.searchsorted(found[order], indices_M)]]

    def points(self, indices_B: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of global indices as a tensor."""
        return torch.from_numpy(self.vectors(indices_B.numpy()))

    def gather(self, count: int, centers_BD: torch.Tensor, picked_B: torch.Tensor) -> list[Candidates]:
        """Run one round over all shards and return their candidates."""
        self._rounds.append((count, ray.put((centers_BD.cpu(), picked_B.cpu()))))
        offers = self._ask(self._servers, len(self._rounds) - 1)
        for place, offer in enumerate(offers):
            if offer is None:  # restarted since the last round
                for number in range(len(self._rounds)):
                    [offers[place]] = self._ask([self._servers[place]], number)
        if any(offer is None for offer in offers):
            raise BankUnavailable("an embedding shard was lost twice in one round: run the job again")
        return [offer for offer in offers if offer is not None]

    def _ask(self, servers: Sequence[Any], number: int) -> list[Candidates | None]:
        count, centers = self._rounds[number]
        refs = [server.candidates.remote(self._first_index_of, number, count, centers) for server in servers]
        try:
            return list(ray.get(refs))
        except RayTaskError as error:
            if isinstance(error.cause, ValueError):  # its message names the wrong embedding
                raise error.cause from None
            raise


class RemotePatches:
    """All embedding actors as the `Patches` that suspects are judged by. A restarted actor has its embeddings again."""

    def __init__(self, servers: Sequence[Any], numbers: dict[int, int], columns: dict[int, int]) -> None:
        self._servers = list(servers)
        self._place = ray.put((numbers, columns))

    def compare(self, vectors_MD: Floats, strips_M: Ids, strip_of: Sequence[int]) -> Comparison:
        """Compare bank vectors with the patches of other strips, on all shards."""
        vectors, strips, of_image = ray.put(vectors_MD), ray.put(strips_M), ray.put(strip_of)
        return merged(ray.get([one.compare.remote(self._place, vectors, strips, of_image) for one in self._servers]))

    def own_distances(self, origins_M3: NDArray[np.int32]) -> Floats:
        """Return the distance of each patch to the nearest part of its own image."""
        parts = ray.get([server.own_distances.remote(self._place, origins_M3) for server in self._servers])
        distances_M: Floats = np.fmin.reduce(parts)  # NaN on all shards but one
        return distances_M


def start_embedding_servers(scratch_uri: str, num_servers: int, num_threads: int) -> list[Any]:
    """Start one actor per embedding shard, spread over the nodes."""
    actor = ray.remote(EmbeddingServer).options(
        num_cpus=SHARD_CPUS, max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS, scheduling_strategy="SPREAD"
    )
    return [actor.remote(scratch_uri, number, num_threads) for number in range(num_servers)]
