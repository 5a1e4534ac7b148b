"""Numbers, times and statuses in the words that an operator reads."""

from datetime import UTC, datetime

from steelray.models.calibration import ALL_STRIPS
from steelray.runs.record import Measure
from steelray.schema import Status, Verdict

FAILURES: dict[Status, tuple[str, str]] = {
    Status.MISSING: ("Deleted before it was read", "was the archive cleaned up during the run?"),
    Status.DENIED: (
        "Not readable by this user",
        "give the scoring role read access, or restore objects that were moved to an archive class",
    ),
    Status.CHANGED: (
        "Changed since it was listed",
        "overwritten during the run, or damaged on the way: score it again",
    ),
    Status.EMPTY: ("Empty file", "the upload did not finish: check the camera's uploader"),
    Status.TOO_LARGE: (
        "Larger than the limit",
        "raise decode.max_bytes, max_pixels or max_seconds if such images are intended",
    ),
    Status.UNREADABLE: ("Not a readable image", "truncated, or no image at all: check the camera's uploader"),
    Status.WRONG_SHAPE: (
        "Far from the size of the nominal strips",
        "another camera or crop needs its own model, or one built with embedder.resize_px",
    ),
    Status.TOO_SMALL: ("Too small to score", "probably a cropped image or a thumbnail"),
    Status.BLANK: ("One grey level everywhere", "dead camera, closed shutter or no strip on the line"),
    Status.UNSCORED: ("The model gave no finite score", "keep the image and report it"),
}
"""Every status in words, and what to do about it."""

VERDICTS: dict[Verdict, str] = {Verdict.NORMAL: "Normal", Verdict.REVIEW: "Review", Verdict.REJECT: "Reject"}
MEASURES: dict[Measure, str] = {"brightness": "Brightness", "score": "Anomaly score", "distance": "Patch distance"}


def number(value: float, digits: int = 0) -> str:
    """Separate thousands: 12,345."""
    return f"{value:,.{digits}f}"


def score(value: float) -> str:
    """Write four significant digits, so that columns of scores line up: 2.130."""
    return f"{value:#.4g}".rstrip(".")


def percent(share: float) -> str:
    """Write two significant digits below ten percent, one decimal above: 0.26 %, 12.3 %."""
    value = 100 * share
    if value == 0 or value >= 10:
        text = f"{value:.1f}".removesuffix(".0")
    else:
        text = f"{value:.2g}" if value >= 0.01 else "<\u00a00.01"
    return f"{text}\u00a0%"  # no line break before the sign


def duration(seconds: float) -> str:
    """Write at most two units: 2 h 27 min, 3 min 5 s, 12 s."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def size(num_bytes: float) -> str:
    """Choose the unit that leaves one to three digits: 1.4 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            break
        num_bytes /= 1000
    return f"{num_bytes:.0f} {unit}" if unit == "B" or num_bytes >= 100 else f"{num_bytes:.1f} {unit}"


def moment(time: datetime) -> str:
    """Write a time in UTC: 25 Nov 2026, 02:14 UTC."""
    return time.astimezone(UTC).strftime("%-d %b %Y, %H:%M UTC")


def group_name(group: str, *, alone: bool = False) -> str:
    """Name a group; if it is `alone`, the strips without a group are all strips."""
    if group == ALL_STRIPS:
        return "all strips" if alone else "no group"
    return group


def status_title(status: str) -> str:
    """Return a status or verdict in words; an unknown one stays as it is."""
    for known, (title, _) in FAILURES.items():
        if status == known:
            return title
    return next((title for verdict, title in VERDICTS.items() if status == verdict), status)


def measure_title(measure: Measure) -> str:
    """Return a measure of drift in words."""
    return MEASURES[measure]
