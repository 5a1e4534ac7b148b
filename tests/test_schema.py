"""The tables that cross processes keep their contract."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steelray.schema import DECODED, MANIFEST, SCORES, Status

PROMISED = [
    "image_key", "etag", "size_bytes", "status", "error", "width_px", "height_px", "anomaly_score", "is_anomalous",
    "threshold", "defect_area_fraction", "boxes", "heatmap_key", "mean_brightness", "model_id", "bank_id", "run_id",
    "scored_at",
]  # fmt: skip
ROW = {
    "image_key": "k",
    "etag": "e",
    "size_bytes": 0,
    "status": "ok",
    "model_id": "m",
    "run_id": "r",
    "scored_at": datetime(2026, 1, 2, 3, 4, 5, 6, UTC),
}


def test_the_score_table_has_the_promised_columns() -> None:
    assert [name for name in SCORES.names if name in PROMISED] == PROMISED
    assert {field.name for field in SCORES if not field.nullable} == set(ROW)


def test_a_decoded_row_is_a_manifest_row_with_its_image() -> None:
    assert DECODED.names[: len(MANIFEST.names)] == MANIFEST.names
    assert {"status", "error", "height_px", "width_px", "channels", "mean_brightness", "pixels"} < set(DECODED.names)


def test_statuses_are_distinct_words_that_fit_a_column() -> None:
    assert Status.OK == "ok"
    assert len(set(Status)) == len(Status) == 11
    assert pa.array(list(Status), pa.string()).to_pylist() == [status.value for status in Status]


def test_a_row_without_a_score_survives_parquet(tmp_path: Path) -> None:
    row = {**ROW, "image_key": "<Ω>.jpg", "status": Status.EMPTY}
    table = pa.Table.from_pylist([row], schema=SCORES)
    pq.write_table(table, tmp_path / "scores.parquet")
    assert pq.read_table(tmp_path / "scores.parquet", schema=SCORES).equals(table)


@pytest.mark.parametrize("name", ROW)
def test_a_row_without_its_identity_is_not_stored(name: str, tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{**ROW, name: None}], schema=SCORES)
    with pytest.raises(ValueError, match=name):
        pq.write_table(table, tmp_path / "scores.parquet")
