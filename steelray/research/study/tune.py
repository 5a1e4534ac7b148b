"""The study on Ray Tune: planned trials in parallel, and a search that ASHA cuts short.

A trial is a Tune function around `steelray.research.study.runner.execute`. The driver writes each row as its trial
ends, so a killed study loses no finished trial and a rerun starts only the others. Datasets in folders must be on all
nodes.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import Repeater
from ray.tune.search.optuna import OptunaSearch

from steelray.cluster.connect import cause_in_one_line, connected
from steelray.cluster.driver import expected_stops
from steelray.config import ConfigError, DatasetConfig, JobFailed
from steelray.research.study.config import StudyConfig
from steelray.research.study.data import StudyImages
from steelray.research.study.plan import Trial
from steelray.research.study.results import Row, StudyResults, read_trials
from steelray.research.study.runner import describe, execute, provenance
from steelray.research.study.space import Axis, check_points
from steelray.storage.location import Location

# Tune would pass the driver's AWS keys to its trials in their runtime environment, which Ray logs in clear; nodes have
# credentials of their own
class_cache.ENV_VARS_TO_PROPAGATE = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")}

SCORE = "score"
SEARCH_ARM = "search"


def run_study(study: StudyConfig, trials: Sequence[Trial], report: Callable[[str], None]) -> dict[str, Any]:
    """Run the trials that are not finished or, with mode `search`, the search.

    Args:
        report: receives a line on every step.

    Returns:
        Counts for the job's summary.

    Raises:
        ConfigError: a trial needs more than the cluster has, or the results are those of another study.
    """
    study = with_absolute_folders(study)
    searching = study.mode == "search"
    points = check_points(study.train, study.fix, study.search.axes) if searching else []
    results = StudyResults(study.results_dir, study, provenance())
    finished = {row["trial_id"]: row for row in read_trials(study.results_dir)}
    with expected_stops("the study", "run the same command to go on"), connected() as cluster:
        _check_resources(study, cluster)
        if searching:
            done = [row for row in finished.values() if row["arm"] == SEARCH_ARM]
            counts = _search(study, points, done, results, report)
        else:
            pending = [trial for trial in trials if trial.trial_id not in finished]
            report(f"{len(trials)} trials planned, {len(trials) - len(pending)} finished before")
            counts = {"planned": len(trials), "skipped": len(trials) - len(pending), "ran": 0}
            if pending:
                numbers = tune.grid_search(list(range(len(pending))))
                counts["ran"] = _run(
                    study, results, report, {"number": numbers}, lambda space: pending[space["number"]], {}
                )
    return counts


def with_absolute_folders(study: StudyConfig) -> StudyConfig:
    """Make local paths absolute: Ray Tune runs its trials in another folder than the driver's."""

    def moved(dataset: DatasetConfig | None) -> DatasetConfig | None:
        return None if dataset is None else replace(dataset, root=Location(dataset.root).uri)

    train, texture_uri = study.train, study.train.synthesis.texture_uri
    train = replace(
        train,
        data=replace(train.data, dataset=moved(train.data.dataset)),
        synthesis=replace(train.synthesis, texture_uri=texture_uri and Location(texture_uri).uri),
    )
    results_dir = Location(study.results_dir).uri  # trials keep their networks there
    return replace(study, train=train, control=moved(study.control), results_dir=results_dir)


def score(figures: Mapping[str, float], floor_loss: float, min_pixel_ap: float = 0.8) -> float:
    """Return the search's objective: closeness to C1 and C2 on the probe, never on real defects; 1 meets both."""
    return min(figures["pixel_ap"] / min_pixel_ap, floor_loss / max(figures["reconstruction_loss"], 1e-9))


