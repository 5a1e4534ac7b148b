"""Batch step of a scoring run: decoded images to rows of the score table. Scoring actors call it; Ray is not needed.

Every image gets exactly one row, with a score or with the status that says why it has none.
"""

import hashlib
import io
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from steelray.imaging.pictures import heatmap_png
from steelray.imaging.scorer import Scorer
from steelray.models.calibration import Calibration
from steelray.patchcore.scorer import find_regions
from steelray.patchcore.timing import Observe, stage, unobserved
from steelray.schema import SCORES, Status, Verdict
from steelray.storage.location import Location

HEATMAPS, ANOMALY_MAPS = "heatmaps", "anomaly_maps"
WRITERS = 4
"""Threads that store heatmaps while the next images are scored."""
MAX_SIZE_DIFFERENCE = 0.25
"""Share by which an image's height and width may differ from those of the nominal strips."""


@dataclass(frozen=True)
class RunStamp:
    """Values that all rows of a run share."""

    run_id: str
    model_id: str
    bank_id: str | None
    input_size_px: tuple[int, int] | None
    """Height and width of the nominal strips; an image that `shape_error` refuses is `wrong_shape`. None: any size."""


def shape_error(size_px: tuple[int, int], nominal_px: tuple[int, int] | None) -> str | None:
    """Explain why an image is too unlike the nominal strips in size; None if it is not, and is taken as it is.

    Args:
        size_px, nominal_px: height and width; the strips' are None if they have no common size or are resized.
    """
    pairs = zip(size_px, nominal_px or size_px, strict=True)
    if all(abs(own - nominal) <= MAX_SIZE_DIFFERENCE * nominal for own, nominal in pairs):
        return None
    own, nominal = (f"{size[1]}x{size[0]}" for size in (size_px, nominal_px or size_px))
    return (
        f"{own}: more than {MAX_SIZE_DIFFERENCE:.0%} off the {nominal} of the nominal strips; build a model for this "
        "size, or one with embedder.resize_px for both"
    )


def picture_key(folder: str, image_key: str, suffix: str) -> str:
    """Return the name under which a picture of an image is stored: a hash, so that no key can form a path."""
    return f"{folder}/{hashlib.sha256(image_key.encode()).hexdigest()[:32]}{suffix}"


def images_of(decoded: pa.Table) -> list[NDArray[np.uint8] | None]:
    """Return the pixels_HWC of a table of schema `DECODED`, as read-only views; None for rows without pixels."""
    columns = (decoded.column(name) for name in ("pixels", "height_px", "width_px", "channels"))
    images: list[NDArray[np.uint8] | None] = []
    for pixels, height_px, width_px, channels in zip(*columns, strict=True):
        buffer = pixels.as_buffer() if pixels.is_valid else None
        shape = (height_px.as_py(), width_px.as_py(), channels.as_py())
        images.append(None if buffer is None else np.frombuffer(buffer, np.uint8).reshape(shape))
    return images


