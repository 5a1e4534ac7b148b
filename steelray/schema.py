"""Arrow schemas of every table that crosses a process, and the statuses and verdicts of their rows."""

from enum import StrEnum
from typing import Any

import pyarrow as pa

Row = dict[str, Any]
"""One row of a table of these schemas, values by column."""


class Status(StrEnum):
    """Status of an object: scored, or the reason why not."""

    OK = "ok"
    MISSING = "missing"
    """Listed, but deleted before it was read."""
    DENIED = "denied"
    """Reading is not permitted, or the object has been moved to archive storage."""
    CHANGED = "changed"
    """Size or checksum differs from the listing: the object was overwritten, or corrupted in transfer."""
    EMPTY = "empty"
    """Zero bytes."""
    TOO_LARGE = "too_large"
    """More bytes or pixels than the configured limit, or too slow to decode."""
    UNREADABLE = "unreadable"
    """Not an image in a supported format, or truncated."""
    WRONG_SHAPE = "wrong_shape"
    """Height or width differs by more than a quarter from the strips that the model was built from."""
    TOO_SMALL = "too_small"
    """Smaller than one cell of the backbone's coarsest feature map."""
    BLANK = "blank"
    """Every pixel has the same value, as from a dead camera."""
    UNSCORED = "unscored"
    """Decoded, but the model's score is not finite."""


class Verdict(StrEnum):
    """Verdict on a strip under the calibration."""

    NORMAL = "normal"
    REVIEW = "review"
    """Above the first threshold: inspect the strip."""
    REJECT = "reject"
    """Above the second threshold: do not ship the strip without inspection."""


MANIFEST = pa.schema(
    [
        pa.field("image_index", pa.int64(), nullable=False),
        pa.field("image_key", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("last_modified", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)
"""One row per object of an archive, sorted by `image_key` (bytewise); `image_index` counts from 0."""

DECODED = pa.schema(
    [
        *MANIFEST,
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("height_px", pa.int32()),
        pa.field("width_px", pa.int32()),
        pa.field("channels", pa.int8()),
        pa.field("mean_brightness", pa.float32()),
        pa.field("pixels", pa.large_binary()),
    ]
)
"""Manifest rows with their images: `pixels` is row-major uint8, H*W*channels bytes; channels is 1 (grey) or 3 (RGB)."""

BOX = pa.struct(
    [
        pa.field("left_px", pa.int32()),
        pa.field("top_px", pa.int32()),
        pa.field("width_px", pa.int32()),
        pa.field("height_px", pa.int32()),
        pa.field("peak_score", pa.float32()),
    ]
)

SCORES = pa.schema(
    [
        pa.field("image_key", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("width_px", pa.int32()),
        pa.field("height_px", pa.int32()),
        pa.field("anomaly_score", pa.float32()),
        pa.field("is_anomalous", pa.bool_()),
        pa.field("threshold", pa.float32()),
        pa.field("verdict", pa.string()),
        pa.field("group", pa.string()),
        pa.field("map_peak", pa.float32()),
        pa.field("map_mean", pa.float32()),
        pa.field("defect_area_fraction", pa.float32()),
        pa.field("boxes", pa.list_(BOX)),
        pa.field("heatmap_key", pa.string()),
        pa.field("mean_brightness", pa.float32()),
        pa.field("model_id", pa.string(), nullable=False),
        pa.field("bank_id", pa.string()),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("scored_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)
"""The score table: exactly one row per object of the manifest.

`anomaly_score` is raw (a distance). `is_anomalous` is true if it exceeds `threshold`, the review level of the strip's
`group`. `verdict` is a `Verdict`. `map_peak` and `map_mean` are the largest and the mean value of the anomaly map: the
first is used for pixel thresholds, the second for drift.
"""

QUARANTINE = pa.schema(
    [*(SCORES.field(name) for name in ("image_key", "etag", "size_bytes", "status")), pa.field("reason", pa.string())]
)
"""The objects of a run without a score, and the reasons."""
