from datetime import UTC, datetime, timedelta, timezone

import pytest

from steelray.report import words
from steelray.schema import Status, Verdict


@pytest.mark.parametrize(
    ("write", "values", "texts"),
    [
        (
            words.percent,
            (0, 0.0026, 0.00001, 0.02, 0.1234, 0.5, 1),
            ("0 %", "0.26 %", "< 0.01 %", "2 %", "12.3 %", "50 %", "100 %"),
        ),
        (words.duration, (0.4, 59.7, 307, 8820), ("0 s", "1 min 0 s", "5 min 7 s", "2 h 27 min")),
        (words.size, (0, 999, 1400, 2.5e8, 3.2e15), ("0 B", "999 B", "1.4 kB", "250 MB", "3200 TB")),
        (words.score, (2.13, 2.1, 104, 0.76891), ("2.130", "2.100", "104.0", "0.7689")),
    ],
)
def test_numbers_are_written_for_people(write, values, texts):
    assert [write(value).replace("\u00a0", " ") for value in values] == list(texts)


def test_a_percentage_stays_on_one_line():
    assert " " not in words.percent(0.00001)


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
    assert [words.group_name(group) for group in ("", "camera1")] == ["no group", "camera1"]
