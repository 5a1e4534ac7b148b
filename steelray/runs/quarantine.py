"""Quarantine: the list of a run's objects without a score, and the limit of their share."""

import csv
import io
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from steelray.schema import QUARANTINE, Status
from steelray.storage.location import Location

LIST, SPREADSHEET = "quarantine.parquet", "quarantine.csv"
PASSING = (Status.MISSING, Status.DENIED, Status.CHANGED)
"""Statuses that may change when the object is read again; the others follow from its bytes."""


def quarantine_of(scores: pa.Table) -> pa.Table:
    """Return the rows of a score table without a score, as a table of schema `QUARANTINE`."""
    failed = scores.filter(pc.not_equal(scores.column("status"), Status.OK.value))
    return failed.select(["image_key", "etag", "size_bytes", "status", "error"]).rename_columns(QUARANTINE.names)


def write_quarantine(location: Location, quarantine: pa.Table) -> None:
    """Write the list as Parquet and as CSV for a spreadsheet, where a key that looks like a formula gets a quote."""
    sink = pa.BufferOutputStream()
    pq.write_table(quarantine, sink)
    location.write(LIST, sink.getvalue().to_pybytes())
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["image_key", "status", "reason", "size_bytes"])
    for row in quarantine.to_pylist():
        writer.writerow([_cell(row["image_key"]), row["status"], _cell(row["reason"] or ""), row["size_bytes"]])
    location.write(SPREADSHEET, text.getvalue().encode())


def read_quarantine(location: Location) -> pa.Table:
    """Read the list of a finished run, schema `QUARANTINE`."""
    return pq.read_table(pa.BufferReader(location.read(LIST)))


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def excess(counts: Mapping[str, int], max_share: float | None) -> str | None:
    """Explain why a run has too many objects without a score; None if it has not, or without a limit.

    Args:
        counts: as of `steelray.runs.run.Run.reconcile`.
    """
    listed = counts["listed"]
    failed = listed - counts.get(Status.OK, 0)
    if max_share is None or not listed or failed / listed <= max_share:
        return None
    return (
        f"{failed} of {listed} objects ({failed / listed:.1%}) have no score, {max_share:.1%} are allowed: "
        f"see {SPREADSHEET} in the run's folder, or raise max_quarantine_share"
    )
