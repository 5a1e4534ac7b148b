import numpy as np
import pyarrow as pa
import pytest

from steelray.description import dump, parse
from steelray.models.calibration import ALL_STRIPS
from steelray.report import drift
from steelray.runs.record import GroupSummary, RunSummary
from steelray.schema import SCORES, Status
from tests.report.examples import FINISHED


def sample(rng, count, score_shift=0.0, brightness_shift=0.0):
    """Draw skewed scores, as distances are, their mean over the strip, and a brightness in grey levels."""
    score_N = 1.2 + 0.1 * rng.gamma(4.0, size=count) + score_shift
    distance_N = 0.3 * score_N + rng.normal(0.3, 0.02, count)
    return {"score": score_N, "distance": distance_N, "brightness": rng.normal(105 + brightness_shift, 9, count)}


def made_of(scores, brightness):
    return {"score": scores, "distance": scores / 2, "brightness": brightness}


def table(scores, brightness, groups=None, statuses=None, flags=None):
    rows = []
    for number, (score, level) in enumerate(zip(scores, brightness, strict=True)):
        status = statuses[number] if statuses else Status.OK
        row = {"image_key": f"strip_{number}.jpg", "etag": "0", "size_bytes": 1, "status": str(status)}
        row |= {"group": groups[number] if groups else "", "model_id": "m", "run_id": "r", "scored_at": FINISHED}
        if status == Status.OK:
            row |= {"anomaly_score": score, "mean_brightness": level, "map_mean": score / 2}
            row["is_anomalous"] = flags[number] if flags else False
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=SCORES)


def warned(shifts):
    return [(shift.group, shift.measure) for shift in shifts if shift.state == "drifted"]


def test_the_index_is_zero_for_equal_samples_and_symmetric_in_a_shift():
    values_N = np.arange(1000.0)
    assert drift.population_stability_index(values_N, values_N) == pytest.approx(0, abs=1e-9)
    # half of the strips move from the lower half to the upper: (0.25 - 0.5) ln 0.5 + (0.75 - 0.5) ln 1.5 = 0.2747
    moved_N = np.concatenate([values_N[:250], values_N[500:], values_N[500:750]])
    assert drift.population_stability_index(values_N, moved_N, num_bins=2) == pytest.approx(0.2747, abs=0.002)


def test_the_index_takes_equal_values_and_empty_bins():
    assert drift.population_stability_index(np.ones(50), np.ones(80)) < 0.01
    assert drift.population_stability_index(np.ones(50), np.full(50, 2.0)) > 1
    assert np.isfinite(drift.population_stability_index(np.arange(100.0), np.full(100, 1e6)))


@pytest.mark.parametrize(("num_reference", "num_current"), [(20, 20), (25, 2000), (300, 1000)])
def test_warnings_on_exchangeable_strips_are_rare(num_reference, num_current):
    """Two groups, three measures, 300 runs: at most 1 % of the runs may warn, and the draw adds its noise."""
    rng = np.random.default_rng(num_reference)
    false_alarms = 0
    for _ in range(300):
        reference = {group: sample(rng, num_reference) for group in "ab"}
        current = {group: sample(rng, num_current) for group in "ab"}
        false_alarms += bool(warned(drift.detect_shifts(reference, current)))
    assert false_alarms <= 8  # P(Binomial(300, 0.01) > 8) = 0.4 %


@pytest.mark.parametrize("num_reference", [40, 300])
def test_a_real_shift_is_found_in_the_right_group_and_measure(num_reference):
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(50):
        reference = {group: sample(rng, num_reference) for group in ("camera1", "camera2")}
        current = {"camera1": sample(rng, 2000), "camera2": sample(rng, 2000, brightness_shift=-15)}
        found += warned(drift.detect_shifts(reference, current)) == [("camera2", "brightness")]
    assert found >= 49


def test_the_reason_names_direction_numbers_and_remedy():
    rng = np.random.default_rng(2)
    reference = {ALL_STRIPS: sample(rng, 200)}
    shifts = drift.detect_shifts(reference, {ALL_STRIPS: sample(rng, 2000, 0.3, -30)})
    reasons = {shift.measure: shift.reason for shift in shifts}
    assert len(warned(shifts)) == 3
    assert "darker than at calibration (median 10" in reasons["brightness"]
    assert "lamps" in reasons["brightness"]
    assert "scores run higher" in reasons["score"]
    assert "patch distances run higher" in reasons["distance"]
    lower = drift.detect_shifts(reference, {ALL_STRIPS: sample(rng, 2000, -0.3)})[0]
    assert "defects may be missed" in lower.reason


def test_a_wider_spread_is_found_without_claiming_a_direction():
    rng = np.random.default_rng(3)
    reference = {ALL_STRIPS: made_of(rng.normal(5, 1, 400), rng.normal(100, 5, 400))}
    two_lamps = np.concatenate([rng.normal(93, 1, 1000), rng.normal(107, 1, 1000)])
    shift = drift.detect_shifts(reference, {ALL_STRIPS: made_of(rng.normal(5, 1, 2000), two_lamps)})[0]
    assert (shift.measure, shift.state) == ("brightness", "drifted")
    assert "spread differently" in shift.reason


def test_large_archives_do_not_warn_of_differences_that_do_not_matter():
    rng = np.random.default_rng(4)
    shifts = drift.detect_shifts(
        {ALL_STRIPS: sample(rng, 5000)}, {ALL_STRIPS: sample(rng, 200_000, brightness_shift=1.0)}
    )
    assert not warned(shifts)
    assert min(shift.p_value for shift in shifts) < 1e-6  # a bare test would have warned


