"""Build a calibrated memory bank on the cluster, or grow one with further nominal images."""

import copy
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import torch

from steelray.cluster.driver import ModelJob, Report
from steelray.cluster.image_source import first_readable
from steelray.cluster.patch_selection import EmbeddingRequest, Selected, select_patches
from steelray.cluster.plan import ComputePlan
from steelray.cluster.power_check import calibrate_and_check
from steelray.config import AUTO, CalibrationConfig, ConfigError, Facts
from steelray.evaluation.choose import Candidate, choose
from steelray.evaluation.power import read_power
from steelray.job import num_cores
from steelray.models.calibration import (
    ALL_STRIPS,
    Calibration,
    check_groups,
    read_calibration,
    read_calibration_rows,
    split_nominal,
)
from steelray.models.ensemble import INFO_FILE as ENSEMBLE_FILE
from steelray.models.model import nominal_uris, portable_embedder
from steelray.patchcore.bank import INFO_FILE, MemoryBank, bank_files, read_bank
from steelray.patchcore.config import BuildMemoryBankConfig, EmbedderConfig, GrowMemoryBankConfig
from steelray.patchcore.embedder import build_patch_embedder
from steelray.patchcore.fit import (
    Limits,
    centers_of,
    coreset_limits,
    grown_bank,
    growth_limits,
    growth_radius,
    new_bank,
)
from steelray.patchcore.recipe import CANDIDATES, with_recipe
from steelray.report.bank_page import BuildFindings, write_bank_page
from steelray.runs.exclude import exclude
from steelray.storage.listing import ImageSet, list_archive
from steelray.storage.location import Location


def build_memory_bank(config: BuildMemoryBankConfig, report: Report) -> dict[str, Any]:
    """Build, write and calibrate a memory bank, and measure its power.

    Returns:
        The summary: bank id, sizes, cover radius, recipe, thresholds, detection limits, locations.

    Raises:
        ConfigError: something the user has to correct.
        JobFailed: the cluster or the store failed.
    """
    target = Location(config.bank_uri)
    target.check_access(create=not config.dry_run)
    _check_free(target, config.overwrite)
    manifest, excluded = _without_excluded(list_archive(config.nominal), config, report)
    images = ImageSet(config.nominal.uri, manifest, config.decode)
    learning = _Learning(config, target, images, config.calibration, num_excluded=len(excluded))
    recipes = _recipes(config, learning.fit)
    embedders = [build_patch_embedder(one.embedder) for one in recipes]
    digests = {one.recipe: embedder.weights_digest for one, embedder in zip(recipes, embedders, strict=True)}
    names = [one.recipe for one in recipes]
    facts = {"objects": len(images), "excluded": excluded, **learning.facts(), "recipes": names}

    def make(plan: ComputePlan) -> Facts:
        report(f"embedding {len(learning.fit)} of {len(images)} nominal images in {images.uri}")
        candidates: list[Candidate] = []
        if config.recipe == AUTO:
            summary, selected, candidates = _build_best(recipes, learning, digests, plan, report)
        else:
            summary, selected = _build(recipes[0], learning, digests[config.recipe], plan, report)
        suspects = selected.selection.suspects if config.coreset.drop_suspects else None
        recipe = str(summary["recipe"])
        return learning.with_page(summary, config.bank_uri, BuildFindings(suspects, tuple(candidates), recipe))

    return ModelJob(
        config, target, "the build", (images.uri, config.bank_uri), facts, num_shards=learning.num_shards
    ).run(make, report)


def _recipes(config: BuildMemoryBankConfig, images: ImageSet) -> list[BuildMemoryBankConfig]:
    """Return the settings to build with, or those to choose from, for images of this size."""
    recipes = [with_recipe(config, name) for name in CANDIDATES] if config.recipe == AUTO else [config]
    if all(recipe.embedder.scale is not None for recipe in recipes):
        return recipes
    first_HWC = first_readable(images)
    size_px = (first_HWC.shape[0], first_HWC.shape[1])
    return [replace(recipe, embedder=recipe.embedder.for_images(size_px)) for recipe in recipes]