class BatchScorer:
    """Scorer of tables: schema `DECODED` in, schema `SCORES` out.

    Args:
        calibration: thresholds; None gives scores without verdicts, from which a calibration is made.
        threshold: review threshold that overrides the calibration's.
        pictures: location of the heatmaps of flagged images; None stores none.
        save_anomaly_maps: also store the anomaly map of every image there, as float16 .npy.
        nominal: compare each image with what the model learned from images of other keys.
        observe: receives the seconds of scoring a batch and of waiting for its pictures to be stored.
    """

    def __init__(
        self,
        scorer: Scorer,
        stamp: RunStamp,
        calibration: Calibration | None = None,
        *,
        threshold: float | None = None,
        pictures: Location | None = None,
        save_anomaly_maps: bool = False,
        nominal: bool = False,
        observe: Observe = unobserved,
    ) -> None:
        self._scorer = scorer
        self._observe = observe
        self._stamp = stamp
        self._calibration = calibration
        self._threshold = threshold
        self._pictures = pictures
        self._save_anomaly_maps = save_anomaly_maps
        self._nominal = nominal
        self._writers = ThreadPoolExecutor(WRITERS) if pictures is not None else None

    def __call__(self, decoded: pa.Table) -> pa.Table:
        rows = decoded.drop_columns(["pixels"]).to_pylist()
        images = images_of(decoded)
        usable: list[tuple[int, NDArray[np.uint8]]] = []
        for place, (row, image) in enumerate(zip(rows, images, strict=True)):
            if row["status"] != Status.OK or image is None:
                continue
            row["status"], row["error"] = self._check(image)
            if row["status"] == Status.OK:
                usable.append((place, image))
        scored_at = datetime.now(UTC)
        pending: list[Future[None]] = []
        if usable:
            with stage("score", self._observe):
                keys = [rows[place]["image_key"] for place, _ in usable] if self._nominal else None
                maps, scores = self._scorer.score([image for _, image in usable], keys)
            for (place, _), map_HW, score in zip(usable, maps, scores, strict=True):
                size_px = (rows[place]["height_px"], rows[place]["width_px"])
                rows[place].update(self._judge(rows[place]["image_key"], size_px, map_HW, float(score), pending))
        with stage("write", self._observe):
            for write in pending:
                write.result()  # a heatmap that cannot be stored fails the batch, because the row refers to it
        for row in rows:
            row.update(
                model_id=self._stamp.model_id,
                bank_id=self._stamp.bank_id,
                run_id=self._stamp.run_id,
                scored_at=scored_at,
                group=self._calibration.group_of(row["image_key"]) if self._calibration else None,
            )
        return pa.Table.from_pylist([{name: row.get(name) for name in SCORES.names} for row in rows], schema=SCORES)

    def _check(self, image_HWC: NDArray[np.uint8]) -> tuple[str, str | None]:
        height_px, width_px = image_HWC.shape[:2]
        least_px, wanted = self._scorer.min_size_px, self._stamp.input_size_px
        if min(height_px, width_px) < least_px:
            return Status.TOO_SMALL, f"{width_px}x{height_px}: the model needs at least {least_px}x{least_px}"
        error = shape_error((height_px, width_px), wanted)
        return (Status.OK, None) if error is None else (Status.WRONG_SHAPE, error)

    def _judge(
        self, key: str, size_px: tuple[int, int], map_HW: NDArray[np.float32], score: float, pending: list[Future[None]]
    ) -> dict[str, object]:
        """Return the columns that follow from an image's map and score, and start storing its pictures."""
        peak = float(map_HW.max())
        if not np.isfinite(score) or not np.isfinite(peak):
            return {"status": Status.UNSCORED, "error": f"the model gave score {score} and map peak {peak}"}
        found: dict[str, object] = {"anomaly_score": score, "map_peak": peak, "map_mean": float(map_HW.mean())}
        if self._save_anomaly_maps:
            buffer = io.BytesIO()
            np.save(buffer, map_HW.astype(np.float16), allow_pickle=False)
            pending.append(self._store(picture_key(ANOMALY_MAPS, key, ".npy"), buffer.getvalue()))
        if self._calibration is None:
            return found
        group = self._calibration.group_of(key)
        levels = self._calibration.thresholds_of(group)
        threshold = levels.review.value if self._threshold is None else self._threshold
        flagged = score > threshold
        verdict = Verdict.NORMAL if not flagged else Verdict.REVIEW
        if flagged and levels.has_reject and score > levels.reject.value:
            verdict = Verdict.REJECT
        fraction, boxes = find_regions(map_HW, levels.pixel.value, size_px) if peak > levels.pixel.value else (0.0, [])
        if flagged and self._pictures is not None:
            found["heatmap_key"] = name = picture_key(HEATMAPS, key, ".png")
            pending.append(self._store(name, heatmap_png(map_HW, *self._calibration.heat_range(group))))
        return {
            **found,
            "is_anomalous": flagged,
            "threshold": threshold,
            "verdict": verdict,
            "defect_area_fraction": fraction,
            "boxes": boxes,
        }

    def _store(self, key: str, body: bytes) -> Future[None]:
        assert self._writers is not None
        assert self._pictures is not None
        return self._writers.submit(self._pictures.write, key, body)
