"""The demo's archive of generated strips, and figures of a score table against their known defects. Knows no Ray."""

import io
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from steelray.demo.synthetic import DEFECTS, encode, make_strip
from steelray.evaluation import metrics
from steelray.imaging.decode import decode
from steelray.imaging.pictures import contact_sheet
from steelray.job import num_cores
from steelray.runs.batch import ANOMALY_MAPS, picture_key
from steelray.schema import Status
from steelray.storage.location import Location

DEFECT_EVERY = 6
"""One strip in this many has a defect."""
MAP_STRIDE = 4
"""Pixel figures use every fourth row and column."""
WORST = 6


@dataclass(frozen=True)
class PlannedStrip:
    """A strip to generate: its key and the arguments of `make_strip`."""

    key: str
    seed: int
    index: int
    defect: str | None


def plan_nominal(num_strips: int, seed: int) -> list[PlannedStrip]:
    """Plan nominal strips of two lines."""
    return [PlannedStrip(f"line{i % 2 + 1}/nominal-{i:04d}.jpg", seed, i, None) for i in range(num_strips)]


def plan_archive(num_strips: int, seed: int) -> list[PlannedStrip]:
    """Plan the archive to score: every sixth strip has one of Severstal's four kinds of defect in turn."""
    strips = []
    for i in range(num_strips):
        defect = DEFECTS[i // DEFECT_EVERY % len(DEFECTS)] if i % DEFECT_EVERY == DEFECT_EVERY - 1 else None
        strips.append(PlannedStrip(f"line{i % 2 + 1}/coil {i // 20:03d}/strip-{i:04d}.jpg", seed + 1, i, defect))
    return strips


def broken_files() -> dict[str, bytes]:
    """Return files that lie in an archive by accident, by key."""
    jpeg = make_strip(99, 0).jpeg()
    return {
        "line1/broken/empty.jpg": b"",
        "line1/broken/truncated.jpg": jpeg[: len(jpeg) // 2],
        "line2/broken/notes renamed to.jpg": b"shift 3: camera cleaned\n" * 20,
        "line2/broken/half.png": encode(make_strip(99, 1, size_px=(256, 800)).pixels_HW, "PNG"),
        "line2/broken/dead camera.png": encode(np.zeros((256, 1600), np.uint8), "PNG"),
    }


def _generate(strip: PlannedStrip) -> tuple[bytes, bytes]:
    made = make_strip(strip.seed, strip.index, defect=strip.defect)
    buffer = io.BytesIO()
    Image.fromarray(made.mask_HW).save(buffer, "PNG")
    return made.jpeg(), buffer.getvalue()


def upload(strips: Sequence[PlannedStrip], images: Location, masks: Location) -> None:
    """Generate strips on all cores; store their images in one place and the masks of their defects in another."""
    with ProcessPoolExecutor(num_cores()) as pool:
        for strip, (image, mask) in zip(strips, pool.map(_generate, strips, chunksize=4), strict=True):
            images.write(strip.key, image)
            if strip.defect is not None:
                masks.write(f"{strip.key}.png", mask)


def figures(strips: Sequence[PlannedStrip], scores: pa.Table, run: Location, masks: Location) -> dict[str, float]:
    """Judge a score table by the known defects.

    Args:
        scores: schema `SCORES`; `run` holds its anomaly maps.
    """
    rows = {row["image_key"]: row for row in scores.to_pylist() if row["status"] == Status.OK}
    known = [strip for strip in strips if strip.key in rows]
    labels_N = np.array([strip.defect is not None for strip in known])
    scores_N = np.array([rows[strip.key]["anomaly_score"] for strip in known])
    flagged_N = np.array([rows[strip.key]["is_anomalous"] for strip in known])
    maps, truth = [], []
    for strip in known:
        body = run.read(picture_key(ANOMALY_MAPS, strip.key, ".npy"))
        map_HW = np.load(io.BytesIO(body), allow_pickle=False)[::MAP_STRIDE, ::MAP_STRIDE].astype(np.float32)
        maps.append(map_HW)
        truth.append(_mask(strip, masks, map_HW.shape))
    return {
        "defective": int(labels_N.sum()),
        "found": int((flagged_N & labels_N).sum()),
        "false_alarms": int((flagged_N & ~labels_N).sum()),
        "image_auroc": round(metrics.image_auroc(labels_N, scores_N), 4),
        "pixel_auroc": round(metrics.pixel_auroc(truth, maps), 4),
    }


def _mask(strip: PlannedStrip, masks: Location, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    if strip.defect is None:
        return np.zeros(shape, dtype=bool)
    with Image.open(io.BytesIO(masks.read(f"{strip.key}.png"))) as image:
        return np.asarray(image)[::MAP_STRIDE, ::MAP_STRIDE].astype(bool)


def worst_strips(scores: pa.Table, archive: Location, run: Location, lower: float, upper: float) -> bytes:
    """Draw the strips with the highest scores and their heatmaps as a PNG."""
    ranked = scores.sort_by([("anomaly_score", "descending")]).slice(0, WORST).to_pylist()
    items = []
    for row in ranked:
        pixels_HWC = decode(archive.read(row["image_key"]))
        body = run.read(picture_key(ANOMALY_MAPS, row["image_key"], ".npy"))
        map_HW = np.load(io.BytesIO(body), allow_pickle=False).astype(np.float32)
        items.append((row["image_key"], row["anomaly_score"], pixels_HWC, map_HW))
    return contact_sheet(items, lower, upper)
