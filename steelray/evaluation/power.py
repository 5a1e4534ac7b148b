"""The power of a model without labels: the share of planted defects that its thresholds find, and detection limits.

Planted defects are not real ones, and their shares understate what a model finds. The limits say which defects it
surely cannot see, so that a person can compare them with those that matter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from steelray.evaluation.planting import SEEN_PX, Defect, plant
from steelray.imaging.scorer import Evidence, Floats, Scorer
from steelray.models.calibration import Calibration
from steelray.storage.location import Location, ObjectMissing

PLANTED_FILE = "planted.parquet"
PLANTED = pa.schema(
    [
        pa.field("image_key", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("size_px", pa.int32(), nullable=False),
        pa.field("contrast", pa.int32(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("clean_score", pa.float32(), nullable=False),
    ]
)
"""Scores of planted defects, beside the model; the columns are those of `PlantedScore`."""
HALF = 0.5
"""Share of the planted defects of a kind, size and contrast that must be found for it to count as detected."""
MIN_PLANTED = 3
"""Fewer planted defects than this decide nothing."""


@dataclass(frozen=True)
class PlantedScore:
    """The score of a nominal image with one planted defect, and without it.

    Attributes:
        image_key: the nominal image; the bank's vectors from it were left out.
    """

    image_key: str
    kind: str
    size_px: int
    contrast: int
    score: float
    clean_score: float


@dataclass(frozen=True)
class PowerCell:
    """The planted defects of one kind, size and contrast, and how many were found.

    Attributes:
        contrast: root mean square of the change, grey levels, before clipping.
    """

    kind: str
    size_px: int
    contrast: int
    num_planted: int
    num_found: int

    @property
    def share(self) -> float:
        """Return the share that was found."""
        return self.num_found / max(1, self.num_planted)


@dataclass(frozen=True)
class DetectionLimit:
    """The least contrast from which on half of the defects of a kind and size are found; None if none is enough."""

    kind: str
    size_px: int
    contrast: int | None


@dataclass(frozen=True)
class Power:
    """The power table of a model at its review thresholds.

    Attributes:
        num_strips: nominal images that defects were planted in.
        cells: in the order of kind, size and contrast.
    """

    num_strips: int
    cells: tuple[PowerCell, ...]

    @property
    def limits(self) -> tuple[DetectionLimit, ...]:
        """Return the detection limit of each kind and size."""
        names = dict.fromkeys((cell.kind, cell.size_px) for cell in self.cells)
        return tuple(
            DetectionLimit(*name, _limit([c for c in self.cells if (c.kind, c.size_px) == name])) for name in names
        )

    @property
    def can_decide(self) -> bool:
        """Return whether any kind of defect has a detection limit."""
        return any(limit.contrast is not None for limit in self.limits)


def _limit(cells: Sequence[PowerCell]) -> int | None:
    """Return the least contrast at which, as at every larger one, half of the defects are found."""
    limit = None
    for cell in sorted(cells, key=lambda cell: -cell.contrast):
        if cell.num_planted >= MIN_PLANTED and cell.share < HALF:
            break
        if cell.num_planted >= MIN_PLANTED:
            limit = cell.contrast
    return limit


def score_planted(
    scorer: Scorer,
    image_HWC: NDArray[np.uint8],
    image_key: str,
    rounds: Sequence[Sequence[Defect]],
    foreign_HWC: NDArray[np.uint8],
) -> Iterator[PlantedScore]:
    """Plant defects in a nominal image and score it with each of them alone.

    The defects of a round stand in the image together, so that they cost one pass; the evidence around each is then put
    into that of the clean image.

    Args:
        foreign_HWC: another image, a source of textures.
    """
    images = [image_HWC, *(plant(image_HWC, defects, foreign_HWC) for defects in rounds)]
    clean, *measured = (scorer.measure([image], [image_key])[0] for image in images)
    clean_score = scorer.anomaly_score(clean)
    for defects, planted in zip(rounds, measured, strict=True):
        for defect in defects:
            score = scorer.anomaly_score(_with_defect(clean, planted, defect, image_HWC.shape[:2]))
            yield PlantedScore(image_key, defect.kind, defect.size_px, defect.contrast, score, clean_score)


def _with_defect(clean: Evidence, planted: Evidence, defect: Defect, size_px: tuple[int, ...]) -> Evidence:
    """Return the clean image's evidence with that of the planted one around a defect."""
    joined: list[Floats] = []
    for clean_hw, planted_hw in zip(clean, planted, strict=True):
        rows, columns = (cells / side for cells, side in zip(clean_hw.shape, size_px, strict=True))
        top, left, bottom, right = defect.box(SEEN_PX)
        here = (
            slice(max(0, int(top * rows)), int(np.ceil(bottom * rows))),
            slice(max(0, int(left * columns)), int(np.ceil(right * columns))),
        )
        joined_hw = clean_hw.copy()
        joined_hw[here] = planted_hw[here]
        joined.append(joined_hw)
    return joined


def power_of(planted: pa.Table, calibration: Calibration) -> Power:
    """Count the planted defects that are flagged for review.

    Args:
        planted: schema `PLANTED`; defects in images that are flagged without them do not count.
    """
    found: dict[tuple[str, int, int], list[bool]] = {}
    for row in planted.to_pylist():
        threshold = calibration.thresholds_of(calibration.group_of(row["image_key"])).review.value
        cell = found.setdefault((row["kind"], row["size_px"], row["contrast"]), [])
        if row["clean_score"] <= threshold:
            cell.append(row["score"] > threshold)
    cells = (PowerCell(*name, len(flags), sum(flags)) for name, flags in sorted(found.items()))
    return Power(len(set(planted.column("image_key").to_pylist())), tuple(cells))


def write_planted(model_uri: str, planted: pa.Table) -> None:
    """Store the scores of planted defects beside a model, in place of earlier ones."""
    body = pa.BufferOutputStream()
    pq.write_table(planted, body)
    Location(model_uri).write(PLANTED_FILE, body.getvalue().to_pybytes())


def read_power(model_uri: str, calibration: Calibration) -> Power | None:
    """Return the power of a model at the thresholds of a calibration; None if no defects were planted for it."""
    try:
        body = Location(model_uri).read(PLANTED_FILE)
    except ObjectMissing:
        return None
    return power_of(pq.read_table(pa.BufferReader(body)), calibration)
