"""Nominal images over a cluster to the patches that represent them: embed, hold in actors, select there.

The driver never holds the embeddings, only the picks. Shapes as in `steelray.patchcore`.
"""

import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from numpy.typing import NDArray

from steelray.cluster.connect import ComputePlan
from steelray.cluster.embedding_actors import RemoteShards, start_embedding_servers
from steelray.cluster.image_source import map_images
from steelray.config import ComputeConfig, ConfigError, DecodeConfig
from steelray.models.model import load_embed
from steelray.patchcore.config import EmbedderConfig
from steelray.patchcore.coreset import Coreset, select
from steelray.patchcore.fit import embed_images, patch_origins
from steelray.patchcore.portable_embedder import PortableEmbedder
from steelray.patchcore.quantised import recall_queries
from steelray.runs.batch import images_of
from steelray.schema import Status
from steelray.storage.location import Location

Report = Callable[[str], None]

EMBEDDED = pa.schema(
    [
        pa.field("image_index", pa.int64(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("height_px", pa.int32()),
        pa.field("width_px", pa.int32()),
        pa.field("grid_rows", pa.int32()),
        pa.field("grid_columns", pa.int32()),
    ]
)


@dataclass(frozen=True)
class NominalImages:
    """Images to learn from, and how they are read and embedded.

    Attributes:
        manifest: those of them to embed, schema `MANIFEST`.
        input_size_px: height and width that they must have; None takes any.
    """

    uri: str
    manifest: pa.Table
    decode: DecodeConfig
    embedder: EmbedderConfig
    weights_digest: str
    portable: PortableEmbedder | None
    compute: ComputeConfig
    input_size_px: tuple[int, int] | None = None


@dataclass(frozen=True)
class Selection:
    """The picks, in order, and the images that they were chosen from.

    Attributes:
        vectors_MD, origins_M3: image indices count within `image_keys`.
        image_keys, sizes_px: of all images that could be used.
        num_candidates: patches of these.
        queries_QD: patches that were not picked, to measure a recall on.
        skipped: images that could not be used, by status.
    """

    chosen: Coreset
    vectors_MD: NDArray[np.float32]
    origins_M3: NDArray[np.int32]
    image_keys: tuple[str, ...]
    sizes_px: list[tuple[int, int]]
    num_candidates: int
    queries_QD: NDArray[np.float32]
    skipped: dict[str, int]
    embedding_s: float
    selection_s: float


class EmbeddingActor:
    """Embeds batches of decoded images; the embeddings go straight to the shard actors, only their shapes come back."""

    def __init__(
        self,
        embedder: EmbedderConfig,
        digest: str,
        compute: ComputeConfig,
        plan: ComputePlan,
        portable: list[ray.ObjectRef],
        input_size_px: tuple[int, int] | None,
        servers: list[Any],
    ) -> None:
        self._embed, self._min_size_px = load_embed(
            embedder, digest, compute, plan.scorer_threads, ray.get(portable[0])
        )
        self._embedder = embedder
        self._input_size_px = input_size_px
        self._servers = servers

    def __call__(self, decoded: pa.Table) -> pa.Table:
        rows = decoded.drop_columns(["pixels"]).to_pylist()
        acknowledgements = []
        for row, image in zip(rows, images_of(decoded), strict=True):
            if row["status"] != Status.OK or image is None:
                continue
            if self._input_size_px is not None and image.shape[:2] != tuple(self._input_size_px):
                row["status"] = Status.WRONG_SHAPE
                continue
            if min(self._embedder.resize_px or image.shape[:2]) < self._min_size_px:
                row["status"] = Status.TOO_SMALL
                continue
            [embeddings_hwD] = embed_images(self._embed, [image], self._embedder)
            row["grid_rows"], row["grid_columns"], dim = embeddings_hwD.shape
            server = self._servers[row["image_index"] % len(self._servers)]
            acknowledgements.append(server.add.remote(row["image_index"], embeddings_hwD.reshape(-1, dim)))
        ray.get(acknowledgements)
        return pa.Table.from_pylist([{name: row.get(name) for name in EMBEDDED.names} for row in rows], EMBEDDED)


def select_patches(
    images: NominalImages,
    plan: ComputePlan,
    limits: Callable[[int], tuple[int, float]],
    report: Report,
    *,
    scratch_uri: str,
    centers_KD: torch.Tensor | None = None,
    num_cpus: float = 1,
) -> Selection:
    """Embeds nominal images and selects the patches that cover them.

    Args:
        limits: from the number of patches to the picks at most and the cover radius that ends the selection (0: none).
            May raise `ValueError`.
        scratch_uri: the embeddings wait below a new name beside this place, for actors that have to be restarted.
        centers_KD: existing centres that the selection goes on from.
        num_cpus: of the cluster, which the shards share once everything is embedded.

    Raises:
        ConfigError: no image can be used, embeddings are not finite, or a limit is wrong.
    """
    scratch_uri = f"{scratch_uri.rstrip('/')}-scratch-{uuid.uuid4().hex[:8]}"
    servers = start_embedding_servers(scratch_uri, plan.num_shards, max(1, int(num_cpus // plan.num_shards)))
    try:
        start_s = time.perf_counter()
        table = _embed(images, plan, servers)
        embedding_s = time.perf_counter() - start_s
        usable = table.filter(pc.equal(table.column("status"), Status.OK)).sort_by("image_index").to_pylist()
        statuses = {entry["values"]: entry["counts"] for entry in table.column("status").value_counts().to_pylist()}
        skipped = {status: count for status, count in statuses.items() if status != Status.OK}
        if not usable:
            raise ConfigError(f"{images.uri}: none of {len(table)} images can be used: {skipped}")
        if skipped:
            report(f"left out of the bank: {skipped}")
        grids = [(row["grid_rows"], row["grid_columns"]) for row in usable]
        starts = np.cumsum([0, *map(math.prod, grids)])
        first_index_of = {row["image_index"]: int(start) for row, start in zip(usable, starts[:-1], strict=True)}
        shards = RemoteShards(servers, first_index_of)
        start_s = time.perf_counter()
        try:
            limit, cover_radius = limits(int(starts[-1]))
            chosen = select(
                [shards],  # type: ignore[list-item]
                limit,
                centers_KD=centers_KD,
                cover_radius=cover_radius,
                gather=shards.gather,
                progress=lambda done, of, radius: report(f"coreset: {done} of {of} centres, cover radius {radius:.3f}"),
            )
        except ValueError as error:
            raise ConfigError(f"coreset: {error}") from None
        selection_s = time.perf_counter() - start_s
        picked = chosen.indices_M.numpy()
        numbers, names = (images.manifest.column(name).to_pylist() for name in ("image_index", "image_key"))
        key_of = dict(zip(numbers, names, strict=True))
        return Selection(
            chosen,
            shards.vectors(picked),
            patch_origins(grids)[picked],
            tuple(key_of[row["image_index"]] for row in usable),
            [(row["height_px"], row["width_px"]) for row in usable],
            int(starts[-1]),
            shards.vectors(recall_queries(int(starts[-1]), picked)),
            skipped,
            embedding_s,
            selection_s,
        )
    finally:
        for server in servers:
            ray.kill(server)
        Location(scratch_uri).delete_all()


def _embed(images: NominalImages, plan: ComputePlan, servers: list[Any]) -> pa.Table:
    portable = [ray.put(images.portable)]
    arguments = (
        images.embedder,
        images.weights_digest,
        images.compute,
        plan,
        portable,
        images.input_size_px,
        servers,
    )
    embedded = map_images(images.uri, images.manifest, images.decode, images.compute, plan, EmbeddingActor, arguments)
    return pa.concat_tables(ray.get(embedded.to_arrow_refs()))
