"""Select the patches that represent nominal images on the cluster.

Actors embed the images, others hold the embeddings and select among them; the driver sees only the selected ones.
Shapes as in `steelray.patchcore`.
"""

import math
import time
import uuid
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from steelray.cluster.driver import Report, cluster_resources
from steelray.cluster.embedding_actors import RemotePatches, RemoteShards, start_embedding_servers
from steelray.cluster.image_source import map_images
from steelray.cluster.plan import ComputePlan
from steelray.config import ComputeConfig, ConfigError
from steelray.models.model import load_embedder
from steelray.patchcore.config import EmbedderConfig
from steelray.patchcore.coreset import select
from steelray.patchcore.fit import Limits, Selection, patch_origins, without_suspects
from steelray.patchcore.portable_embedder import PortableEmbedder
from steelray.patchcore.quantised import recall_queries
from steelray.runs.batch import images_of, shape_error
from steelray.schema import Row, Status
from steelray.storage.listing import ImageSet
from steelray.storage.location import Location

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


MAX_NAMED = 5
"""Most strips that a line of progress names."""


@dataclass(frozen=True)
class EmbeddingRequest:
    """Settings and weights to embed nominal images with.

    Attributes:
        portable: the exported embedder; None: every actor builds it with torch.
        input_size_px: height and width that images must have, as for `shape_error`; None: any.
    """

    embedder: EmbedderConfig
    weights_digest: str
    portable: PortableEmbedder | None
    compute: ComputeConfig
    input_size_px: tuple[int, int] | None = None


@dataclass(frozen=True)
class Selected:
    """A selection on the cluster.

    Attributes:
        skipped: number of images that could not be used, by status.
    """

    selection: Selection
    skipped: dict[str, int]
    embedding_s: float


class EmbeddingActor:
    """Embed batches of decoded images; the embeddings go to the shard actors, only their shapes are returned."""

    def __init__(self, request: list[ray.ObjectRef], num_threads: int, servers: list[Any]) -> None:
        asked: EmbeddingRequest = ray.get(request[0])
        embedder = load_embedder(asked.embedder, asked.weights_digest, asked.compute, num_threads, asked.portable)
        self._embedder = replace(embedder, nominal_px=asked.input_size_px)
        self._servers = servers

    def __call__(self, decoded: pa.Table) -> pa.Table:
        rows = decoded.drop_columns(["pixels"]).to_pylist()
        acknowledgements = []
        for row, image in zip(rows, images_of(decoded), strict=True):
            if row["status"] != Status.OK or image is None:
                continue
            if shape_error(image.shape[:2], self._embedder.nominal_px) is not None:
                row["status"] = Status.WRONG_SHAPE
                continue
            if min(self._embedder.config.resize_px or image.shape[:2]) < self._embedder.min_size_px:
                row["status"] = Status.TOO_SMALL
                continue
            embeddings_hwD = self._embedder.embed_image(image)
            row["grid_rows"], row["grid_columns"], dim = embeddings_hwD.shape
            server = self._servers[row["image_index"] % len(self._servers)]
            acknowledgements.append(server.add.remote(row["image_index"], embeddings_hwD.reshape(-1, dim)))
        ray.get(acknowledgements)
        return pa.Table.from_pylist([{name: row.get(name) for name in EMBEDDED.names} for row in rows], EMBEDDED)


