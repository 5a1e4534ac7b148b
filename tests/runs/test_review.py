"""Figures of a run's alarms from an operator's verdicts."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steelray.config import ConfigError
from steelray.description import dump
from steelray.runs.config import ReviewConfig
from steelray.runs.review import judge, read_verdicts, review
from steelray.runs.run import Run, publish
from tests.plant import some_record
from tests.report.examples import NASTY_KEYS, score_table


def table(*rows: tuple[str, str, str]) -> pa.Table:
    """Key, group and verdict."""
    fields = ("image_key", "group", "verdict")
    return pa.Table.from_pylist([{**dict(zip(fields, row, strict=True)), "status": "ok"} for row in rows])


ROWS = table(
    ("a", "line1", "reject"),
    ("b", "line1", "reject"),
    ("c", "line1", "review"),
    ("d", "line2", "review"),
    ("e", "line2", "normal"),
    ("f", "line2", "normal"),
)


def test_precision_counts_the_judged_alarms_of_each_threshold() -> None:
    found, _ = judge(ROWS, {"a": True, "c": False, "d": True})
    at_review, at_reject = found["review"], found["reject"]
    assert (at_review.flagged, at_review.judged, at_reject.precision) == (4, 3, 1.0)
    assert at_review.precision == pytest.approx(2 / 3)
    # Clopper-Pearson for 2 of 3 and for 1 of 1, from tables
    assert (at_review.precision_low, at_review.precision_high) == pytest.approx((0.0943, 0.9916), abs=1e-4)
    assert (at_reject.precision_low, at_reject.precision_high) == pytest.approx((0.025, 1.0))


def test_recall_is_known_only_where_strips_below_the_threshold_were_judged() -> None:
    found, _ = judge(ROWS, {"a": True, "c": True})
    assert found["review"].recall is None
    assert found["reject"].recall == 0.5, "c was judged and lies below reject"
    found, _ = judge(ROWS, {"a": True, "c": True, "e": True, "f": False})
    assert (found["review"].recall, found["review"].missed) == (pytest.approx(2 / 3), 1)


def test_groups_are_judged_by_themselves() -> None:
    _, groups = judge(ROWS, {"a": True, "b": True, "c": False, "d": False})
    assert groups["line1"]["review"].precision == pytest.approx(2 / 3)
    assert (groups["line2"]["review"].precision, groups["line2"]["reject"].precision) == (0.0, None)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("image_key,verdict\nä,true_alarm\nb,false_alarm\n", "utf-8"),
        ("image_key;verdict\r\nä;TRUE_ALARM\r\nb;False\r\nc;\r\n", "utf-8-sig"),
        ("image_key\tverdict\r\nä\tmissed_defect\r\nb\tno\r\n", "utf-16"),
        ("Image_Key;Verdict\r\nä;Missed defect\r\nb;OK\r\n", "cp1252"),
        ('key,verdict\rä,"defect, not flagged"\rb,0\r', "utf-8"),
        ("line,verdict,key\n1,yes,ä\n2,no,b\n", "utf-8"),
    ],
)
def test_verdicts_come_as_the_page_or_a_spreadsheet_saves_them(tmp_path: Path, text: str, encoding: str) -> None:
    (tmp_path / "verdicts.csv").write_bytes(text.encode(encoding))
    assert read_verdicts(str(tmp_path / "verdicts.csv")) == {"ä": True, "b": False}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key,said\na,true\n", "needs columns image_key and verdict, has"),
        ("", "has none"),
        ("key,verdict\na,true\nb,perhaps\n", "line 3: verdict 'perhaps' is none of true_alarm, "),
        ("key,verdict\na,true\na,false\n", "line 3: a is called both defective and not"),
        ("key,verdict\na,\n", "no verdict in the file"),
        ("PK\x03\x04\x81\x8d", "needs columns"),
        (None, r"verdicts\.csv cannot be read"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "verdicts.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_verdicts(str(tmp_path / "verdicts.csv"))


class TestPublishedRun:
    @pytest.fixture
    def results_uri(self, tmp_path: Path) -> str:
        run = Run(str(tmp_path / "results"), "first")
        sink = pa.BufferOutputStream()
        pq.write_table(score_table(50), sink)
        run.location.write("scores/part.parquet", sink.getvalue().to_pybytes())
        run.finish(dump(some_record("first")))
        publish(run)
        return run.results_uri

    def test_keys_of_every_kind_are_found(self, results_uri: str, tmp_path: Path) -> None:
        lines = ["image_key,verdict"] + [f'"{key.replace(chr(34), 2 * chr(34))}",true_alarm' for key in NASTY_KEYS]
        (tmp_path / "v.csv").write_text("\n".join([*lines, "elsewhere.jpg,false_alarm"]), encoding="utf-8")
        found = review(ReviewConfig(results_uri, str(tmp_path / "v.csv")))
        assert (found.run_id, found.verdicts, found.not_in_run) == ("first", len(NASTY_KEYS) + 1, 1)

    def test_verdicts_of_another_run_are_refused(self, results_uri: str, tmp_path: Path) -> None:
        (tmp_path / "v.csv").write_text("key,verdict\nelsewhere.jpg,false_alarm\n")
        with pytest.raises(ConfigError, match=r"none of its 1 keys, such as elsewhere\.jpg, is in run first"):
            review(ReviewConfig(results_uri, str(tmp_path / "v.csv")))
        with pytest.raises(ConfigError, match="no complete run other"):
            review(ReviewConfig(results_uri, str(tmp_path / "v.csv"), "other"))
