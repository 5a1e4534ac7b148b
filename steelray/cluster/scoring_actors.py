"""Score images on the cluster: actors that hold a model, and others that hold a sharded memory bank.

A scoring actor loads only what this module imports.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data

from steelray.cluster.image_source import map_images
from steelray.cluster.metrics import count_strips, observe_stage
from steelray.cluster.plan import ComputePlan
from steelray.cluster.search_actors import ActorSearch, start_search_servers
from steelray.config import ComputeConfig, ConfigError
from steelray.imaging.scorer import Scorer
from steelray.models.calibration import Calibration
from steelray.models.model import Model, load_scorer, portable_embedder
from steelray.patchcore.planner import BankPlan, plan_bank
from steelray.patchcore.portable_embedder import PortableEmbedder
from steelray.runs.batch import BatchScorer, RunStamp
from steelray.storage.listing import ImageSet
from steelray.storage.location import Location


@dataclass(frozen=True)
class ScoringRequest:
    """The model to score with, and the treatment of its scores.

    Attributes:
        calibration: turns scores into verdicts; None: no verdicts.
        threshold: flags strips above it, instead of the calibration's.
        pictures: location for the heatmaps of flagged images; None: none are written.
        save_anomaly_maps: whether to write every anomaly map there too.
        nominal: whether the model may have learned from these very images, which are then compared with the others.
    """

    model: Model
    compute: ComputeConfig
    run_id: str
    calibration: Calibration | None = None
    threshold: float | None = None
    pictures: Location | None = None
    save_anomaly_maps: bool = False
    nominal: bool = False


@dataclass(frozen=True)
class ScorerPlace:
    """Resources of a scoring actor on the cluster.

    Attributes:
        portable: reference to the model's `PortableEmbedder` or to None, so that the actor's arguments stay small.
        servers: actors that hold a sharded bank; empty if every scorer holds the bank.
    """

    num_threads: int
    use_gpu: bool
    portable: ray.ObjectRef
    servers: list[Any]


def load_request(request: ScoringRequest, place: ScorerPlace) -> Scorer:
    """Load the model of a request in an actor."""
    return load_scorer(
        request.model,
        request.compute,
        num_threads=place.num_threads,
        search=ActorSearch(place.servers) if place.servers else None,
        portable=ray.get(place.portable),
        use_gpu=place.use_gpu,
        observe=observe_stage,
        nominal=request.nominal,
    )


class ScoringActor:
    """Hold a loaded model and score batches of schema `DECODED`. A plain class; Ray Data makes actors of it."""

    def __init__(self, request: ScoringRequest, place: ScorerPlace) -> None:
        model = request.model
        self._score_batch = BatchScorer(
            load_request(request, place),
            RunStamp(request.run_id, model.model_id, model.bank_id, model.input_size_px),
            request.calibration,
            threshold=request.threshold,
            pictures=request.pictures,
            save_anomaly_maps=request.save_anomaly_maps,
            nominal=request.nominal,
            observe=observe_stage,
        )

    def __call__(self, decoded: pa.Table) -> pa.Table:
        scored = self._score_batch(decoded)
        count_strips(scored)
        return scored


@contextmanager
def scored_images(
    images: ImageSet, request: ScoringRequest, plan: ComputePlan, bank_plan: BankPlan | None
) -> Iterator[ray.data.Dataset]:
    """Score images on the cluster.

    Yields:
        The lazy dataset of their rows, schema `SCORES`. Execute it inside the block: the actors of a sharded bank end
        with it.

    Raises:
        BankUnavailable: an actor cannot load its shard of the bank.
    """
    with running_bank(request.model, bank_plan, plan.scorer_gpus) as servers:
        portable = ray.put(portable_model(request.model, request.compute))
        place = ScorerPlace(plan.scorer_threads, plan.scorer_gpus > 0, portable, servers)
        yield map_images(images, plan, request.compute.batch_size, ScoringActor, (request, place))


def portable_model(model: Model, compute: ComputeConfig) -> PortableEmbedder | None:
    """Export the model's embedder once for all CPU actors; None if it has none, or runs it on torch."""
    if model.bank is None:
        return None
    return portable_embedder(model.bank.embedder, model.bank.weights_digest, compute, compute.gpus_per_scorer > 0)


def plan_model_bank(model: Model, compute: ComputeConfig, cluster_memory_bytes: int | None = None) -> BankPlan | None:
    """Plan the placement of a model's memory bank; None if it has none of its own.

    Raises:
        ConfigError: it fits nowhere, or an ensemble is to be sharded.
    """
    if model.ensemble is not None and (compute.bank_shards or 1) > 1:
        raise ConfigError(
            f"{model.uri} is an ensemble, and every scorer holds all of its banks: leave compute.bank_shards at null"
        )
    if model.bank is None:
        return None
    return plan_bank(
        model.bank.num_vectors,
        model.bank.dim,
        bytes_per_vector=model.bank.bytes_per_vector,
        memory_per_actor_bytes=compute.memory_per_actor_bytes,
        num_shards=compute.bank_shards,
        cluster_memory_bytes=cluster_memory_bytes,
    )


@contextmanager
def running_bank(model: Model, plan: BankPlan | None, gpus: float) -> Iterator[list[Any]]:
    """Start the actors that hold a sharded bank and end them after the block; yield none if it is replicated.

    Raises:
        BankUnavailable: one of them cannot load its shard.
    """
    if model.bank is None or plan is None or plan.placement == "replicated":
        yield []
        return
    servers = start_search_servers(model.uri, model.bank.bank_id, model.bank.num_vectors, plan.num_shards, gpus)
    try:
        yield servers
    finally:
        for server in servers:  # ended scorers keep handles for a while, and the handles keep the shards' CPUs
            ray.kill(server)
