"""Nominal images to a calibrated memory bank over a cluster: embed, select, write, score held-out strips, calibrate."""

import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from steelray.batch_scoring import RunStamp, images_of
from steelray.calibration import ALL_STRIPS, calibrate, split_held_out
from steelray.config import ComputeConfig, ConfigError, EmbedderConfig
from steelray.data.archive import list_archive
from steelray.data.decode import resize
from steelray.data.storage import Location
from steelray.distributed.archive_scorer import ScoringActor, plan_model_bank, start_bank
from steelray.distributed.cluster import ComputePlan, connected, plan_compute
from steelray.distributed.embedding_actors import RemoteShards, start_embedding_servers
from steelray.distributed.image_source import map_images
from steelray.distributed.placement import plan_on_cluster
from steelray.fitting import common_size, coreset_statistics, num_centers, patch_origins
from steelray.job import num_cores
from steelray.job_config import BuildMemoryBankConfig
from steelray.memory_bank.bank import INFO_FILE, MemoryBank, bank_files, make_bank
from steelray.memory_bank.coreset import select
from steelray.memory_bank.quantised import index_bank, recall_queries
from steelray.models.patch_embedder import build_patch_embedder
from steelray.models.portable_embedder import PortableEmbedder
from steelray.provenance import run_record
from steelray.schema import Status
from steelray.trained import load_embed, open_model, portable_embedder, read_weights, write_calibration

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


class EmbeddingActor:
    """Embeds batches of decoded images; the embeddings go straight to the shard actors, only their shapes come back."""

    def __init__(
        self,
        embedder: EmbedderConfig,
        digest: str,
        compute: ComputeConfig,
        plan: ComputePlan,
        portable: list[ray.ObjectRef],
        servers: list[Any],
    ) -> None:
        self._embed, self._min_size_px = load_embed(
            embedder, digest, compute, plan.scorer_threads, ray.get(portable[0])
        )
        self._resize_px = embedder.resize_px
        self._servers = servers

    def __call__(self, decoded: pa.Table) -> pa.Table:
        rows = decoded.drop_columns(["pixels"]).to_pylist()
        acknowledgements = []
        for row, image in zip(rows, images_of(decoded), strict=True):
            if row["status"] != Status.OK or image is None:
                continue
            if self._resize_px is not None:
                image = resize(image, self._resize_px)
            if min(image.shape[:2]) < self._min_size_px:
                row["status"] = Status.TOO_SMALL
                continue
            embeddings_hwD = self._embed(image[None])[0]
            row["grid_rows"], row["grid_columns"], dim = embeddings_hwD.shape
            server = self._servers[row["image_index"] % len(self._servers)]
            acknowledgements.append(server.add.remote(row["image_index"], embeddings_hwD.reshape(-1, dim)))
        ray.get(acknowledgements)
        return pa.Table.from_pylist([{name: row.get(name) for name in EMBEDDED.names} for row in rows], EMBEDDED)


