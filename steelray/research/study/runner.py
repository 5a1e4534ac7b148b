"""Execution of trials, one after another, in this process."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from steelray.provenance import git_commit, hardware, package_versions
from steelray.research.study.config import StudyConfig
from steelray.research.study.data import StudyImages
from steelray.research.study.networks import keep_network
from steelray.research.study.plan import Trial
from steelray.research.study.results import StudyResults, read_trials
from steelray.research.study.trial import run_trial


def run_plan(study: StudyConfig, trials: Sequence[Trial], report: Callable[[str], None]) -> dict[str, Any]:
    """Run the trials that `trials.jsonl` does not hold yet; a trial that ends in NaN is a result like others.

    Args:
        report: receives a line on every step.

    Returns:
        Counts for the job's summary.
    """
    torch.set_num_threads(max(1, int(study.resources.cpus_per_trial)))
    results = StudyResults(study.results_dir, study, provenance())
    finished = {row["trial_id"] for row in read_trials(study.results_dir)}
    pending = [trial for trial in trials if trial.trial_id not in finished]
    report(f"{len(trials)} trials planned, {len(trials) - len(pending)} finished before, {len(pending)} to run")
    images = StudyImages(study)
    for number, trial in enumerate(pending, start=1):
        row = execute(trial, study, images)
        results.append(row)
        report(f"{number}/{len(pending)} {describe(row)}")
    return {"planned": len(trials), "ran": len(pending), "skipped": len(trials) - len(pending)}


def execute(trial: Trial, study: StudyConfig, images: StudyImages, **options: Any) -> dict[str, Any]:
    """Run one trial and return its row with provenance."""
    on_end = partial(keep_network, study.results_dir, trial.trial_id) if trial.keep else None
    row = run_trial(trial, study, images.condition(trial.condition), images.textures, on_end=on_end, **options)
    return {**row, "provenance": provenance()}


def describe(row: dict[str, Any]) -> str:
    """Format a finished trial as one line."""
    head = f"{row['arm']} on {row['condition']}, seed {row['seed']}: "
    if row["status"] != "ok":
        return f"{head}{row['failure']['term']} not finite at step {row['failure']['step']}"
    figures, probe = row["figures"], row["probe"]
    return (
        f"{head}loss {figures['reconstruction_loss']:.3f} (floor {probe['floor_loss']:.3f}), "
        f"focal {figures['focal_over_constant']:.2f} of a constant's, AP {figures['pixel_ap']:.2f}, "
        f"{row['duration_s']:.0f} s"
    )


def provenance() -> dict[str, Any]:
    """Return commit, versions and hardware, to store with results."""
    return {"git_commit": git_commit(), "packages": package_versions(), "hardware": hardware()}
