"""The page of a study: written from results alone, with verdicts, also where trials went wrong."""

from dataclasses import replace
from pathlib import Path

import pytest

from steelray.config import ConfigError
from steelray.reconstruction.config import OptimizerConfig
from steelray.research.study.config import Arm, SearchConfig
from steelray.research.study.plan import Trial, plan_trials
from steelray.research.study.report import parted, write_report
from steelray.research.study.results import StudyResults, read_trials
from steelray.research.study.runner import run_plan
from steelray.research.study.space import Axis
from tests.research.study.study import TRAIN, small_study


def test_a_page_with_every_hypothesis_and_figure(tmp_path: Path) -> None:
    search = SearchConfig((Axis("loss.w_focal", low=1.0, high=9.0),))
    study = small_study(tmp_path, arms=(Arm("steel denoised", condition="steel+denoise=2"),), mode="all", seeds=(0,),
                        search=search)  # fmt: skip
    searched = [Trial("search", 0, {"loss.w_focal": weight}) for weight in (2.0, 3.0)]
    run_plan(study, [*plan_trials(study), *searched], lambda line: None)
    broken = replace(study, train=replace(TRAIN, optimizer=OptimizerConfig(lr=1e30)), results_dir=str(tmp_path / "nan"))
    run_plan(broken, [Trial("broken", 9)], lambda line: None)
    StudyResults(str(tmp_path), study).append(read_trials(str(tmp_path / "nan"))[0])
    summary = write_report(str(tmp_path), str(tmp_path / "page"))
    assert summary["num_trials"] == 6
    assert summary["verdicts"]["H1"]["S1"] == "undecided"
    markdown = (tmp_path / "page" / "study.md").read_text()
    assert all(f"| H{number} |" in markdown for number in range(1, 10))
    assert "## Pixel AP without training" in markdown
    assert "1 of them not finite" in markdown
    figures = sorted(path.stem for path in (tmp_path / "page" / "figures").glob("*.svg"))
    assert figures == ["curves", "factors", "factors_loss", "floor", "importance", "parallel", "transplants"]
    assert all(f"figures/{name}.svg" in markdown for name in figures)


def test_longer_trials_of_the_claim_are_not_compared_with_the_arms(tmp_path: Path) -> None:
    study = small_study(tmp_path, mode="all", seeds=(0,), confirm_steps=10)
    trials = plan_trials(study)
    assert [trial.config(study).num_steps for trial in trials] == [5, 5, 10, 10]
    run_plan(study, trials, lambda line: None)
    screened, confirmed = parted(read_trials(str(tmp_path)), 10)
    assert [(row["arm"], row["num_steps"]) for row in screened] == [("baseline", 5), ("fix", 5)]
    assert [(row["arm"], row["num_steps"]) for row in confirmed] == [("baseline", 10), ("fix", 10)]
    write_report(str(tmp_path), str(tmp_path / "page"))
    markdown = (tmp_path / "page" / "study.md").read_text()
    assert "5 steps (10 for the claim)" in markdown
    for line in ("| baseline | steel | 5 | 1 |", "| fix | steel | 10 | 1 |"):
        assert line in markdown


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a study's results"):
        write_report(str(tmp_path), str(tmp_path))
    StudyResults(str(tmp_path), small_study(tmp_path))
    with pytest.raises(ConfigError, match="no finished trials"):
        write_report(str(tmp_path), str(tmp_path))