def build_memory_bank(config: BuildMemoryBankConfig, report: Report) -> dict[str, Any]:
    """Builds, writes and calibrates a memory bank.

    Returns:
        The summary: bank id, sizes, cover radius, thresholds, places.

    Raises:
        ConfigError: something the user has to correct.
    """
    started_at = datetime.now(UTC)
    location = Location(config.bank_uri)
    location.check_access(create=not config.dry_run)
    if location.exists(INFO_FILE) and not config.overwrite:
        raise ConfigError(f"{config.bank_uri}: holds a memory bank already: set overwrite, or choose another place")
    manifest = list_archive(config.nominal)
    fit_rows, held_out_rows = split_held_out(
        manifest.num_rows, config.calibration.held_out_fraction, config.calibration.seed
    )
    embedder = build_patch_embedder(config.embedder, read_weights=read_weights)
    num_servers = config.compute.bank_shards or 1
    facts: dict[str, Any] = {"objects": manifest.num_rows, "fit": len(fit_rows), "held_out": len(held_out_rows)}
    facts |= {"embedding_shards": num_servers, "dim": embedder.dim}
    if config.dry_run:
        plan = plan_compute(num_cores(), 0, config.compute, num_servers)
        return {"dry_run": True, "config": asdict(config), "plan": {**facts, "compute": plan.to_dict()}}
    use_gpu = config.compute.gpus_per_scorer > 0
    portable = portable_embedder(config.embedder, embedder.weights_digest, config.compute, use_gpu)
    with connected() as resources:
        plan = plan_on_cluster(config.compute, num_servers, (config.nominal.uri, config.bank_uri), report)
        resources = ray.cluster_resources()  # nodes may have joined
        report(f"embedding {len(fit_rows)} of {manifest.num_rows} nominal images in {config.nominal.uri}")
        start_s = time.perf_counter()
        bank, seconds, skipped = _select(
            config, manifest, fit_rows, embedder.weights_digest, portable, plan, resources.get("CPU", 1), report
        )
        if config.overwrite:
            location.delete_all()
        for name, body in bank_files(bank):
            location.write(name, body)
        report(
            f"bank {bank.info.bank_id}: {bank.info.num_vectors} vectors; scoring {len(held_out_rows)} held-out images"
        )
        rows = _score_held_out(config, manifest.take(held_out_rows), portable, resources)
        usable = rows.filter(pc.equal(rows.column("status"), Status.OK))
        calibration = calibrate(
            usable.column("image_key").to_pylist(),
            usable.column("anomaly_score").to_numpy(),
            usable.column("map_peak").to_numpy(),
            usable.column("map_mean").to_numpy(),
            config.calibration,
        )
        version = write_calibration(config.bank_uri, calibration, usable, f"held out of {config.nominal.uri}")
    thresholds = calibration.groups[ALL_STRIPS]
    if thresholds.review.rate > config.calibration.false_alarm_rate:
        report(
            f"warning: {thresholds.num_strips} held-out images support a false-alarm rate of "
            f"{thresholds.review.rate:.3f} at best, {config.calibration.false_alarm_rate} was asked for: "
            "add nominal images"
        )
    summary = {
        "bank_id": bank.info.bank_id,
        "bank_uri": config.bank_uri,
        "vectors": bank.info.num_vectors,
        "dim": bank.info.dim,
        **{name: bank.info.coreset[name] for name in ("num_candidates", "cover_radius", "duration_s")},
        "index": asdict(config.index),
        "recall_at_1": bank.info.recall["recall_at_1"] if bank.info.recall else 1.0,
        "embedding_s": round(seconds, 2),
        "skipped": skipped,
        "calibration_version": version,
        "threshold": thresholds.review.value,
        "reject_threshold": thresholds.reject.value,
        "false_alarm_rate": thresholds.review.rate,
        "held_out": thresholds.num_strips,
        "groups": len(calibration.groups) - 1,
        "seconds": round(time.perf_counter() - start_s, 2),
    }
    location.write("run.json", run_record(config, started_at, **facts, compute_plan=plan.to_dict(), summary=summary))
    return summary


