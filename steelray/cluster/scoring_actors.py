"""A trained model on the cluster: the actors that score batches, and where the memory bank lives beside them.

The class is plain; Ray Data makes actors of it. Kept apart from the jobs, so that an actor loads no more than it needs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray

from steelray.cluster.connect import ComputePlan
from steelray.cluster.metrics import count_strips, observe_stage
from steelray.cluster.search_actors import ActorSearch, start_search_servers
from steelray.config import ComputeConfig, ConfigError
from steelray.models.calibration import Calibration
from steelray.models.model import Model, load_scorer, portable_embedder
from steelray.patchcore.planner import BankPlan, plan_bank
from steelray.patchcore.portable_embedder import PortableEmbedder
from steelray.runs.batch import BatchScorer, RunStamp


class ScoringActor:
    """Holds a loaded model; Ray Data hands it batches. Arguments as of `BatchScorer` and `load_scorer`.

    Args:
        portable: a reference to the `PortableEmbedder` or None, in a list: the actor's arguments stay small.
    """

    def __init__(
        self,
        model: Model,
        compute: ComputeConfig,
        plan: ComputePlan,
        portable: list[ray.ObjectRef],
        servers: list[Any],
        stamp: RunStamp,
        calibration: Calibration | None,
        options: dict[str, Any],
    ) -> None:
        scorer = load_scorer(
            model,
            compute,
            num_threads=plan.scorer_threads,
            search=ActorSearch(servers) if servers else None,
            portable=ray.get(portable[0]),
            use_gpu=plan.scorer_gpus > 0,
            observe=observe_stage,
        )
        self._score_batch = BatchScorer(scorer, stamp, calibration, observe=observe_stage, **options)

    def __call__(self, decoded: pa.Table) -> pa.Table:
        scored = self._score_batch(decoded)
        count_strips(scored)
        return scored


def portable_model(model: Model, compute: ComputeConfig) -> PortableEmbedder | None:
    """The model's embedder, made ready once for all CPU actors; None where it has none or runs on torch."""
    if model.bank is None:
        return None
    return portable_embedder(model.bank.embedder, model.bank.weights_digest, compute, compute.gpus_per_scorer > 0)


def plan_model_bank(model: Model, compute: ComputeConfig, cluster_memory_bytes: int | None = None) -> BankPlan | None:
    """Where a model's memory bank will live; None if it has none of its own.

    Raises:
        ConfigError: it fits nowhere, or an ensemble's banks were to be sharded.
    """
    if model.ensemble is not None and compute.bank_placement == "sharded":
        raise ConfigError(
            f"{model.uri} is an ensemble, and every scorer holds all of its banks: leave compute.bank_placement at auto"
        )
    if model.bank is None:
        return None
    return plan_bank(
        model.bank.num_vectors,
        model.bank.dim,
        bytes_per_vector=model.bank.bytes_per_vector,
        memory_per_actor_bytes=compute.memory_per_actor_bytes,
        placement=compute.bank_placement,
        num_shards=compute.bank_shards,
        cluster_memory_bytes=cluster_memory_bytes,
    )


@contextmanager
def running_bank(model: Model, plan: BankPlan | None, gpus: float) -> Iterator[list[Any]]:
    """The actors that hold a sharded bank, loaded, and ended afterwards; none if it is replicated.

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
        for server in servers:  # scorers that end hold handles for a while, and with them the shards' CPUs
            ray.kill(server)
