"""The study on Ray Tune: planned trials, a search that ASHA cuts short, and a killed driver."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from steelray.config import ConfigError
from steelray.research.study.config import ResourcesConfig, SearchConfig
from steelray.research.study.plan import plan_trials
from steelray.research.study.results import TRIALS_FILE, read_trials
from steelray.research.study.runner import run_plan
from steelray.research.study.space import Axis
from steelray.research.study.tune import run_study, with_absolute_folders
from tests.research.study.study import small_study

REPOSITORY = Path(__file__).parents[3]
HALF = ResourcesConfig(cpus_per_trial=0.5)


def numbers(figures: dict[str, float | None]) -> dict[str, float]:
    """A probe without black has no figure for black: null in the results."""
    return {name: math.nan if value is None else value for name, value in figures.items()}


@pytest.mark.usefixtures("cluster")
def test_trials_on_the_cluster_equal_those_in_one_process(tmp_path: Path) -> None:
    study = small_study(tmp_path / "ray", resources=HALF)
    trials = plan_trials(study)
    assert run_study(study, trials, print)["ran"] == 2
    single = replace(study, results_dir=str(tmp_path / "single"))
    run_plan(single, trials, print)
    found, expected = (
        {row["trial_id"]: row for row in read_trials(str(tmp_path / name))} for name in ("ray", "single")
    )
    assert found.keys() == expected.keys()
    for trial_id, row in found.items():
        assert numbers(row["figures"]) == pytest.approx(numbers(expected[trial_id]["figures"]), rel=1e-3, nan_ok=True)
    assert run_study(study, trials, print) == {"planned": 2, "skipped": 2, "ran": 0}
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"] and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"]


@pytest.mark.usefixtures("cluster")
def test_a_search_starts_with_baseline_and_fix_goes_on_where_it_ended_and_must_fit_the_cluster(tmp_path: Path) -> None:
    axes = (Axis("loss.w_focal", low=0.5, high=20.0, log=True), Axis("optimizer.clip", choices=(0.0, 1.0)))
    search = SearchConfig(axes, num_trials=3, grace_steps=1, reduction=2)
    study = small_study(tmp_path, mode="search", search=search, resources=HALF)
    assert run_study(study, [], print) == {"planned": 3, "skipped": 0, "ran": 3}
    rows = read_trials(str(tmp_path))
    settings = [row["settings"] for row in rows]
    assert {"loss.w_focal": 1.0, "optimizer.clip": 0.0} in settings
    assert {"loss.w_focal": 5.0, "optimizer.clip": 0.0} in settings
    assert {row["status"] for row in rows} <= {"ok", "stopped"}
    assert all(row["num_steps"] < 5 for row in rows if row["status"] == "stopped")
    longer = replace(study, search=replace(search, num_trials=4))
    assert run_study(longer, [], print) == {"planned": 4, "skipped": 3, "ran": 1}
    assert read_trials(str(tmp_path))[:3] == rows
    with pytest.raises(ConfigError, match="needs 64 CPUs"):
        run_study(replace(longer, resources=ResourcesConfig(cpus_per_trial=64)), [], print)
    with pytest.raises(ConfigError, match="max_trials is 2"):
        run_study(replace(study, max_trials=2), [], print)


def test_a_killed_job_goes_on_with_the_trials_that_are_left(tmp_path: Path) -> None:
    command = [
        sys.executable, str(REPOSITORY / "jobs" / "tune_draem.py"), "--config",
        str(REPOSITORY / "jobs" / "configs" / "study_smoke.yaml"), f"--results_dir={tmp_path}", "--train.num_steps=10",
        "--in_process=true", "--confirm_seeds=[0,1]",
    ]  # fmt: skip
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path = tmp_path / TRIALS_FILE
    while not path.is_file() and driver.poll() is None:
        time.sleep(0.1)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    before = read_trials(str(tmp_path))
    assert 1 <= len(before) < 4
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["skipped"] == len(before)
    assert summary["ran"] == 4 - len(before)
    assert read_trials(str(tmp_path))[: len(before)] == before


def test_trials_keep_their_networks_beside_the_results_wherever_they_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert with_absolute_folders(small_study(Path("results"))).results_dir == str(tmp_path / "results")
