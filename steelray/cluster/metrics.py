"""Metrics of a scoring run for Prometheus, which every node of the cluster exports through Ray.

Ray puts `ray_` before every name. A metric is created at its first use, in the process that uses it.
"""

from functools import lru_cache

import pyarrow as pa
from ray.util.metrics import Counter, Gauge, Histogram

STAGE_BOUNDARIES_S = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30]
RATIO_BOUNDARIES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.25, 1.5, 2, 3, 5]


_strips = lru_cache(lambda: Counter("steelray_strips", "Strips that have a row, by status.", ("run_id", "status")))
_flagged = lru_cache(
    lambda: Counter("steelray_flagged", "Strips above the review threshold, by verdict.", ("run_id", "verdict"))
)
_score_ratio = lru_cache(
    lambda: Histogram(
        "steelray_score_ratio", "Anomaly score as a share of the threshold.", RATIO_BOUNDARIES, ("run_id",)
    )
)
_stage = lru_cache(
    lambda: Histogram("steelray_stage_s", "Seconds in a stage of scoring.", STAGE_BOUNDARIES_S, ("stage",))
)
_listed = lru_cache(lambda: Gauge("steelray_strips_listed", "Strips that a run has to score.", ("run_id",)))
_shards_wanted = lru_cache(
    lambda: Gauge("steelray_bank_shards_wanted", "Shards of the memory bank that a run searches.", ("run_id",))
)
_shard_alive = lru_cache(
    lambda: Gauge("steelray_bank_shard_alive", "1 for every shard that is loaded.", ("bank_id", "start"))
)


def observe_stage(stage: str, seconds: float) -> None:
    """Record the seconds of a stage; an `Observe` of `steelray.patchcore.timing`."""
    _stage().observe(seconds, {"stage": stage})


def announce_run(run_id: str, num_strips: int, num_shards: int) -> None:
    """Publish the size of a run at its start, in the driver."""
    _listed().set(num_strips, {"run_id": run_id})
    _shards_wanted().set(num_shards, {"run_id": run_id})


def announce_shard(bank_id: str, start: int) -> None:
    """Publish that a shard actor holds its slice, which begins at vector `start`."""
    _shard_alive().set(1, {"bank_id": bank_id, "start": str(start)})


def count_strips(scored: pa.Table) -> None:
    """Count the rows of a table of schema `SCORES`."""
    columns = ("run_id", "status", "is_anomalous", "verdict", "anomaly_score", "threshold")
    for row in scored.select(columns).to_pylist():
        run_id = row["run_id"]
        _strips().inc(1, {"run_id": run_id, "status": row["status"]})
        if row["is_anomalous"]:
            _flagged().inc(1, {"run_id": run_id, "verdict": row["verdict"]})
        if row["anomaly_score"] is not None and (row["threshold"] or 0) > 0:  # an ensemble's threshold may be negative
            _score_ratio().observe(row["anomaly_score"] / row["threshold"], {"run_id": run_id})