def _build(
    config: BuildMemoryBankConfig, learning: "_Learning", weights_digest: str, plan: ComputePlan, report: Report
) -> tuple[Facts, Selected]:
    """Build the bank of one recipe, at its own location. Return the summary and the selection."""
    learning = learning.into(config, config.bank_uri)
    request = learning.request(config.embedder, weights_digest)
    limits, drop = coreset_limits(config.coreset), config.coreset.drop_suspects
    selected = learning.select(request, plan, limits, report, drop_suspects=drop)
    bank = new_bank(selected.selection, config.embedder, weights_digest, config.scoring, config.index)
    return {"recipe": config.recipe, **learning.finish(bank, selected, report)}, selected


def _build_best(
    recipes: Sequence[BuildMemoryBankConfig],
    learning: "_Learning",
    digests: Mapping[str, str],
    plan: ComputePlan,
    report: Report,
) -> tuple[Facts, Selected, list[Candidate]]:
    """Build a bank by each recipe beside the target, and move the one with the most power there."""
    target = Location(recipes[0].bank_uri)
    beside = Location(f"{target}-candidates-{uuid.uuid4().hex[:8]}")
    built: dict[str, tuple[Facts, Selected]] = {}
    candidates = []
    try:
        for recipe in recipes:
            report(f"recipe {recipe.recipe}: levels {list(recipe.embedder.levels)}, {recipe.scoring.image_score} score")
            one = replace(recipe, bank_uri=str(beside / recipe.recipe))
            start_s = time.perf_counter()
            built[recipe.recipe] = _build(one, learning, digests[recipe.recipe], plan, report)
            power = read_power(one.bank_uri)
            share = 0.0 if power is None else power.share
            candidates.append(Candidate(recipe.recipe, share, round(time.perf_counter() - start_s, 2)))
            report(f"recipe {recipe.recipe} finds {share:.0%} of the planted textures")
        chosen = choose(candidates)
        report(f"recipe {chosen.recipe} is chosen")
        if recipes[0].overwrite:
            target.delete_all()
        _move(beside / chosen.recipe, target)
    finally:
        beside.delete_all()
    summary, selected = built[chosen.recipe]
    compared = {"bank_uri": recipes[0].bank_uri, "candidates": [asdict(candidate) for candidate in candidates]}
    return {**summary, **compared}, selected, candidates


def _move(source: Location, target: Location) -> None:
    """Copy a bank; bank.json comes last, as without it there is none."""
    names = [stored.key for stored in source.list()]
    for name in sorted(names, key=lambda name: name == INFO_FILE):
        target.write(name, source.read(name))


