"""The calibrations beside a model, whatever its kind: versioned, never changed, with the score rows they rest on.

calibrations/000001.json             thresholds; the highest number counts
calibrations/000001.parquet          the score rows they rest on, schema `SCORES`
"""

import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from steelray.calibration import Calibration
from steelray.config import ConfigError
from steelray.data.storage import Location, ObjectMissing
from steelray.schema import SCORES

CALIBRATIONS = "calibrations"


def _versions(location: Location) -> list[int]:
    names = [stored.key for stored in (location / CALIBRATIONS).list()]
    return sorted(int(name.removesuffix(".json")) for name in names if name.endswith(".json"))


def read_calibration(uri: str, version: int | None = None) -> tuple[Calibration, int]:
    """A model's calibration (None: the newest) and its version.

    Raises:
        ConfigError: there is none.
    """
    location = Location(uri)
    versions = _versions(location)
    if not versions or (version is not None and version not in versions):
        raise ConfigError(f"{uri}: no calibration {version or ''} (there are {versions}): run jobs/calibrate.py")
    version = versions[-1] if version is None else version
    return Calibration.from_dict(json.loads(location.read(f"{CALIBRATIONS}/{version:06d}.json"))), version


def read_calibration_rows(uri: str, version: int) -> pa.Table:
    """The score rows that a calibration rests on; an empty table if they were not kept."""
    try:
        body = Location(uri).read(f"{CALIBRATIONS}/{version:06d}.parquet")
    except ObjectMissing:
        return SCORES.empty_table()
    return pq.read_table(pa.BufferReader(body))


def write_calibration(uri: str, calibration: Calibration, rows: pa.Table, source: str) -> int:
    """Adds a calibration as the newest version; earlier ones stay. Raises `ObjectChanged` if two are added at once.

    Args:
        rows: score rows (schema `SCORES`) of the nominal strips that it rests on.
        source: where these came from, in words.
    """
    location = Location(uri)
    version = (_versions(location) or [0])[-1] + 1
    groups = [calibration.group_of(key) for key in rows.column("image_key").to_pylist()]
    rows = rows.set_column(rows.schema.get_field_index("group"), SCORES.field("group"), pa.array(groups, pa.string()))
    body = pa.BufferOutputStream()
    pq.write_table(rows, body)
    record: dict[str, Any] = {
        "version": version,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": source,
        "num_strips": rows.num_rows,
        **calibration.to_dict(),
    }
    location.write(f"{CALIBRATIONS}/{version:06d}.parquet", body.getvalue().to_pybytes())
    location.write_if(f"{CALIBRATIONS}/{version:06d}.json", json.dumps(record, indent=2).encode(), None)
    return version
