"""The recipes that the study speaks of: what it proposes is what jobs/train.py is given."""

from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml

from steelray.job import parse
from steelray.research.study.config import StudyConfig
from steelray.research.study.space import check_points

CONFIGS = Path(__file__).parents[3] / "jobs" / "configs"


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text())
    return found


@pytest.mark.parametrize("study", ["study_small.yaml", "study_gpu.yaml"])
def test_the_recipe_for_steel_is_the_study_s_fix(study: str) -> None:
    recipe, fix = read("draem_steel.yaml"), read(study)["fix"]
    found = {name: reduce(lambda part, key: part[key], name.split("."), recipe) for name in fix}
    assert found == fix


def test_the_faithful_recipe_departs_from_the_paper_in_nothing() -> None:
    recipe, baseline = read("draem_faithful.yaml"), read("study_small.yaml")["train"]
    assert not {"synthesis", "loss", "draem", "calibration"} & recipe.keys()
    assert recipe["optimizer"] == {"lr": 1e-4}
    scale = {"width", "perlin_exponents", "texture_uri", "lr"}
    assert {name for part in ("draem", "synthesis", "optimizer") for name in baseline[part]} == scale


def test_the_search_on_a_gpu_starts_at_baseline_and_fix() -> None:
    study = parse(StudyConfig, "", ["--config", str(CONFIGS / "study_gpu.yaml")])
    baseline, fix = check_points(study.train, study.fix, study.search.axes)
    assert baseline["draem.halvings"] == 4
    assert fix["draem.halvings"] == study.fix["draem.halvings"] == 1