def grow_memory_bank(config: GrowMemoryBankConfig, report: Report) -> dict[str, Any]:
    """Add to a bank the patches of further nominal strips that it does not cover yet, and calibrate it again.

    The strips of the old calibration keep their old scores. A larger bank could only lower these, so the false-alarm
    rate stays or falls.

    Returns:
        The summary: bank id, vectors added, cover radius, thresholds, locations.

    Raises:
        ConfigError: something the user has to correct.
        JobFailed: the cluster or the store failed.
    """
    source, target = Location(config.bank_uri), Location(config.grown_uri)
    source.check_access()
    target.check_access(create=not config.dry_run)
    bank = read_bank(source.read, config.bank_uri)
    _check_free(target, config.overwrite)
    before, version = read_calibration(config.bank_uri)
    earlier = read_calibration_rows(config.bank_uri, version)
    manifest, num_known = _unknown(config, bank.image_keys, earlier)
    images = ImageSet(config.nominal.uri, manifest, config.decode)
    calibration, earlier_keys = config.calibration or _settings(before), earlier.column("image_key").to_pylist()
    nominal = list(dict.fromkeys([*nominal_uris(config.bank_uri), images.uri]))
    learning = _Learning(config, target, images, calibration, earlier_keys, nominal)
    info = bank.info
    facts = {"objects": len(images), "known": num_known, **learning.facts(), "grown_from": info.bank_id}
    facts["nominal_uris"] = nominal
    build_patch_embedder(info.embedder, info.weights_digest)

    def make(plan: ComputePlan) -> Facts:
        report(f"embedding {len(learning.fit)} new nominal images in {images.uri}; {num_known} are known already")
        request = learning.request(info.embedder, info.weights_digest, info.input_size_px)
        limits = growth_limits(info, config.growth)
        selected = learning.select(request, plan, limits, report, centers_of(bank))
        grown = grown_bank(bank, selected.selection)
        added, radius = grown.info.num_vectors - info.num_vectors, selected.selection.chosen.cover_radius
        if radius > growth_radius(info, config.growth):
            report(
                f"warning: {added} new vectors were the most allowed, and the new strips still lie up to "
                f"{radius:.3f} off: raise growth.ratio, or check that these strips are nominal"
            )
        summary = learning.finish(grown, selected, report, earlier)
        summary = {**summary, "grown_from": info.bank_id, "added": added, "known": num_known}
        return learning.with_page(summary, config.grown_uri, BuildFindings())

    return ModelJob(
        config, target, "growing the bank", (images.uri, config.grown_uri), facts, num_shards=learning.num_shards
    ).run(make, report)


class _Learning:
    """The nominal images of a bank, split into those to fit on and those to calibrate on.

    Args:
        earlier_keys: of further nominal strips to calibrate on.
        nominal: locations of all nominal images, if there are others than that of `images`.
        num_excluded: nominal strips that the user has excluded.

    Raises:
        ConfigError: there are fewer than two strips, or the pattern names no group of those to calibrate on.
    """

    def __init__(
        self,
        config: BuildMemoryBankConfig | GrowMemoryBankConfig,
        target: Location,
        images: ImageSet,
        calibration: CalibrationConfig,
        earlier_keys: Sequence[str] = (),
        nominal: Sequence[str] = (),
        num_excluded: int = 0,
    ) -> None:
        fit_rows, held_out_rows = split_nominal(images.manifest.column("image_key").to_pylist(), calibration)
        self.fit, self.held_out = images.take(fit_rows), images.take(held_out_rows)
        keys = [*earlier_keys, *self.held_out.manifest.column("image_key").to_pylist()]
        check_groups(keys, calibration.group_pattern)
        self.num_shards = config.compute.bank_shards or 1
        self._config, self._target, self._calibration = config, target, calibration
        self._nominal, self._num_excluded = nominal or [images.uri], num_excluded

    def into(self, config: BuildMemoryBankConfig, uri: str) -> "_Learning":
        """Return the same images for another bank."""
        other = copy.copy(self)
        other._config, other._target = config, Location(uri)
        return other

    def facts(self) -> dict[str, int]:
        """Return the counts for run.json."""
        return {"fit": len(self.fit), "held_out": len(self.held_out), "embedding_shards": self.num_shards}

    def request(
        self, embedder: EmbedderConfig, weights_digest: str, input_size_px: tuple[int, int] | None = None
    ) -> EmbeddingRequest:
        """Export the embedder and return the request to embed with it."""
        compute = self._config.compute
        portable = portable_embedder(embedder, weights_digest, compute, compute.gpus_per_scorer > 0)
        return EmbeddingRequest(embedder, weights_digest, portable, compute, input_size_px)

    def select(
        self,
        request: EmbeddingRequest,
        plan: ComputePlan,
        limits: Limits,
        report: Report,
        centers_KD: torch.Tensor | None = None,
        drop_suspects: bool = False,
    ) -> Selected:
        """Select patches from the images to fit on."""
        options: dict[str, Any] = {"centers_KD": centers_KD, "drop_suspects": drop_suspects}
        return select_patches(self.fit, request, plan, limits, report, scratch_uri=str(self._target), **options)

    def finish(self, bank: MemoryBank, selected: Selected, report: Report, earlier: pa.Table | None = None) -> Facts:
        """Write the bank, calibrate it, measure its power and return the summary.

        Args:
            earlier: score rows of further nominal strips to calibrate on.
        """
        config, info = self._config, bank.info
        if config.overwrite:
            self._target.delete_all()
        for name, body in bank_files(bank):
            self._target.write(name, body)
        report(f"bank {info.bank_id}: {info.num_vectors} vectors; scoring {len(self.held_out)} nominal images")
        uri = config.bank_uri if isinstance(config, BuildMemoryBankConfig) else config.grown_uri
        decided = calibrate_and_check(uri, self.held_out, config.compute, self._calibration, report, earlier)
        return {
            "bank_id": info.bank_id,
            "bank_uri": uri,
            "vectors": info.num_vectors,
            "dim": info.dim,
            "num_candidates": info.coreset.num_candidates,
            "cover_radius": info.coreset.cover_radius,
            "duration_s": info.coreset.duration_s,
            "index": asdict(info.index),
            "recall_at_1": info.recall["recall_at_1"] if info.recall else 1.0,
            "embedding_s": round(selected.embedding_s, 2),
            "skipped": selected.skipped,
            "dropped": selected.selection.num_dropped,
            "suspects": [asdict(suspect) for suspect in selected.selection.suspects],
            **decided,
        }

    def with_page(self, summary: Facts, uri: str, found: BuildFindings) -> dict[str, Any]:
        """Write the page of a calibrated bank and add it to the summary."""
        page_uri = write_bank_page(
            uri,
            nominal=self._nominal,
            decode=self._config.decode,
            compute=self._config.compute,
            num_threads=num_cores(),
            num_excluded=self._num_excluded,
            skipped=cast("dict[str, int]", summary["skipped"]),
            found=found,
        )
        return {**summary, "page_uri": page_uri}


