"""The list of objects without a score, and the limit of their share."""

import csv
import io
from pathlib import Path

import pyarrow as pa
import pytest

from steelray.runs.quarantine import SPREADSHEET, excess, quarantine_of, read_quarantine, write_quarantine
from steelray.schema import QUARANTINE
from steelray.storage.location import Location
from tests.report.examples import NASTY_KEYS, score_table


def test_the_list_names_what_has_no_score_and_why(tmp_path: Path) -> None:
    scores = score_table(60, num_failed=9)
    quarantine = quarantine_of(scores)
    failed = [row for row in scores.to_pylist() if row["status"] != "ok"]
    assert quarantine.schema.equals(QUARANTINE)
    assert quarantine.num_rows == len(failed) == 9
    assert quarantine.column("reason").to_pylist() == [row["error"] for row in failed]
    assert quarantine.column("status").to_pylist() == [row["status"] for row in failed]
    location = Location(str(tmp_path))
    write_quarantine(location, quarantine)
    assert read_quarantine(location).equals(quarantine)
    lines = list(csv.DictReader(io.StringIO(location.read(SPREADSHEET).decode())))
    assert [line["image_key"] for line in lines] == quarantine.column("image_key").to_pylist()
    assert [int(line["size_bytes"]) for line in lines] == quarantine.column("size_bytes").to_pylist()


def test_no_key_becomes_a_formula_in_a_spreadsheet(tmp_path: Path) -> None:
    formula = next(key for key in NASTY_KEYS if key.startswith("="))
    row = {"image_key": formula, "etag": "e", "size_bytes": 1, "status": "unreadable", "reason": '+cmd "x"'}
    location = Location(str(tmp_path))
    write_quarantine(location, pa.Table.from_pylist([row], QUARANTINE))
    [line] = csv.DictReader(io.StringIO(location.read(SPREADSHEET).decode()))
    assert line["image_key"] == f"'{formula}"
    assert line["reason"] == '\'+cmd "x"'
    assert read_quarantine(location).column("image_key").to_pylist() == [formula]


@pytest.mark.parametrize(
    ("listed", "ok", "limit", "too_many"),
    [
        (100, 95, 0.05, False),
        (100, 94, 0.05, True),
        (100, 0, None, False),
        (100, 100, 0.0, False),
        (3, 2, 0.0, True),
        (7, 0, 0.5, True),
    ],
)
def test_only_a_share_above_the_limit_is_too_much(listed: int, ok: int, limit: float | None, too_many: bool) -> None:
    complaint = excess({"listed": listed, "ok": ok}, limit)
    assert (complaint is not None) == too_many
    if complaint:
        assert f"{listed - ok} of {listed} objects" in complaint