def _select(
    config: BuildMemoryBankConfig,
    manifest: pa.Table,
    fit_rows: NDArray[np.int64],
    digest: str,
    portable: PortableEmbedder | None,
    plan: ComputePlan,
    num_cpus: float,
    report: Report,
) -> tuple[MemoryBank, float, dict[str, int]]:
    """The bank, the seconds of embedding, and how many images were left out by status."""
    projection = None
    if config.coreset.projection_dim is not None:
        projection = (config.coreset.projection_dim, config.coreset.projection_seed)
    scratch_uri = f"{config.bank_uri.rstrip('/')}-scratch-{uuid.uuid4().hex[:8]}"
    threads = max(1, int(num_cpus // plan.num_shards))
    servers = start_embedding_servers(scratch_uri, plan.num_shards, projection, threads)
    try:
        start_s = time.perf_counter()
        table = _embed(config, manifest.take(fit_rows), digest, portable, plan, servers)
        embedding_s = time.perf_counter() - start_s
        usable = table.filter(pc.equal(table.column("status"), Status.OK)).sort_by("image_index").to_pylist()
        statuses = {entry["values"]: entry["counts"] for entry in table.column("status").value_counts().to_pylist()}
        skipped = {status: count for status, count in statuses.items() if status != Status.OK}
        if not usable:
            raise ConfigError(f"{config.nominal.uri}: none of {len(table)} images can be used: {skipped}")
        if skipped:
            report(f"left out of the bank: {skipped}")
        grids = [(row["grid_rows"], row["grid_columns"]) for row in usable]
        starts = np.cumsum([0, *(rows * columns for rows, columns in grids)])
        first_index_of = {row["image_index"]: int(start) for row, start in zip(usable, starts[:-1], strict=True)}
        shards = RemoteShards(servers, first_index_of, projection)
        start_s = time.perf_counter()
        settings, total = config.coreset, int(starts[-1])
        try:
            limit = num_centers(settings, total)
            chosen = select(
                [shards],  # type: ignore[list-item]
                limit,
                cover_radius=settings.cover_radius or 0.0,
                gather=shards.gather,
                progress=lambda done, of, radius: report(f"coreset: {done} of {of} centres, cover radius {radius:.3f}"),
            )
        except ValueError as error:
            raise ConfigError(f"coreset: {error}") from None
        statistics = coreset_statistics(
            settings, total, chosen.cover_radius, chosen.num_rounds, time.perf_counter() - start_s
        )
        rows = chosen.indices_M.numpy()
        keys = dict(
            zip(manifest.column("image_index").to_pylist(), manifest.column("image_key").to_pylist(), strict=True)
        )
        bank = make_bank(
            shards.vectors(rows),
            patch_origins(grids)[rows],
            tuple(keys[row["image_index"]] for row in usable),
            embedder=config.embedder,
            weights_digest=digest,
            scoring=config.scoring,
            input_size_px=common_size([(row["height_px"], row["width_px"]) for row in usable], config.embedder),
            coreset=statistics,
        )
        if not config.index.is_exact:
            bank = index_bank(bank, config.index, shards.vectors(recall_queries(total, rows)))
        return bank, embedding_s, skipped
    finally:
        for server in servers:
            ray.kill(server)
        Location(scratch_uri).delete_all()


def _embed(
    config: BuildMemoryBankConfig,
    manifest: pa.Table,
    digest: str,
    portable: PortableEmbedder | None,
    plan: ComputePlan,
    servers: list[Any],
) -> pa.Table:
    arguments = (config.embedder, digest, config.compute, plan, [ray.put(portable)], servers)
    embedded = map_images(config.nominal.uri, manifest, config.decode, config.compute, plan, EmbeddingActor, arguments)
    return pa.concat_tables(ray.get(embedded.to_arrow_refs()))


def _score_held_out(
    config: BuildMemoryBankConfig, manifest: pa.Table, portable: PortableEmbedder | None, resources: dict[str, float]
) -> pa.Table:
    model = open_model(config.bank_uri)
    bank_plan = plan_model_bank(model, config.compute)
    servers = start_bank(model, bank_plan, config.compute.gpus_per_scorer)
    plan = plan_compute(resources.get("CPU", 0), resources.get("GPU", 0), config.compute, len(servers))
    stamp = RunStamp("calibration", model.model_id, model.bank_id, model.input_size_px)
    arguments: tuple[Any, ...] = (model, config.compute, plan, [ray.put(portable)], servers, stamp, None, {})
    rows = map_images(config.nominal.uri, manifest, config.decode, config.compute, plan, ScoringActor, arguments)
    table = pa.concat_tables(ray.get(rows.to_arrow_refs()))
    for server in servers:
        ray.kill(server)
    return table
