"""Parallel evaluation of ablation rows: one Ray task per setting and split."""

from collections.abc import Iterator, Sequence
from typing import Any

import ray

from steelray.cluster.driver import expected_stops
from steelray.config import ConfigError
from steelray.research.ablation.results import Row
from steelray.research.ablation.rows import evaluate_row
from steelray.research.ablation.settings import AblationConfig


def remote_rows(config: AblationConfig, rows: Sequence[Row]) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Evaluate rows on the cluster and yield each as it ends.

    All nodes must share the folders of the config. Ray repeats a row whose worker died.

    Raises:
        ConfigError: the cluster has no node for a row, or the data or a setting cannot be used.
        JobFailed: a row's worker was lost too often, or the row failed.
    """
    num_cpus, total = config.num_cpus_per_row, ray.cluster_resources().get("CPU", 0.0)
    if num_cpus > total:
        raise ConfigError(f"a row needs {num_cpus:g} CPUs, the cluster has {total:g}: lower num_cpus_per_row")
    task = ray.remote(evaluate_row).options(num_cpus=num_cpus, max_retries=2)
    waiting = {task.remote(config, setting, seed, max(1, int(num_cpus))): (setting, seed) for setting, seed in rows}
    try:
        while waiting:
            [ended], _ = ray.wait(list(waiting))
            with expected_stops("the ablation", "run the same command to go on"):
                try:
                    found = ray.get(ended)
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, ConfigError):
                        raise ConfigError(str(error.cause)) from None
                    raise
            yield waiting.pop(ended), found
    finally:
        for left in waiting:
            ray.cancel(left)
