"""A run's score table and its `ReportData`, made up from a seed."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
from scipy import ndimage

from steelray.demo.synthetic import DEFECTS, make_strip
from steelray.evaluation.power import Power, PowerCell
from steelray.imaging import pictures
from steelray.models.calibration import ALL_STRIPS, GroupThresholds, conformal_threshold
from steelray.report import drift
from steelray.report.data import GalleryItem, ReportData
from steelray.schema import SCORES, Status, Verdict

HOSTILE_KEY = 'camera1/"><script>window.hacked=1</script><img src=x onerror="window.hacked=1">.jpg'
NASTY_KEYS = (
    HOSTILE_KEY,
    "camera2/</script><!--\u2028.jpg",
    "=HYPERLINK(1),camera2.jpg",
    "camera3/ein Streifen, 日本 &amp;.jpg",
)
"""The first of them has the highest score of all."""
RUN_ID = "7c1e09ab52d4f310"
FINISHED = datetime(2026, 11, 25, 4, 41, tzinfo=UTC)
GROUPS = ("camera1", "camera2", "camera3")
BOX = {"left_px": 4, "top_px": 6, "width_px": 90, "height_px": 70}
FAILURES = [status for status in Status if status != Status.OK]


def thresholds(group, score_N):
    levels = [conformal_threshold(score_N, rate) for rate in (0.02, 0.005)]
    return GroupThresholds(group, len(score_N), levels[0], levels[1], levels[0])


def score_table(num_rows, *, seed=0, num_failed=None, defect_rate=0.006, darker=None, groups=GROUPS, limits=None):
    """Return rows of schema SCORES: nominal and defective strips, failures of every kind, hostile names first."""
    rng = np.random.default_rng(seed)
    num_failed = num_rows // 300 if num_failed is None else num_failed
    limits = limits or {}
    score_N = 1.2 + 0.1 * rng.gamma(4.0, size=num_rows)
    defective_N = rng.random(num_rows) < defect_rate
    score_N[defective_N] += rng.gamma(2.0, 0.6, defective_N.sum())
    if defect_rate and num_rows:
        score_N[0] = 12.0
    rows = []
    for number, score in enumerate(score_N.tolist()):
        group = groups[number % len(groups)]
        key = f"{group or 'line'}/2026-11-24/coil_{7300 + number // 40}/strip_{number:06d}.jpg"
        row = {
            "image_key": NASTY_KEYS[number] if number < len(NASTY_KEYS) else key,
            "etag": f"{number:032x}",
            "size_bytes": 61_000,
            "status": "ok",
            "group": group,
            "model_id": "m",
            "run_id": RUN_ID,
            "scored_at": FINISHED,
        }
        rows.append(row)
        if 0 <= number - len(NASTY_KEYS) < num_failed:
            row |= {
                "status": str(FAILURES[number % len(FAILURES)]),
                "error": "image file is truncated <b>at byte 3</b>",
            }
            continue
        own = limits.get(group) or limits.get(ALL_STRIPS)
        levels = (own.review, own.reject) if own and own.has_reject else (own.review,) if own else ()
        passed = [score > level.value for level in levels] or [False]
        flagged = passed[0]
        row |= {
            "width_px": 1600,
            "height_px": 256,
            "anomaly_score": score,
            "is_anomalous": flagged,
            "threshold": own.review.value if own else None,
            "verdict": str(list(Verdict)[sum(passed)]),
            "map_peak": score,
            "map_mean": 0.3 * score + 0.3 + 0.02 * rng.standard_normal(),
            "defect_area_fraction": 0.012 if flagged else 0.0,
            "boxes": [BOX | {"peak_score": score}] if flagged else [],
            "mean_brightness": rng.normal(104 - 22 * (group == darker), 8),
        }
    return pa.Table.from_pylist(rows, schema=SCORES)


def pictures_of(number, size_px):
    """Draw a generated strip with its defect as a gallery shows it, and the boxes around the defect."""
    strip = make_strip(5, number, defect=DEFECTS[number % 4], size_px=size_px)
    nominal = make_strip(6, number, size_px=size_px)
    noise_HW = ndimage.gaussian_filter(np.random.default_rng(number).standard_normal(size_px), 9) * 6
    map_HW = 1.0 + 0.12 * noise_HW + 1.6 * ndimage.gaussian_filter(strip.mask_HW.astype(float), 6)
    center_px = pictures.worst_patch_center(map_HW, size_px)
    boxes = [
        BOX
        | {"left_px": columns.start - 12, "width_px": columns.stop - columns.start + 24, "peak_score": 2.0}
        | {"top_px": rows.start - 12, "height_px": rows.stop - rows.start + 24}
        for rows, columns in ndimage.find_objects(ndimage.label(strip.mask_HW)[0])[:4]
    ]
    return {
        "strip_jpeg": pictures.strip_thumbnail(strip.pixels_HW),
        "overlay_png": pictures.heatmap_png(map_HW, 1.1, 2.4, width_px=400, levels=24),
        "worst_patch_jpeg": pictures.patch_jpeg(strip.pixels_HW, center_px),
        "nominal_patch_jpeg": pictures.patch_jpeg(nominal.pixels_HW, center_px),
        "boxes": boxes,
        "height_px": size_px[0],
        "width_px": size_px[1],
    }


def gallery(scores, count, *, num_pictures=4, size_px=(256, 1600)):
    """Return the worst strips of a table, with a few pictures in turn; every third link is hostile."""
    made = [pictures_of(number, size_px) for number in range(min(num_pictures, count))]
    scored = scores.filter(np.asarray(scores["status"].to_numpy() == "ok")).sort_by([("anomaly_score", "descending")])
    return [
        GalleryItem(
            image_key=row["image_key"],
            group=row["group"] or "",
            score=row["anomaly_score"],
            verdict=row["verdict"],
            nominal_key=f"nominal/strip_{number % 40:03d}.jpg",
            object_url=f"https://store.example/archive/{number}" if number % 3 else "javascript:window.hacked=1",
            **made[number % len(made)],
        )
        for number, row in enumerate(scored.slice(0, count).to_pylist())
    ]


def example_run(num_rows=600, num_gallery=8, *, darker=None, history=9, groups=GROUPS, num_reference=400, **changes):
    """Return everything that a report shows; `darker` names a group with a dim lamp."""
    reference = drift.samples_by_group(
        score_table(num_reference * len(groups), seed=99, num_failed=0, defect_rate=0, groups=groups)
    )
    limits = {group: thresholds(group, sample["score"]) for group, sample in reference.items() if len(sample["score"])}
    scores = score_table(num_rows, darker=darker, groups=groups, limits=limits)
    earlier = []
    for number in range(history):
        table = score_table(400, seed=100 + number, groups=groups, limits=limits)
        finished = FINISHED - timedelta(days=history - number)
        earlier.append(drift.summarize_run(f"run{number}", finished.isoformat(), table))
    this_run = drift.summarize_run(RUN_ID, FINISHED.isoformat(), scores)
    values = {
        "run_id": RUN_ID,
        "archive_uri": "s3://archive/strips",
        "started_at": FINISHED - timedelta(minutes=5, seconds=7),
        "finished_at": FINISHED,
        "scoring_s": 240.0,
        "num_listed": num_rows,
        "scores": scores,
        "thresholds": list(limits.values()),
        "quarantine_limit": 0.01,
        "shifts": drift.detect_shifts(reference, drift.samples_by_group(scores)),
        "trends": drift.detect_trends([*earlier, this_run], reference),
        "reference": reference,
        "history": earlier,
        "gallery": gallery(scores, num_gallery),
        "power": Power(24, (PowerCell("texture", 48, 32, 8, 6), PowerCell("texture", 48, 64, 8, 8))),
        "table_uri": f"s3://results/runs/{RUN_ID}/scores",
        "details": {"Model": "patchcore, tf_efficientnet_lite0", "Hardware": "2 CPU cores"},
    }
    return ReportData(**{**values, **changes})