def _check_free(location: Location, overwrite: bool) -> None:
    """Raise `ConfigError` if the location holds a model that may not be replaced."""
    for name, kind in ((INFO_FILE, "a memory bank"), (ENSEMBLE_FILE, "an ensemble")):
        if location.exists(name) and not overwrite:
            raise ConfigError(f"{location.uri}: holds {kind} already: set overwrite, or choose another location")


def _without_excluded(
    manifest: pa.Table, config: BuildMemoryBankConfig, report: Report
) -> tuple[pa.Table, tuple[str, ...]]:
    """Return the images that the user has not excluded, and the keys of the others."""
    if config.exclude is None:
        return manifest, ()
    excluded = exclude(manifest.column("image_key").to_pylist(), config.exclude, config.nominal.uri)
    for warning in excluded.warnings:
        report(f"warning: {warning}")
    report(f"{len(excluded.keys)} of {manifest.num_rows} nominal images are excluded")
    names = pa.array(excluded.keys, pa.string())
    return manifest.filter(pc.invert(pc.is_in(manifest.column("image_key"), value_set=names))), excluded.keys


def _unknown(config: GrowMemoryBankConfig, in_bank: Sequence[str], earlier: pa.Table) -> tuple[pa.Table, int]:
    """Return the images that the bank was neither built from nor calibrated on, and the number of the others."""
    manifest = list_archive(config.nominal)
    known = pa.array([*in_bank, *earlier.column("image_key").to_pylist()], pa.string())
    unknown = manifest.filter(pc.invert(pc.is_in(manifest.column("image_key"), value_set=known)))
    if unknown.num_rows == 0:
        raise ConfigError(
            f"{config.nominal.uri}: the bank knows the keys of all {manifest.num_rows} objects: nothing to learn"
        )
    return unknown, manifest.num_rows - unknown.num_rows


def _settings(before: Calibration) -> CalibrationConfig:
    """Return settings with the rates and the groups of a calibration."""
    levels = before.groups[ALL_STRIPS]
    return CalibrationConfig(
        false_alarm_rate=levels.review.asked_rate,
        reject_rate=levels.reject.asked_rate,
        group_pattern=before.group_pattern,
    )
