import json
from datetime import UTC, datetime, timedelta

import pytest

from steelray import job as progress


@pytest.fixture(autouse=True)
def no_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_tags", {})


def test_a_person_reads_the_message_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(progress.FORMAT_VARIABLE, raising=False)
    progress.tag_lines(run_id="4f2a")
    assert progress.progress_line('3 of "many"') == '3 of "many"'


def test_a_collector_gets_one_object_per_line_with_the_run_it_belongs_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(progress.FORMAT_VARIABLE, "json")
    progress.tag_lines(run_id="4f2a")
    line = progress.progress_line('two\nlines and "quotes"', level="warning")
    assert "\n" not in line
    record = json.loads(line)
    written = datetime.fromisoformat(record.pop("time"))
    assert record == {"level": "warning", "run_id": "4f2a", "message": 'two\nlines and "quotes"'}
    assert abs(datetime.now(UTC) - written) < timedelta(seconds=10)
