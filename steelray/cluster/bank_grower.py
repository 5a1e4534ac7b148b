"""A stored memory bank and further nominal images to a grown, calibrated bank, over a cluster."""

import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from steelray.cluster.bank_builder import bank_summary, check_free, write_bank
from steelray.cluster.connect import connected, plan_compute
from steelray.cluster.held_out import HeldOutStrips, calibrate_model
from steelray.cluster.patch_selection import NominalImages, select_patches
from steelray.cluster.placement import plan_on_cluster
from steelray.config import CalibrationConfig, ConfigError
from steelray.job import num_cores
from steelray.models.calibration import ALL_STRIPS, Calibration, read_calibration, read_calibration_rows, split_held_out
from steelray.models.model import nominal_uris, portable_embedder, read_weights
from steelray.patchcore.bank import read_bank
from steelray.patchcore.config import GrowMemoryBankConfig
from steelray.patchcore.embedder import build_patch_embedder
from steelray.patchcore.growth import centers_of, grown_bank, growth_limits
from steelray.provenance import run_record
from steelray.storage.listing import list_archive
from steelray.storage.location import Location

Report = Callable[[str], None]


def grow_memory_bank(config: GrowMemoryBankConfig, report: Report) -> dict[str, Any]:
    """Adds to a bank what further nominal strips show that it does not cover yet; sets its thresholds anew.

    The strips that the old thresholds rest on count with their old scores. A larger bank could only bring these down,
    so the false-alarm rate is kept, if anything, with some to spare.

    Returns:
        The summary: bank id, what was added, cover radius, thresholds, places.

    Raises:
        ConfigError: something the user has to correct.
    """
    started_at = datetime.now(UTC)
    source, target = Location(config.bank_uri), Location(config.grown_uri)
    source.check_access()
    target.check_access(create=not config.dry_run)
    bank = read_bank(source.read, config.bank_uri)
    check_free(target, config.overwrite)
    before, version = read_calibration(config.bank_uri)
    earlier = read_calibration_rows(config.bank_uri, version)
    settings = config.calibration or _settings(before)
    manifest, num_known = _unknown(config, bank.image_keys, earlier)
    fit_rows, held_out_rows = split_held_out(manifest.num_rows, settings.held_out_fraction, settings.seed)
    info, num_servers = bank.info, config.compute.bank_shards or 1
    facts: dict[str, Any] = {"objects": manifest.num_rows, "known": num_known, "fit": len(fit_rows)}
    facts |= {"held_out": len(held_out_rows), "embedding_shards": num_servers, "grown_from": info.bank_id}
    facts["nominal_uris"] = list(dict.fromkeys([*nominal_uris(config.bank_uri), config.nominal.uri]))
    if config.dry_run:
        plan = plan_compute(num_cores(), 0, config.compute, num_servers)
        return {"dry_run": True, "config": asdict(config), "plan": {**facts, "compute": plan.to_dict()}}
    build_patch_embedder(info.embedder, info.weights_digest, read_weights=read_weights)
    use_gpu = config.compute.gpus_per_scorer > 0
    portable = portable_embedder(info.embedder, info.weights_digest, config.compute, use_gpu)

    images = NominalImages(
        config.nominal.uri,
        manifest.take(fit_rows),
        config.decode,
        info.embedder,
        info.weights_digest,
        portable,
        config.compute,
        info.input_size_px,
    )
    with connected():
        plan = plan_on_cluster(config.compute, num_servers, (config.nominal.uri, config.grown_uri), report)
        resources = ray.cluster_resources()
        report(f"embedding {len(fit_rows)} new nominal images in {config.nominal.uri}; {num_known} are known already")
        start_s = time.perf_counter()
        selection = select_patches(
            images,
            plan,
            lambda total: growth_limits(info, config.growth, total),
            report,
            scratch_uri=config.grown_uri,
            centers_KD=centers_of(bank),
            num_cpus=resources.get("CPU", 1),
        )
        grown = grown_bank(
            bank,
            selection.chosen,
            selection.vectors_MD,
            selection.origins_M3,
            selection.image_keys,
            num_candidates=selection.num_candidates,
            duration_s=selection.selection_s,
            queries_QD=selection.queries_QD,
        )
        write_bank(target, grown, config.overwrite)
        added = grown.info.num_vectors - info.num_vectors
        if selection.chosen.cover_radius > growth_limits(info, config.growth, 1)[1]:
            report(
                f"warning: {added} new vectors were the most allowed, and the new strips still lie up to "
                f"{selection.chosen.cover_radius:.3f} off: raise growth.ratio, or look whether these strips are nominal"
            )
        report(f"bank {grown.info.bank_id}: {added} vectors added; scoring {len(held_out_rows)} held-out images")
        strips = HeldOutStrips(config.nominal.uri, manifest.take(held_out_rows), config.decode, config.compute)
        calibration, version = calibrate_model(config.grown_uri, strips, settings, resources, report, earlier)
    summary = {
        **bank_summary(config.grown_uri, grown, selection, calibration, version),
        "grown_from": info.bank_id,
        "added": added,
        "known": num_known,
        "seconds": round(time.perf_counter() - start_s, 2),
    }
    target.write("run.json", run_record(config, started_at, **facts, compute_plan=plan.to_dict(), summary=summary))
    return summary


def _unknown(config: GrowMemoryBankConfig, in_bank: tuple[str, ...], earlier: pa.Table) -> tuple[pa.Table, int]:
    """The manifest of what the bank neither holds nor was calibrated on, and how many objects that leaves out."""
    manifest = list_archive(config.nominal)
    known = pa.array([*in_bank, *earlier.column("image_key").to_pylist()], pa.string())
    unknown = manifest.filter(pc.invert(pc.is_in(manifest.column("image_key"), value_set=known)))
    if unknown.num_rows == 0:
        raise ConfigError(
            f"{config.nominal.uri}: the bank knows the keys of all {manifest.num_rows} objects: nothing to learn"
        )
    return unknown, manifest.num_rows - unknown.num_rows


def _settings(before: Calibration) -> CalibrationConfig:
    """Rates and groups as they were."""
    levels = before.groups[ALL_STRIPS]
    return CalibrationConfig(
        false_alarm_rate=levels.review.asked_rate,
        reject_rate=levels.reject.asked_rate,
        group_pattern=before.group_pattern,
    )
