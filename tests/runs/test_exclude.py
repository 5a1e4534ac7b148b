"""Lists of strips to leave out, as a person or the bank page writes them."""

from pathlib import Path

import pytest

from steelray.config import ConfigError
from steelray.models.calibration import read_calibration, read_calibration_rows
from steelray.models.config import CalibrateConfig
from steelray.runs.exclude import exclude, read_excluded
from steelray.runs.recalibration import recalibrate
from tests.plant import Plant


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("a.jpg\nline 1/ä,b.jpg\n", "utf-8"),
        ("image_key\r\na.jpg\r\n\r\nline 1/ä,b.jpg\r\na.jpg", "utf-8-sig"),
        ('image_key,verdict\na.jpg,true_alarm\nc.jpg,false_alarm\n"line 1/ä,b.jpg",missed_defect\n', "utf-8"),
        ("Key;Verdict\r\na.jpg;True alarm\r\nline 1/ä,b.jpg;yes\r\nc.jpg;no\r\n", "cp1252"),
    ],
)
def test_keys_come_as_a_list_or_as_verdicts(tmp_path: Path, text: str, encoding: str) -> None:
    (tmp_path / "odd").write_bytes(text.encode(encoding))
    assert read_excluded(str(tmp_path / "odd")) == ["a.jpg", "line 1/ä,b.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c.jpg\nd.jpg\n", r"none of its 2 keys, such as c\.jpg, is in the bank"),
        ("a.jpg\nb.jpg\n", "it names all 2 strips of the bank: leave some"),
        ("\n", "it names no strip to leave out"),
        ("image_key,verdict\na.jpg,false_alarm\n", "it names no strip to leave out"),
        ("image_key,verdict\na.jpg,perhaps\n", "verdict 'perhaps' is none of"),
        (None, "odd cannot be read"),
    ],
)
def test_useless_lists_are_refused_in_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "odd").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        exclude(["a.jpg", "b.jpg"], str(tmp_path / "odd"), "the bank")
    assert "\n" not in str(caught.value)


def test_unknown_keys_are_counted(tmp_path: Path) -> None:
    (tmp_path / "odd").write_text("a.jpg\nelsewhere.jpg\n")
    excluded = exclude(["a.jpg", "b.jpg"], str(tmp_path / "odd"), "the bank")
    assert excluded.keys == ("a.jpg",)
    assert excluded.warnings[0].endswith("1 of 2 keys, such as elsewhere.jpg, are not in the bank")


def test_thresholds_are_set_without_the_excluded_strips(plant: Plant, tmp_path: Path) -> None:
    rows = read_calibration_rows(plant.bank_uri, 1).sort_by([("anomaly_score", "descending")])
    oddest = rows["image_key"].to_pylist()[:3]
    (tmp_path / "odd").write_text("\n".join([*oddest, "elsewhere.jpg"]))
    summary = recalibrate(CalibrateConfig(plant.bank_uri, exclude=str(tmp_path / "odd")))
    assert (summary["excluded"], summary["num_strips"]) == (3, rows.num_rows - 3)
    assert any("1 of 4 keys, such as elsewhere.jpg, are not in" in warning for warning in summary["warnings"])
    assert any("the bank still knows the 3 excluded strips" in warning for warning in summary["warnings"])
    calibration, version = read_calibration(plant.bank_uri)
    assert not set(oddest) & set(read_calibration_rows(plant.bank_uri, version)["image_key"].to_pylist())
    before = read_calibration(plant.bank_uri, 1)[0]
    assert calibration.groups[""].review.value < before.groups[""].review.value