def test_a_run_with_a_tenth_of_defects_is_no_drift():
    rng = np.random.default_rng(5)
    current = sample(rng, 5000)
    current["score"][:500] += rng.uniform(0.5, 2, 500)
    assert not warned(drift.detect_shifts({ALL_STRIPS: sample(rng, 500)}, {ALL_STRIPS: current}))


def test_small_unknown_and_absent_groups_say_so_and_do_not_warn():
    rng = np.random.default_rng(6)
    reference = {"a": sample(rng, 8), "b": sample(rng, 100), "c": sample(rng, 100)}
    current = {"a": sample(rng, 500, 9, 90), "b": sample(rng, 5, 9, 90), "new": sample(rng, 500)}
    shifts = {(s.group, s.measure): s for s in drift.detect_shifts(reference, current)}
    assert not warned(shifts.values())
    assert shifts["a", "score"].reason.startswith("8 calibration strips are too few")
    assert shifts["b", "score"].reason.startswith("5 strips of this run are too few")
    assert shifts["new", "score"].reason.startswith("0 calibration strips")
    assert {shifts["c", measure].state for measure in drift.MEASURES} == {"absent"}
    assert drift.detect_shifts({}, {}) == ()


def test_another_mix_of_steady_groups_is_no_drift():
    rng = np.random.default_rng(7)
    groups = ["light"] * 100 + ["dark"] * 2000

    def brightness(num_light, num_dark):
        return np.concatenate([rng.normal(140, 5, num_light), rng.normal(60, 5, num_dark)])

    current = drift.samples_by_group(table(rng.normal(1, 0.1, 2100), brightness(100, 2000), groups))
    reference = {
        ALL_STRIPS: made_of(rng.normal(1, 0.1, 400), brightness(200, 200)),
        "light": made_of(rng.normal(1, 0.1, 200), brightness(200, 0)),
        "dark": made_of(rng.normal(1, 0.1, 200), brightness(0, 200)),
    }
    assert not warned(drift.detect_shifts(reference, current))


def test_samples_leave_out_rows_without_a_score():
    scores = table(
        [1.0, 2.0, float("nan"), 4.0], [10.0, 20.0, 30.0, 40.0], ["b", "b", "a", "a"], ["ok", "missing", "ok", "ok"]
    )
    samples = drift.samples_by_group(scores)
    assert list(samples) == [ALL_STRIPS, "a", "b"]
    assert samples[ALL_STRIPS]["score"].tolist() == [1.0, 4.0]
    assert samples["a"]["brightness"].tolist() == [30.0, 40.0]
    assert samples["a"]["distance"].tolist() == [2.0]
    assert samples["b"]["score"].tolist() == [1.0]


def test_a_run_summary_counts_and_survives_json():
    scores = table([1.0, 2.0, 3.0], [10.0, 20.0, 30.0], ["a", "a", "b"], ["ok", "blank", "ok"], [True, True, False])
    summary = drift.summarize_run("run-1", "2026-01-02T03:04:05+00:00", scores)
    assert (summary.num_rows, summary.num_failed, summary.num_flagged) == (3, 1, 1)
    assert summary.groups == (
        GroupSummary(ALL_STRIPS, 2, 1, {"brightness": 20.0, "score": 2.0, "distance": 1.0}),
        GroupSummary("a", 1, 1, {"brightness": 10.0, "score": 1.0, "distance": 0.5}),
        GroupSummary("b", 1, 0, {"brightness": 30.0, "score": 3.0, "distance": 1.5}),
    )
    assert parse(RunSummary, dump(summary), "run.json", "") == summary
    empty = drift.summarize_run("run-2", "2026-01-02T03:04:05+00:00", scores.slice(0, 0))
    assert empty.groups == (GroupSummary(ALL_STRIPS, 0, 0, {}),)


def runs_of(medians, num_scored=500):
    return [
        RunSummary(f"run-{n}", "", num_scored, 0, 5, (GroupSummary(ALL_STRIPS, num_scored, 5, values),))
        for n, values in enumerate({"score": 1.6, "brightness": float(median)} for median in medians)
    ]


def test_a_lamp_that_dies_slowly_is_a_trend():
    reference = {ALL_STRIPS: sample(np.random.default_rng(8), 200)}
    trends = drift.detect_trends(runs_of(105 - 1.5 * np.arange(10)), reference)
    assert [(t.measure, t.state) for t in trends] == [
        ("brightness", "drifted"),
        ("score", "steady"),
        ("distance", "too_few"),
    ]
    assert "darker from run to run (median 105 → 91.5 in 10 runs)" in trends[0].reason
    assert trends[0].change == pytest.approx(-13.5)
    assert drift.warnings((), trends) == (f"all strips: {trends[0].reason}",)


def test_trends_need_enough_runs_strips_and_change():
    rng = np.random.default_rng(9)
    reference = {ALL_STRIPS: sample(rng, 200)}
    falling = 105 - 1.5 * np.arange(10)
    assert {t.state for t in drift.detect_trends(runs_of(falling[:5]), reference)} == {"too_few"}
    assert {t.state for t in drift.detect_trends(runs_of(falling), {})} == {"too_few"}
    assert {t.state for t in drift.detect_trends(runs_of(falling, num_scored=5), reference)} == {"too_few"}
    assert not warned(drift.detect_trends(runs_of(105 + falling / 100), reference))
    assert drift.detect_trends([], reference) == ()


def test_trends_on_unchanged_runs_are_rare():
    rng = np.random.default_rng(10)
    reference = {ALL_STRIPS: sample(rng, 200)}
    series = (runs_of(105 + 9 * rng.standard_normal(12)) for _ in range(400))
    false_alarms = sum(bool(warned(drift.detect_trends(runs, reference))) for runs in series)
    assert false_alarms <= 10