def _search(
    study: StudyConfig, points: list[dict[str, Any]], done: list[Row], results: StudyResults,
    report: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    search, seeds = study.search, study.search.seeds
    known = {row["trial_id"]: row.get(SCORE) for row in done}
    # settings that a killed search had tried are suggested first, and answered from the results
    tried = [row["settings"] for row in done if row["settings"] not in points]
    unique = list({json.dumps(settings, sort_keys=True): settings for settings in [*points, *tried]}.values())
    # with the killed search's seed, the sampler would propose the same settings again
    searcher: Any = OptunaSearch(points_to_evaluate=unique, seed=study.train.seed + len(unique))
    if len(seeds) > 1:
        searcher = Repeater(searcher, repeat=len(seeds))
    num_samples = search.num_trials * len(seeds)
    if num_samples > study.max_trials:
        raise ConfigError(
            f"the search has {num_samples} trials over its seeds, max_trials is {study.max_trials}: "
            "lower search.num_trials or raise it"
        )
    report(f"search: {search.num_trials} settings x {len(seeds)} seeds, {len(known)} trials finished before")

    def trial_of(space: Mapping[str, Any]) -> Trial:
        settings = {axis.name: space[axis.name] for axis in search.axes}
        return Trial(SEARCH_ARM, seeds[space.get("__trial_index__", 0)], settings)

    ran = _run(study, results, report, {axis.name: _domain(axis) for axis in search.axes}, trial_of, known,
               searcher=searcher, num_samples=num_samples)  # fmt: skip
    return {"planned": num_samples, "skipped": len(known), "ran": ran}


def _run(
    study: StudyConfig,
    results: StudyResults,
    report: Callable[[str], None],
    space: dict[str, Any],
    trial_of: Callable[[Mapping[str, Any]], Trial],
    known: Mapping[str, float | None],
    *,
    searcher: Any = None,
    num_samples: int = 1,
) -> int:
    """Run Tune once; return the number of rows added."""
    steps = study.train.num_steps
    assert steps is not None
    resources, (filesystem, path) = study.resources, (Location(study.results_dir) / "tune").arrow()
    scheduler: Any = FIFOScheduler()
    if searcher is not None:
        scheduler = ASHAScheduler(
            time_attr="step", max_t=steps, grace_period=min(study.search.grace_steps, steps),
            reduction_factor=study.search.reduction,
        )  # fmt: skip
    # trials.jsonl is the log; Tune reads its results back from its JSON files only
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    callback = _RowWriter(results, report, trial_of)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_train, study=study, trial_of=trial_of, known=dict(known)),
            {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial},
        ),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=SCORE, mode="max", search_alg=searcher, scheduler=scheduler, num_samples=num_samples,
            max_concurrent_trials=resources.max_concurrent or None,
        ),
        run_config=tune.RunConfig(
            storage_path=path, storage_filesystem=filesystem, verbose=0,
            callbacks=[callback, JsonLoggerCallback()],
        ),
    )  # fmt: skip
    logging.getLogger("ray.tune").setLevel(logging.WARNING)
    grid = tuner.fit()
    if grid.errors:
        cause = cause_in_one_line(grid.errors[0])
        raise JobFailed(f"{len(grid.errors)} trials failed, the first: {cause}; run the same command to go on")
    return callback.num_rows


def _train(
    space: dict[str, Any],
    study: StudyConfig,
    trial_of: Callable[[Mapping[str, Any]], Trial],
    known: Mapping[str, float | None],
) -> None:
    """Run one trial as a Tune function: report at every probe, and the row at the end."""
    import torch

    trial = trial_of(space)
    if trial.trial_id in known:  # finished before the study was killed
        tune.report({"step": study.train.num_steps, SCORE: known[trial.trial_id] or 0.0})
        return
    torch.set_num_threads(max(1, int(study.resources.cpus_per_trial)))
    device = "cuda" if study.resources.gpus_per_trial > 0 else "cpu"
    last: Row = {}

    def on_probe(probed: dict[str, float]) -> None:
        last.update(probed)
        if probed["step"] < (study.train.num_steps or 0):  # the last report carries the row
            tune.report({"step": probed["step"], SCORE: score(probed, probed["floor_loss"]), "probed": dict(probed)})

    row = execute(trial, study, StudyImages(study), device=device, on_probe=on_probe)
    value = score(row["figures"], row["probe"]["floor_loss"]) if row["status"] == "ok" else 0.0
    tune.report({"step": study.train.num_steps, SCORE: value, "row": {**row, SCORE: value}})


class _RowWriter(tune.Callback):  # type: ignore[misc]
    """Writes each trial's row as soon as it ends, and a short row for one that ASHA stopped."""

    def __init__(
        self, results: StudyResults, report: Callable[[str], None], trial_of: Callable[[Mapping[str, Any]], Trial]
    ) -> None:
        self._results, self._report, self._trial_of = results, report, trial_of
        self._last: dict[str, Row] = {}
        self.num_rows = 0

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Row, **info: Any) -> None:
        self._last[trial.trial_id] = result
        if "row" in result:
            self._add(result["row"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = self._last.pop(trial.trial_id, {})
        if "probed" in result and "row" not in result:
            stopped = self._trial_of(trial.config)
            self._add({
                "trial_id": stopped.trial_id, "arm": stopped.arm, "hypothesis": None, "condition": stopped.condition,
                "settings": stopped.settings, "seed": stopped.seed, "status": "stopped", SCORE: result[SCORE],
                "num_steps": result["step"], "figures": result["probed"], "failure": None, "criteria": {},
                "probe": {"floor_loss": result["probed"]["floor_loss"]}, "duration_s": result["time_total_s"],
            })  # fmt: skip

    def _add(self, row: Row) -> None:
        self._results.append(row)
        self.num_rows += 1
        text = describe(row) if row["status"] != "stopped" else f"stopped at step {row['num_steps']}: {row['settings']}"
        self._report(f"{self.num_rows}: {text}")


def _domain(axis: Axis) -> Any:
    if axis.choices is not None:
        return tune.choice(list(axis.choices))
    return tune.loguniform(axis.low, axis.high) if axis.log else tune.uniform(axis.low, axis.high)


def _check_resources(study: StudyConfig, cluster: Mapping[str, float]) -> None:
    for name, needed in (("CPU", study.resources.cpus_per_trial), ("GPU", study.resources.gpus_per_trial)):
        if needed > cluster.get(name, 0.0):
            raise ConfigError(
                f"a trial needs {needed:g} {name}s, the cluster has {cluster.get(name, 0.0):g}: "
                f"lower resources.{name.lower()}s_per_trial"
            )
