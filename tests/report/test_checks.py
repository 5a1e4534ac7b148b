from dataclasses import replace

import numpy as np
import pytest

from steelray.evaluation.power import Power, PowerCell
from steelray.report import drift
from steelray.report.checks import Level, flags_by_group, headline, run_checks
from steelray.report.page import render_report
from steelray.report.rows import Counts
from tests.report.examples import example_run, score_table, thresholds


@pytest.fixture(scope="module")
def calm():
    """A run without drift."""
    return example_run(900, 0)


def scored(data, num_rows=900, **changes):
    """The same run with other strips."""
    limits = {limits.group: limits for limits in data.thresholds}
    return replace(data, scores=score_table(num_rows, limits=limits, **changes), num_listed=num_rows)


def checks_of(data):
    checks = run_checks(data, Counts(data.scores))
    return {check.anchor: replace(check, detail=check.detail.replace("\u00a0", " ")) for check in checks}


def levels_of(data):
    return {anchor: check.level for anchor, check in checks_of(data).items()}


def test_a_calm_run_is_sound(calm):
    assert set(levels_of(calm).values()) == {Level.OK}
    checks = run_checks(calm, Counts(calm.scores))
    assert headline(checks) == (Level.OK, "The run is complete and sound")
    assert checks[0].detail == "900 listed, 900 rows: none lost, none twice"
    later = checks_of(replace(calm, num_already_scored=12_000))["run"].detail
    assert later == f"{checks[0].detail}; 12,000 more were scored by earlier runs"


def test_a_run_is_not_sound_unless_its_model_can_decide(calm):
    blind = replace(calm, power=Power(24, (PowerCell("texture", 48, 64, 8, 1),)))
    page = render_report(blind)
    assert "This model cannot decide: none of the planted defects is found at any size" in page
    assert "Half of the 48 px textures are found at no contrast." in page
    assert "Power not measured" in render_report(replace(calm, power=None))
    assert "The run is complete and sound" not in render_report(replace(calm, power=None))
    assert "The run is complete and sound" in render_report(calm)
    assert "Half of the 48 px textures are found from 32 grey levels on." in render_report(calm)


@pytest.mark.parametrize("change", ["lost", "twice"])
def test_lost_and_double_rows_are_a_problem(calm, change):
    scores = calm.scores.slice(1) if change == "lost" else calm.scores.take([0, *range(899)])
    broken = replace(calm, scores=scores)
    assert levels_of(broken)["run"] == Level.PROBLEM
    assert headline(run_checks(broken, Counts(scores))) == (Level.PROBLEM, "Do not rely on this run yet")


def test_quarantine_above_its_limit_is_a_problem(calm):
    many = replace(calm, scores=score_table(900, num_failed=30))
    assert levels_of(many)["failures"] == Level.PROBLEM
    assert checks_of(many)["failures"].detail == "30 objects (3.3 %) in quarantine; the limit is 1 %"
    assert levels_of(replace(many, quarantine_limit=0.05))["failures"] == Level.OK
    assert levels_of(replace(many, quarantine_limit=None))["failures"] == Level.NOTE
    none = replace(calm, scores=score_table(900, num_failed=0))
    assert checks_of(none)["failures"].title == "Every object has a score"


def test_a_run_without_flags_may_have_missed_defects(calm):
    many = scored(calm, 3000, defect_rate=0)
    field = many.scores.schema.get_field_index("verdict")
    unflagged = many.scores.set_column(field, many.scores.schema.field(field), [["normal"] * 3000])
    check = checks_of(replace(many, scores=unflagged))["thresholds"]
    assert (check.level, check.title) == (Level.LOOK, "Fewer flags than expected")


def test_flag_rates_are_compared_with_earlier_runs_where_there_are_some(calm):
    many = scored(calm, defect_rate=0.15)
    assert checks_of(many)["thresholds"].title == "Unusually many flags"
    assert "in the last 9 runs" in checks_of(many)["thresholds"].detail
    assert checks_of(replace(many, history=()))["thresholds"].title == "Flag rate is plausible"
    most = replace(scored(calm, defect_rate=0.4), history=())
    assert checks_of(most)["thresholds"].title == "Unusually many flags"


def test_no_score_at_all_is_a_problem(calm):
    scores = score_table(4, num_failed=0).slice(0, 0)
    assert levels_of(replace(calm, scores=scores, num_listed=0))["thresholds"] == Level.PROBLEM


def test_drift_is_a_look_and_tells_the_first_reason(data):
    check = checks_of(data)["drift"]
    assert check.level == Level.LOOK
    assert check.detail.startswith("camera2: strips are darker than at calibration")


def test_drift_that_cannot_be_judged_is_not_called_absent(calm):
    few = {group: {measure: values[:5] for measure, values in s.items()} for group, s in calm.reference.items()}
    shifts = drift.detect_shifts(few, drift.samples_by_group(calm.scores))
    check = checks_of(replace(calm, shifts=shifts))["drift"]
    assert (check.level, check.title) == (Level.NOTE, "Drift not judged")


def test_an_absent_camera_is_mentioned(calm):
    seen = {group: sample for group, sample in drift.samples_by_group(calm.scores).items() if group != "camera3"}
    shifts = drift.detect_shifts(calm.reference, seen)
    assert "no strips came from camera3" in checks_of(replace(calm, shifts=shifts))["drift"].detail


def test_thresholds_that_promise_less_than_asked_for_are_a_look(calm):
    weak = {"": thresholds("", np.linspace(1.2, 1.9, 8))}
    titles = [check.title for check in run_checks(replace(calm, thresholds=list(weak.values())), Counts(calm.scores))]
    assert "Thresholds rest on few strips" in titles
    assert "Thresholds rest on few strips" not in [c.title for c in run_checks(calm, Counts(calm.scores))]
    assert checks_of(replace(calm, thresholds=()))["thresholds"].title == "No threshold"
    by_hand = checks_of(replace(calm, threshold_override=2.5))["thresholds"]
    assert "by hand to 2.5" in by_hand.detail


@pytest.mark.parametrize(("num_limits", "level"), [(4, Level.NOTE), (1, Level.LOOK)])
def test_strips_with_the_thresholds_of_all_strips_are_told(calm, num_limits, level):
    told = replace(calm, group_warnings=["one", "two"], thresholds=calm.thresholds[:num_limits])
    check = run_checks(told, Counts(calm.scores))[-1]
    assert (check.level, check.detail) == (level, "one; two")
    by_hand = replace(told, threshold_override=2.5)
    assert "one; two" not in [check.detail for check in run_checks(by_hand, Counts(calm.scores))]


def test_expected_and_seen_by_group(calm):
    flags = {flag.group: flag for flag in flags_by_group(calm, Counts(calm.scores))}
    assert list(flags) == ["camera1", "camera2", "camera3"]
    one = flags["camera1"]
    expected, low, high = one.expected
    assert expected == pytest.approx(0.02 * one.num_scored)
    assert low < expected < high
    assert one.num_flagged == one.num_review + one.num_reject
    fallback = flags_by_group(replace(calm, thresholds=calm.thresholds[:1]), Counts(calm.scores))
    assert all(flag.fallback and flag.limits is calm.thresholds[0] for flag in fallback)


def test_readings_tell_defects_from_false_alarms(calm):
    many = scored(calm, defect_rate=0.15)
    readings = [flag.reading for flag in flags_by_group(many, Counts(many.scores))]
    assert all("more than false alarms explain" in reading for reading in readings)
    by_hand = flags_by_group(replace(calm, threshold_override=9.0), Counts(calm.scores))
    assert all("set by hand" in flag.reading for flag in by_hand)
