"""Search: the whole bank in one process against the same bank cut over 1, 2 and 4 actors; and quantised banks."""

from collections import deque
from typing import Any

import numpy as np

from benchmarks.data import embeddings
from benchmarks.measuring import SCRATCH, timed
from steelray.job import num_cores
from steelray.patchcore.bank import CoresetStatistics, MemoryBank, bank_files, make_bank
from steelray.patchcore.config import EmbedderConfig, IndexConfig, ScoringConfig
from steelray.patchcore.index import BankSearch, LocalSearch, shard_of
from steelray.patchcore.quantised import index_bank
from steelray.storage.location import Location

QUERIES = 6400
"""Patches of one strip: one batch."""
IN_FLIGHT = 2
DIM = 64


def patches(count: int, batches: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Vectors for a bank, and batches of queries from other images."""
    every = embeddings(400_000, (1, 2))
    chosen = np.random.default_rng(0).permutation(300_000)[:count]
    return every[np.sort(chosen)], [every[300_000 + 6400 * b : 300_000 + 6400 * (b + 1)] for b in range(batches)]


def bank_of(vectors_ND: np.ndarray) -> MemoryBank:
    origins_N3 = np.zeros((len(vectors_ND), 3), np.int32)
    settings: dict[str, Any] = {"embedder": EmbedderConfig(), "weights_digest": "benchmark", "scoring": ScoringConfig()}
    return make_bank(
        vectors_ND,
        origins_N3,
        ("generated",),
        input_size_px=None,
        coreset=CoresetStatistics(9, 1.0, 1, 0.0),
        **settings,
    )


def ask(search: BankSearch, batches: list[np.ndarray]) -> list[np.ndarray]:
    """All batches, two in flight; the distances."""
    pending: deque[Any] = deque()
    answers = []
    for queries_QD in batches:
        pending.append(search.submit(queries_QD, 1))
        if len(pending) == IN_FLIGHT:
            answers.append(pending.popleft().result()[0])
    return answers + [search.result()[0] for search in pending]


def placements(num_vectors: int, num_batches: int) -> dict[str, Any]:
    """Queries per second of each placement, and how far apart their distances are."""
    import ray

    from steelray.cluster.connect import connected
    from steelray.cluster.search_actors import ActorSearch, start_search_servers

    vectors_ND, batches = patches(num_vectors, num_batches)
    bank = bank_of(vectors_ND)
    location = Location(str(SCRATCH / f"bank-{num_vectors}"))
    for name, body in bank_files(bank):
        location.write(name, body)
    local = LocalSearch([shard_of(bank, num_threads=num_cores())])
    expected = ask(local, batches)
    answers: list[np.ndarray] = []
    row: dict[str, Any] = {"vectors": num_vectors, "dim": DIM, "queries": QUERIES * num_batches}

    def run(search: BankSearch) -> dict[str, Any]:
        def once() -> None:
            answers[:] = ask(search, batches)

        result = timed(once)
        worst = max(float((np.abs(a - b) / b.max()).max()) for a, b in zip(answers, expected, strict=True))
        return {**result, "queries_per_s": QUERIES * num_batches / result["seconds"], "largest_difference": worst}

    row["replicated"] = run(local)
    with connected():
        for count in (1, 2, 4):
            servers = start_search_servers(location.uri, bank.info.bank_id, num_vectors, count)
            ask(ActorSearch(servers), batches)
            row[f"{count} shards"] = run(ActorSearch(servers))
            for server in servers:
                ray.kill(server)
    return row


def quantised(num_vectors: int, num_batches: int) -> dict[str, Any]:
    """Queries per second, bytes and recall of banks that are not exact."""
    vectors_ND, batches = patches(num_vectors, num_batches)
    exact = bank_of(vectors_ND)
    row: dict[str, Any] = {"vectors": num_vectors, "dim": DIM, "queries": QUERIES * num_batches}
    settings = {
        "exact": IndexConfig(),
        "fp16": IndexConfig("fp16"),
        "IVF64,Flat": IndexConfig(factory="IVF64,Flat", num_probes=8),
    }
    for name, config in settings.items():
        bank = index_bank(exact, config, batches[-1])
        search = LocalSearch([shard_of(bank, num_threads=num_cores())])
        ask(search, batches[:1])
        result = timed(lambda search=search: ask(search, batches))  # type: ignore[misc]
        row[name] = {
            **result,
            "queries_per_s": QUERIES * num_batches / result["seconds"],
            "bytes_per_vector": bank.info.bytes_per_vector,
            **(bank.info.recall or {"recall_at_1": 1.0, "distance_error": 0.0}),
        }
    return row


CASES = {
    "placements-20k": lambda: placements(20_000, 12),
    "placements-100k": lambda: placements(100_000, 4),
    "quantised-20k": lambda: quantised(20_000, 8),
}
QUICK_CASES = {"placements-5k": lambda: placements(5_000, 8), "quantised-5k": lambda: quantised(5_000, 4)}
