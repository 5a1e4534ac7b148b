"""Verdicts follow their rules: supported, refuted and undecided, each from data that say so."""

import statistics
from typing import Any

import numpy as np
import pytest

from steelray.research.study.verdicts import (
    FIGURES,
    HYPOTHESES,
    SYMPTOMS,
    TESTS,
    Prediction,
    combine,
    interval,
    judge_tests,
)

HIGHER = Prediction("H7", "S3", "arm", "pixel_ap", 1, 0.05)


def rows(arm: str, values: list[float | None], figure: str = "pixel_ap", status: str = "ok") -> list[dict[str, Any]]:
    return [{"arm": arm, "seed": n, "status": status, "figures": {figure: value}} for n, value in enumerate(values)]


@pytest.mark.parametrize(
    ("arm", "baseline", "verdict"),
    [
        ([0.50, 0.52, 0.51], [0.30, 0.31, 0.32], "supported"),
        ([0.30, 0.32, 0.31], [0.30, 0.31, 0.32], "refuted"),  # the interval stays below 0.05
        ([0.10, 0.12, 0.11], [0.30, 0.31, 0.32], "refuted"),  # the other way round
        ([0.90, 0.20, 0.35], [0.30, 0.31, 0.32], "undecided"),  # seeds disagree
        ([0.34, 0.35, 0.36], [0.30, 0.31, 0.32], "refuted"),  # sure, but too small to matter
        ([0.50, 0.52], [0.30, 0.31, 0.32], "undecided"),  # two seeds
        ([0.50, 0.52, None], [0.30, 0.31, 0.32], "undecided"),
    ],
)
def test_an_arm_against_its_reference(arm: list[float | None], baseline: list[float], verdict: str) -> None:
    [outcome] = judge_tests([*rows("arm", arm), *rows("baseline", baseline)], [HIGHER])
    assert outcome.verdict == verdict


def test_seeds_are_paired() -> None:
    paired = [*rows("arm", [0.2, 0.5, 0.8]), *rows("baseline", [0.1, 0.4, 0.7])]
    [outcome] = judge_tests(paired, [HIGHER])
    assert (outcome.verdict, outcome.num_seeds) == ("supported", 3)
    assert outcome.low == pytest.approx(0.1)


def test_a_smaller_figure_can_be_what_is_predicted_relative_to_the_reference() -> None:
    lower = Prediction("H1", "S1", "arm", "late_total", -1, 0.3, relative=True)
    for values, verdict in (([0.10, 0.11, 0.12], "supported"), ([0.35, 0.36, 0.37], "refuted")):
        found = [*rows("arm", values, "late_total"), *rows("baseline", [0.4, 0.4, 0.4], "late_total")]
        assert judge_tests(found, [lower])[0].verdict == verdict


def test_one_arm_against_a_limit() -> None:
    limit = Prediction("H1", "S1", "arm", "pixel_ap", 1, 0.0, None, limit=0.5)
    assert judge_tests(rows("arm", [0.8, 0.82, 0.81]), [limit])[0].verdict == "supported"
    assert judge_tests(rows("arm", [0.2, 0.22, 0.21]), [limit])[0].verdict == "refuted"
    assert judge_tests(rows("arm", [0.3, 0.5, 0.9]), [limit])[0].verdict == "undecided"


def test_trials_that_went_nan_do_not_count() -> None:
    found = [*rows("arm", [0.5, 0.5, 0.5], status="nan"), *rows("baseline", [0.3, 0.3, 0.3])]
    [outcome] = judge_tests(found, [HIGHER])
    assert (outcome.verdict, outcome.num_seeds) == ("undecided", 0)


def test_predictions_that_contradict_each_other_decide_nothing() -> None:
    found = [*rows("up", [0.5, 0.51, 0.52]), *rows("same", [0.3, 0.31, 0.32]), *rows("baseline", [0.3, 0.31, 0.32])]
    up, same, absent = judge_tests(
        found, [Prediction("H7", "S3", arm, "pixel_ap", 1, 0.05) for arm in ("up", "same", "absent")]
    )
    assert combine([up, absent]) == "supported"
    assert combine([same, absent]) == "refuted"
    assert combine([up, same]) == combine([absent]) == "undecided"


def test_the_interval_is_student_s() -> None:
    for num_seeds, t in ((3, 4.30265), (20, 2.09302)):  # of a printed table
        values = [float(number) for number in range(num_seeds)]
        mean, low, high = interval(values)
        half = t * statistics.stdev(values) / num_seeds**0.5
        assert (mean, low, high) == pytest.approx(((num_seeds - 1) / 2, mean - half, mean + half), rel=1e-5)
    assert np.isnan([*interval([]), *interval([1.0])[1:]]).all()


def test_every_hypothesis_has_predictions_on_known_figures() -> None:
    assert {prediction.hypothesis for prediction in TESTS} == set(HYPOTHESES)
    assert all(prediction.figure in FIGURES and prediction.symptom in SYMPTOMS for prediction in TESTS)
