import json

import pyarrow as pa
import pytest

from steelray.report.rows import Counts, embedded_rows, script_json, states_of
from steelray.schema import SCORES, Verdict
from tests.report.examples import FAILURES, HOSTILE_KEY


@pytest.fixture(scope="module")
def scores(data):
    return data.scores


def test_counts_add_up(scores):
    counts = Counts(scores)
    assert counts.num_scored + sum(counts.failures.values()) == counts.num_rows == 900
    assert counts.num_failed == 3
    assert counts.num_flagged == counts.of(None, Verdict.REVIEW) + counts.of(None, Verdict.REJECT) > 0
    assert sum(counts.scored_in(group) for group in counts.groups) == counts.num_scored
    assert list(counts.failures.values()) == sorted(counts.failures.values(), reverse=True)


def test_rows_without_a_verdict_count_by_their_flag(scores):
    bare = scores.set_column(SCORES.get_field_index("verdict"), SCORES.field("verdict"), pa.nulls(900, pa.string()))
    states = states_of(bare).to_pylist()
    assert states.count("review") == Counts(scores).num_flagged
    assert states.count("normal") == 900 - 3 - Counts(scores).num_flagged


def test_rows_without_a_group_come_last_and_are_not_lost(scores):
    column = pa.array([None if n % 5 else "camera1" for n in range(900)])
    counts = Counts(scores.set_column(SCORES.get_field_index("group"), SCORES.field("group"), column))
    assert counts.groups == ["camera1", ""]
    assert counts.scored_in("") + counts.scored_in("camera1") == counts.num_scored


def test_the_embedded_table_holds_every_row_worst_first(scores):
    rows = embedded_rows(scores)
    assert sorted(rows["key"]) == sorted(scores["image_key"].to_pylist())
    assert {len(rows[name]) for name in ("key", "group", "state", "error", "score", "threshold", "area", "boxes")} == {
        900
    }
    assert rows["key"][0] == HOSTILE_KEY
    states = [rows["states"][index][0] for index in rows["state"]]
    ranks = [{"reject": 0, "review": 1, "normal": 3}.get(state, 2) for state in states]
    assert ranks == sorted(ranks)
    best = [score for score, state in zip(rows["score"], states, strict=True) if state == "normal"]
    assert best == sorted(best, reverse=True)


def test_a_large_table_keeps_flags_and_failures(scores):
    counts = Counts(scores)
    rows = embedded_rows(scores, limit=counts.num_flagged + counts.num_failed + 10)
    states = [rows["states"][index][0] for index in rows["state"]]
    assert sum(state in FAILURES for state in states) == counts.num_failed
    assert sum(state in ("review", "reject") for state in states) == counts.num_flagged
    assert states.count("normal") == 10


def test_nothing_in_the_json_is_markup(scores):
    text = script_json(embedded_rows(scores))
    assert not set("<>&") & set(text)
    assert "\u2028" not in text
    assert json.loads(text)["key"][0] == HOSTILE_KEY
