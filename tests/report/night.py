"""A night as a scoring run leaves it, made up from a seed: what the report tests show."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
from scipy import ndimage

from steelray import drift
from steelray.calibration import ALL_STRIPS, GroupThresholds, conformal_threshold
from steelray.data.synthetic import DEFECTS, make_strip
from steelray.report import pictures
from steelray.report.data import GalleryItem, ReportData
from steelray.schema import SCORES, Status, Verdict

HOSTILE_KEY = 'camera1/"><script>window.hacked=1</script><img src=x onerror="window.hacked=1">.jpg'
NASTY_KEYS = (
    HOSTILE_KEY,
    "camera2/</script><!--\u2028.jpg",
    "camera2/=HYPERLINK(1).jpg",
    "camera3/ein Streifen, 日本 &amp;.jpg",
)
FINISHED = datetime(2026, 11, 25, 4, 41, tzinfo=UTC)
GROUPS = ("camera1", "camera2", "camera3")


def thresholds(group, score_N):
    levels = [conformal_threshold(score_N, rate) for rate in (0.02, 0.005)]
    return GroupThresholds(group, len(score_N), levels[0], levels[1], levels[0])


def score_table(num_rows, *, seed=0, num_failed=None, defect_rate=0.006, darker=None, groups=GROUPS, limits=None):
    """Rows of schema SCORES: mostly nominal strips, some defective, some failures of every kind, hostile names."""
    rng = np.random.default_rng(seed)
    num_failed = num_rows // 300 if num_failed is None else num_failed
    failures = [status for status in Status if status != Status.OK]
    score_N = (1.2 + 0.1 * rng.gamma(4.0, size=num_rows)).astype(np.float32)
    defective_N = rng.random(num_rows) < defect_rate
    score_N[defective_N] += rng.gamma(2.0, 0.6, defective_N.sum())
    rows = []
    for number in range(num_rows):
        group = groups[number % len(groups)]
        key = f"{group or 'line'}/2026-11-24/coil_{7300 + number // 40}/strip_{number:06d}.jpg"
        if number < len(NASTY_KEYS):
            key = NASTY_KEYS[number]
        status = failures[number % len(failures)] if len(NASTY_KEYS) <= number < len(NASTY_KEYS) + num_failed else "ok"
        row = {
            "image_key": key, "etag": f"{number:032x}", "size_bytes": 61_000, "status": str(status), "group": group,
            "model_id": "m", "bank_id": "b", "run_id": "7c1e09ab52d4f310", "scored_at": FINISHED,
        }  # fmt: skip
        if status != "ok":
            rows.append(row | {"error": "image file is truncated (3 bytes not processed) <b>"})
            continue
        score = float(score_N[number])
        own = (limits or {}).get(group) or (limits or {}).get(ALL_STRIPS)
        verdict = Verdict.NORMAL
        if own:
            verdict = next(
                (v for v, limit in ((Verdict.REJECT, own.reject), (Verdict.REVIEW, own.review)) if score > limit.value),
                verdict,
            )
        boxes = [{"left_px": 400, "top_px": 60, "width_px": 90, "height_px": 70, "peak_score": score}]
        rows.append(row | {
            "width_px": 1600, "height_px": 256, "anomaly_score": score, "is_anomalous": verdict != Verdict.NORMAL,
            "threshold": own.review.value if own else None, "verdict": str(verdict), "map_peak": score,
            "map_mean": 0.3 * score + 0.3 + 0.02 * rng.standard_normal(), "boxes": boxes if verdict != Verdict.NORMAL else [],
            "defect_area_fraction": 0.012 if verdict != Verdict.NORMAL else 0.0,
            "mean_brightness": float(rng.normal(104 - 22 * (group == darker), 8)),
        })  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SCORES)


def gallery(scores, count, *, num_pictures=12, size_px=(256, 1600)):
    """The worst strips of a table, with pictures of a few generated strips in turn."""
    made = []
    for number in range(min(num_pictures, count)):
        strip = make_strip(5, number, defect=DEFECTS[number % 4], size_px=size_px)
        noise_HW = ndimage.gaussian_filter(np.random.default_rng(number).standard_normal(size_px), 9) * 6
        map_HW = 1.0 + 0.12 * noise_HW + 1.6 * ndimage.gaussian_filter(strip.mask_HW.astype(float), 6)
        nominal = make_strip(6, number, size_px=size_px).pixels_HW
        center_px = pictures.worst_patch_center(map_HW, size_px)
        made.append((
            pictures.strip_thumbnail(strip.pixels_HW), pictures.heatmap_png(map_HW, 1.1, 2.4, width_px=400, levels=24),
            pictures.patch_jpeg(strip.pixels_HW, center_px), pictures.patch_jpeg(nominal, center_px), strip.mask_HW,
        ))  # fmt: skip
    worst = sorted((row for row in scores.to_pylist() if row["status"] == "ok"), key=lambda row: -row["anomaly_score"])
    items = []
    for number, row in enumerate(worst[:count]):
        strip, overlay, patch, nominal, mask_HW = made[number % len(made)]
        place = ndimage.find_objects(ndimage.label(mask_HW)[0])[:4]
        boxes = [
            {"left_px": c.start - 12, "top_px": r.start - 12, "width_px": c.stop - c.start + 24,
             "height_px": r.stop - r.start + 24, "peak_score": 2.0} for r, c in place
        ]  # fmt: skip
        items.append(GalleryItem(
            image_key=row["image_key"], group=row["group"] or "", score=row["anomaly_score"], verdict=row["verdict"],
            height_px=256, width_px=1600, strip_jpeg=strip, overlay_png=overlay, boxes=boxes, worst_patch_jpeg=patch,
            nominal_patch_jpeg=nominal, nominal_key=f"nominal/strip_{number % 40:03d}.jpg",
            object_url=f"https://store.example/archive/{number}" if number % 3 else "javascript:window.hacked=1",
        ))  # fmt: skip
    return items


def make_night(num_rows=600, num_gallery=8, *, darker=None, history=9, groups=GROUPS, num_reference=400, **changes):
    """A whole `ReportData`."""
    reference_table = score_table(num_reference * len(groups), seed=99, num_failed=0, defect_rate=0, groups=groups)
    reference = drift.samples_by_group(reference_table)
    limits = {group: thresholds(group, sample["score"]) for group, sample in reference.items()}
    scores = score_table(num_rows, darker=darker, groups=groups, limits=limits)
    nights = []
    for number in range(history):
        small = score_table(400, seed=100 + number, groups=groups, limits=limits)
        finished = FINISHED - timedelta(days=history - number)
        nights.append(drift.summarize_run(f"run{number}", finished.isoformat(), small))
    tonight = drift.summarize_run("7c1e09ab52d4f310", FINISHED.isoformat(), scores)
    values = {
        "run_id": "7c1e09ab52d4f310", "archive_uri": "s3://archive/night", "started_at": FINISHED - timedelta(minutes=5, seconds=7),
        "finished_at": FINISHED, "scoring_s": 240.0, "num_listed": num_rows, "scores": scores,
        "thresholds": list(limits.values()), "quarantine_limit": 0.01, "num_already_scored": 0,
        "shifts": drift.detect_shifts(reference, drift.samples_by_group(scores)),
        "trends": drift.detect_trends([*nights, tonight], reference), "reference": reference, "history": nights,
        "gallery": gallery(scores, num_gallery), "table_uri": "s3://results/runs/7c1e09ab52d4f310/scores",
        "details": {"Model": "patchcore, tf_efficientnet_lite0", "Bank": "b0a1", "Hardware": "2 CPU cores"},
    }  # fmt: skip
    return ReportData(**{**values, **changes})
