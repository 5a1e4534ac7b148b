"""Nominal images to a calibrated memory bank over a cluster: embed, select, write, score held-out strips, calibrate."""

import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import ray

from steelray.cluster.connect import connected, plan_compute
from steelray.cluster.held_out import HeldOutStrips, calibrate_model, threshold_facts
from steelray.cluster.patch_selection import NominalImages, Selection, select_patches
from steelray.cluster.placement import plan_on_cluster
from steelray.config import ConfigError
from steelray.job import num_cores
from steelray.models.calibration import Calibration, split_held_out
from steelray.models.ensemble import INFO_FILE as ENSEMBLE_FILE
from steelray.models.model import portable_embedder, read_weights
from steelray.patchcore.bank import INFO_FILE, MemoryBank, bank_files, make_bank
from steelray.patchcore.config import BuildMemoryBankConfig
from steelray.patchcore.embedder import build_patch_embedder
from steelray.patchcore.fit import common_size, coreset_statistics, num_centers
from steelray.patchcore.quantised import index_bank
from steelray.provenance import run_record
from steelray.storage.listing import list_archive
from steelray.storage.location import Location

Report = Callable[[str], None]


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
    check_free(location, config.overwrite)
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

    images = NominalImages(
        config.nominal.uri,
        manifest.take(fit_rows),
        config.decode,
        config.embedder,
        embedder.weights_digest,
        portable,
        config.compute,
    )
    settings = config.coreset
    with connected():
        plan = plan_on_cluster(config.compute, num_servers, (config.nominal.uri, config.bank_uri), report)
        resources = ray.cluster_resources()  # nodes may have joined
        report(f"embedding {len(fit_rows)} of {manifest.num_rows} nominal images in {config.nominal.uri}")
        start_s = time.perf_counter()
        selection = select_patches(
            images,
            plan,
            lambda total: (num_centers(settings, total), settings.cover_radius or 0.0),
            report,
            scratch_uri=config.bank_uri,
            num_cpus=resources.get("CPU", 1),
        )
        bank = _make_bank(config, embedder.weights_digest, selection)
        write_bank(location, bank, config.overwrite)
        report(
            f"bank {bank.info.bank_id}: {bank.info.num_vectors} vectors; scoring {len(held_out_rows)} held-out images"
        )
        strips = HeldOutStrips(config.nominal.uri, manifest.take(held_out_rows), config.decode, config.compute)
        calibration, version = calibrate_model(config.bank_uri, strips, config.calibration, resources, report)
    summary = {
        **bank_summary(config.bank_uri, bank, selection, calibration, version),
        "seconds": round(time.perf_counter() - start_s, 2),
    }
    location.write("run.json", run_record(config, started_at, **facts, compute_plan=plan.to_dict(), summary=summary))
    return summary


def check_free(location: Location, overwrite: bool) -> None:
    """Raises `ConfigError` if a model is there that nobody said may be replaced."""
    for name, kind in ((INFO_FILE, "a memory bank"), (ENSEMBLE_FILE, "an ensemble")):
        if location.exists(name) and not overwrite:
            raise ConfigError(f"{location.uri}: holds {kind} already: set overwrite, or choose another place")


def write_bank(location: Location, bank: MemoryBank, overwrite: bool) -> None:
    """Stores a bank, in the place of everything that was there if it may."""
    if overwrite:
        location.delete_all()
    for name, body in bank_files(bank):
        location.write(name, body)


def bank_summary(
    uri: str, bank: MemoryBank, selection: Selection, calibration: Calibration, version: int
) -> dict[str, Any]:
    """What a job says of a bank that it has made."""
    info = bank.info
    return {
        "bank_id": info.bank_id,
        "bank_uri": uri,
        "vectors": info.num_vectors,
        "dim": info.dim,
        **{name: info.coreset[name] for name in ("num_candidates", "cover_radius", "duration_s")},
        "index": asdict(info.index),
        "recall_at_1": info.recall["recall_at_1"] if info.recall else 1.0,
        "embedding_s": round(selection.embedding_s, 2),
        "skipped": selection.skipped,
        **threshold_facts(calibration, version),
    }


def _make_bank(config: BuildMemoryBankConfig, weights_digest: str, selection: Selection) -> MemoryBank:
    chosen = selection.chosen
    bank = make_bank(
        selection.vectors_MD,
        selection.origins_M3,
        selection.image_keys,
        embedder=config.embedder,
        weights_digest=weights_digest,
        scoring=config.scoring,
        input_size_px=common_size(selection.sizes_px, config.embedder),
        coreset=coreset_statistics(
            selection.num_candidates, chosen.cover_radius, chosen.num_rounds, selection.selection_s
        ),
    )
    return index_bank(bank, config.index, selection.queries_QD)
