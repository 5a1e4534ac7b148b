from datetime import UTC, datetime, timedelta, timezone

import pytest

from steelray.report import words
from steelray.schema import Status, Verdict


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0 %"),
        (0.0026, "0.26 %"),
        (0.00001, "< 0.01 %"),
        (0.02, "2 %"),
        (0.1234, "12.3 %"),
        (0.5, "50 %"),
        (1, "100 %"),
    ],
)
def test_percent(share, text):
    assert words.percent(share) == text.replace(" ", "\u00a0")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.7, "1 min 0 s"), (307, "5 min 7 s"), (8820, "2 h 27 min")]
)
def test_duration(seconds, text):
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1400, "1.4 kB"), (2.5e8, "250 MB"), (3.2e15, "3200 TB")]
)
def test_size(num_bytes, text):
    assert words.size(num_bytes) == text


def test_scores_line_up():
    assert [words.score(value) for value in (2.13, 2.1, 104, 0.76891)] == ["2.130", "2.100", "104.0", "0.7689"]


def test_moments_are_in_utc():
    assert words.moment(datetime(2026, 11, 5, 0, 30, tzinfo=timezone(timedelta(hours=1)))) == "4 Nov 2026, 23:30 UTC"
    assert words.moment(datetime(2026, 1, 5, 9, 3, tzinfo=UTC)) == "5 Jan 2026, 09:03 UTC"


def test_every_status_and_verdict_has_words():
    assert set(words.FAILURES) == set(Status) - {Status.OK}
    assert set(words.VERDICTS) == set(Verdict)
    assert words.status_title("unreadable") == "Not a readable image"
    assert words.status_title("of_a_later_version") == "of_a_later_version"


def test_strips_without_a_group_are_all_strips_only_if_there_are_no_groups():
    assert words.group_name("", alone=True) == "all strips"
    assert words.group_name("") == "no group"
    assert words.group_name("camera1") == "camera1"
