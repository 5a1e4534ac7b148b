"""The values that the report and index pages show, gathered by `steelray.report.finish`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa

from steelray.evaluation.power import Power
from steelray.models.calibration import Calibration, GroupThresholds
from steelray.patchcore.bank import BankInfo
from steelray.report.drift import Sample, Shift, Trend
from steelray.runs.record import RunSummary


@dataclass(frozen=True)
class GalleryItem:
    """One of the worst strips, with its pictures as `steelray.imaging.pictures` draws them.

    Attributes:
        verdict: a `steelray.schema.Verdict`.
        height_px, width_px: size of the image as stored; `boxes` (schema `BOX`) are in its pixels.
        strip_jpeg, overlay_png: the strip and its heatmap, of the same proportions.
        worst_patch_jpeg: its most anomalous patch.
        nominal_patch_jpeg, nominal_key: the nearest patch of a nominal strip, and that strip's key (PatchCore only).
        object_url: URL of the original; see `safe_url`.
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
    """Everything that the report of one run shows.

    Attributes:
        started_at, finished_at: times with their zone.
        scoring_s: wall seconds of the scoring itself, for the throughput.
        num_listed: entries of the manifest.
        scores: the score table, schema `SCORES`.
        thresholds: thresholds of every group that has its own, `ALL_STRIPS` first; empty without a calibration.
        threshold_override: a threshold that was set by hand for all strips.
        quarantine_limit: share of objects without a score above which the job fails.
        num_already_scored: objects that this run left out because earlier runs have scored them.
        reference: calibration strips by group (`steelray.report.drift.samples_by_group`).
        group_warnings: reasons for which strips have the thresholds of all strips instead of their group's.
        history: earlier runs, oldest first, without this one.
        gallery: the worst strips, worst first.
        table_uri: URI of the complete score table.
        power: of the model at these thresholds; None if no defects were planted for it.
        details: further lines to show, such as versions and settings.
    """

    run_id: str
    archive_uri: str
    started_at: datetime
    finished_at: datetime
    scoring_s: float
    num_listed: int
    scores: pa.Table
    thresholds: Sequence[GroupThresholds] = ()
    threshold_override: float | None = None
    quarantine_limit: float | None = None
    num_already_scored: int = 0
    shifts: Sequence[Shift] = ()
    trends: Sequence[Trend] = ()
    reference: Mapping[str, Sample] = field(default_factory=dict)
    group_warnings: Sequence[str] = ()
    history: Sequence[RunSummary] = ()
    gallery: Sequence[GalleryItem] = ()
    table_uri: str | None = None
    power: Power | None = None
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Suspect:
    """A patch of a nominal strip that may be a defect; `distance` is its anomaly score, `patch_jpeg` its picture."""

    image_key: str
    distance: float
    patch_jpeg: bytes | None = None


@dataclass(frozen=True)
class RecipeRow:
    """A choice of settings for a bank.

    Attributes:
        power: share of the planted defects that it finds, 0 to 1; None if it was not measured.
        cost: time or memory, in words.
    """

    name: str
    power: float | None
    cost: str
    chosen: bool = False


@dataclass(frozen=True)
class Recipe:
    """The choices of settings that were compared, and why one was taken, in a sentence."""

    rows: tuple[RecipeRow, ...]
    reason: str = ""


@dataclass(frozen=True)
class BankFindings:
    """Findings on a bank beside its calibration; None: not looked for, and the page has no section on it.

    Attributes:
        planted: caption and JPEG of planted defects at their detection limit.
        suspects: the most suspicious first; empty: none was found.
    """

    power: Power | None = None
    planted: Sequence[tuple[str, bytes]] = ()
    suspects: Sequence[Suspect] | None = None
    recipe: Recipe | None = None


@dataclass(frozen=True)
class BankData:
    """Everything that the page of a memory bank shows.

    Attributes:
        rows: the calibration's rows, schema `SCORES`, all with a score.
        gallery: the oddest nominal strips, the oddest first.
        vectors_by_strip: number of the bank's vectors from each nominal strip that has any.
        skipped: nominal images that the bank could not learn from, by status.
    """

    bank_uri: str
    info: BankInfo
    calibration: Calibration
    calibration_version: int
    rows: pa.Table
    nominal_uris: Sequence[str] = ()
    gallery: Sequence[GalleryItem] = ()
    vectors_by_strip: Mapping[str, int] = field(default_factory=dict)
    num_excluded: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    findings: BankFindings = BankFindings()


@dataclass(frozen=True)
class IndexEntry:
    """A line of the index page.

    Attributes:
        report_href: relative link to the run's report, if it has one.
        state: `current`, `published` or `not published`.
        num_warnings: number of drift warnings.
    """

    summary: RunSummary
    report_href: str | None
    state: str
    num_warnings: int = 0


def safe_url(url: str | None) -> str | None:
    """Return the URL if a page may link to it (http, https, file or relative, without credentials), else None."""
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