def select_patches(
    images: ImageSet,
    request: EmbeddingRequest,
    plan: ComputePlan,
    limits: Limits,
    report: Report,
    *,
    scratch_uri: str,
    centers_KD: torch.Tensor | None = None,
    drop_suspects: bool = False,
) -> Selected:
    """Embed nominal images on the cluster and select the patches that cover them.

    Args:
        limits: of the selection; may raise `ValueError`.
        scratch_uri: embeddings are kept for restarted actors in a new folder beside this location.
        centers_KD: vectors of the bank that the selection continues from.
        drop_suspects: drop what only one strip has.

    Raises:
        ConfigError: no image can be used, embeddings are not finite, or a limit is wrong.
    """
    scratch_uri = f"{scratch_uri.rstrip('/')}-scratch-{uuid.uuid4().hex[:8]}"
    # once everything is embedded, the shards share the CPUs of the cluster
    num_threads = max(1, int(cluster_resources()[0] // plan.num_shards))
    servers = start_embedding_servers(scratch_uri, plan.num_shards, num_threads)
    try:
        start_s = time.perf_counter()
        table = _embed(images, request, plan, servers)
        embedding_s = time.perf_counter() - start_s
        usable = table.filter(pc.equal(table.column("status"), Status.OK)).sort_by("image_index").to_pylist()
        statuses = {entry["values"]: entry["counts"] for entry in table.column("status").value_counts().to_pylist()}
        skipped = {status: count for status, count in statuses.items() if status != Status.OK}
        if not usable:
            raise ConfigError(f"{images.uri}: none of {len(table)} images can be used: {skipped}")
        if skipped:
            report(f"left out of the bank: {skipped}")
        selection = _select(images, usable, servers, limits, report, centers_KD)
        if drop_suspects:
            numbers = {row["image_index"]: number for number, row in enumerate(usable)}
            columns = {number: row["grid_columns"] for number, row in enumerate(usable)}
            selection = without_suspects(selection, RemotePatches(servers, numbers, columns))
            if selection.num_dropped:
                report(_says_dropped(selection))
        return Selected(selection, skipped, embedding_s)
    finally:
        for server in servers:
            ray.kill(server)
        Location(scratch_uri).delete_all()


def _says_dropped(selection: Selection) -> str:
    """Return how many vectors were dropped and which strips to look at, farthest first."""
    keys = list(dict.fromkeys(suspect.image_key for suspect in selection.suspects))
    more = "" if len(keys) <= MAX_NAMED else f" and {len(keys) - MAX_NAMED} more"
    return (
        f"left out of the bank: {selection.num_dropped} of {len(selection.chosen.indices_M)} vectors, which only one "
        f"strip has; look at {', '.join(keys[:MAX_NAMED])}{more}"
    )


def _embed(images: ImageSet, request: EmbeddingRequest, plan: ComputePlan, servers: list[Any]) -> pa.Table:
    arguments = ([ray.put(request)], plan.scorer_threads, servers)
    embedded = map_images(images, plan, request.compute.batch_size, EmbeddingActor, arguments)
    return pa.concat_tables(ray.get(embedded.to_arrow_refs()))


def _select(
    images: ImageSet,
    usable: list[Row],
    servers: list[Any],
    limits: Limits,
    report: Report,
    centers_KD: torch.Tensor | None,
) -> Selection:
    """Select among the embeddings that the servers hold.

    Args:
        usable: rows of schema `EMBEDDED`, ordered by image index.
    """
    grids = [(row["grid_rows"], row["grid_columns"]) for row in usable]
    starts = np.cumsum([0, *map(math.prod, grids)])
    num_candidates = int(starts[-1])
    first_index_of = {row["image_index"]: int(start) for row, start in zip(usable, starts[:-1], strict=True)}
    shards = RemoteShards(servers, first_index_of)
    start_s = time.perf_counter()
    try:
        limit, cover_radius = limits(num_candidates)
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
    duration_s = time.perf_counter() - start_s
    picked = chosen.indices_M.numpy()
    numbers, names = (images.manifest.column(name).to_pylist() for name in ("image_index", "image_key"))
    key_of = dict(zip(numbers, names, strict=True))
    return Selection(
        chosen,
        shards.vectors(picked),
        patch_origins(grids)[picked],
        tuple(key_of[row["image_index"]] for row in usable),
        [(row["height_px"], row["width_px"]) for row in usable],
        num_candidates,
        shards.vectors(recall_queries(num_candidates, picked)),
        duration_s,
    )
