"""What a run report shows: plain values that whoever has run the job puts together.

This package does no work but on these: no storage, no models, no cluster.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa

from steelray.report.drift import RunSummary, Sample, Shift, Trend


class ThresholdLevel(Protocol):
    """What `steelray.models.calibration.Threshold` says of one limit; see there."""

    @property
    def value(self) -> float: ...
    @property
    def asked_rate(self) -> float: ...
    @property
    def rate(self) -> float: ...
    @property
    def rate_low(self) -> float: ...
    @property
    def rate_high(self) -> float: ...


class GroupLimits(Protocol):
    """What `steelray.models.calibration.GroupThresholds` says of one group; see there."""

    @property
    def group(self) -> str: ...
    @property
    def num_strips(self) -> int: ...
    @property
    def review(self) -> ThresholdLevel: ...
    @property
    def reject(self) -> ThresholdLevel: ...


@dataclass(frozen=True)
class GalleryItem:
    """One of the worst strips, with its pictures as `steelray.imaging.pictures` makes them.

    Attributes:
        verdict: a `steelray.schema.Verdict`.
        height_px, width_px: of the image as stored; `boxes` (schema `BOX`) are in its pixels.
        strip_jpeg, overlay_png: the strip and what is laid over it, of the same proportions.
        worst_patch_jpeg: its most anomalous patch.
        nominal_patch_jpeg, nominal_key: the patch of a nominal strip that comes nearest to that one (PatchCore only).
        object_url: where the original opens; see `safe_url`.
    """

    image_key: str
    group: str
    score: float
    verdict: str
    height_px: int
    width_px: int
    strip_jpeg: bytes
    overlay_png: bytes
    boxes: Sequence[Mapping[str, Any]] = ()
    worst_patch_jpeg: bytes | None = None
    nominal_patch_jpeg: bytes | None = None
    nominal_key: str | None = None
    object_url: str | None = None


@dataclass(frozen=True)
class ReportData:
    """One run.

    Attributes:
        started_at, finished_at: with their time zone.
        scoring_s: wall seconds of the scoring itself, which the throughput is taken over.
        num_listed: entries of the manifest.
        scores: the score table, schema `SCORES`.
        thresholds: of all groups that have their own, `ALL_STRIPS` first; empty where nothing was calibrated.
        threshold_override: a threshold that was set by hand for all strips.
        quarantine_limit: share of objects without a score above which the job fails.
        num_already_scored: objects that earlier runs have scored and this one therefore left out.
        reference: calibration strips by group (`steelray.report.drift.samples_by_group`).
        history: earlier runs, oldest first, without this one.
        gallery: worst first.
        table_uri: where the complete score table is.
        details: what else to show, such as versions and settings, as text.
    """

    run_id: str
    archive_uri: str
    started_at: datetime
    finished_at: datetime
    scoring_s: float
    num_listed: int
    scores: pa.Table
    thresholds: Sequence[GroupLimits] = ()
    threshold_override: float | None = None
    quarantine_limit: float | None = None
    num_already_scored: int = 0
    shifts: Sequence[Shift] = ()
    trends: Sequence[Trend] = ()
    reference: Mapping[str, Sample] = field(default_factory=dict)
    history: Sequence[RunSummary] = ()
    gallery: Sequence[GalleryItem] = ()
    table_uri: str | None = None
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class IndexEntry:
    """A line of the index page.

    Attributes:
        report_href: relative link to its report; None if it has none.
        state: such as `current`, `published` or `not published`.
        num_warnings: drift warnings.
    """

    summary: RunSummary
    report_href: str | None
    state: str
    num_warnings: int = 0


def safe_url(url: str | None) -> str | None:
    """The URL if a page may link to it: http, https, file or relative, and free of credentials; else None."""
    if not url:
        return None
    try:
        parts = urlsplit(url.strip())
        names = {name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
        secret = parts.username is not None or any("signature" in name or "token" in name for name in names)
    except ValueError:
        return None
    if secret or parts.scheme not in ("", "http", "https", "file") or url.startswith("//"):
        return None
    return url.strip()
