"""The power of a model without labels: the share of planted defects that its thresholds find, and detection limits.

Planted defects are not real ones, and their shares understate what a model finds. The limits say which defects it
surely cannot see, so that a person can compare them with those that matter.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from steelray.evaluation.planting import KINDS, SEEN_PX, Defect, place_defects, plant, wanted_defects
from steelray.imaging.scorer import Evidence, Floats, Scorer
from steelray.models.calibration import Calibration, read_calibration
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
NUM_HOSTS = 24
"""Nominal images that defects are planted in."""
MAX_ROUNDS = 96
"""Passes over these images, which bound the cost of the check."""
Rounds = dict[str, list[list[Defect]]]
"""By image key: the defects that stand in the image together, for each pass over it."""
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
    def share(self) -> float:
        """Return the share of textures found, of all sizes and contrasts: recipes are ranked by it."""
        textures = [cell for cell in self.cells if cell.kind == "texture"]
        return sum(cell.num_found for cell in textures) / max(1, sum(cell.num_planted for cell in textures))

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


def plan_rounds(image_keys: Sequence[str], sizes_px: Sequence[tuple[int, int]], kinds: Sequence[str] = KINDS) -> Rounds:
    """Choose nominal images to plant defects in, spread over all, and place the defects; none if there are no images.

    Args:
        sizes_px: height and width of each image.
    """
    if not image_keys:
        return {}
    places = np.unique(np.linspace(0, len(image_keys) - 1, NUM_HOSTS).round().astype(int))
    hosts = sorted((image_keys[place], sizes_px[place]) for place in places)
    rounds: Rounds = defaultdict(list)
    wanted = wanted_defects(max((size_px for _, size_px in hosts), key=min), kinds)
    for host, defects in place_defects(wanted, [size_px for _, size_px in hosts], max_rounds=MAX_ROUNDS):
        rounds[hosts[host][0]].append(defects)
    return dict(rounds)


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
    covered_px = scorer.covered_px((image_HWC.shape[0], image_HWC.shape[1]))
    for defects, planted in zip(rounds, measured, strict=True):
        for defect in defects:
            score = scorer.anomaly_score(_with_defect(clean, planted, defect, covered_px))
            yield PlantedScore(image_key, defect.kind, defect.size_px, defect.contrast, score, clean_score)


def _with_defect(clean: Evidence, planted: Evidence, defect: Defect, covered_px: Sequence[tuple[int, int]]) -> Evidence:
    """Return the clean image's evidence with that of the planted one around a defect.

    Args:
        covered_px: height and width that each grid covers.
    """
    joined: list[Floats] = []
    for clean_hw, planted_hw, size_px in zip(clean, planted, covered_px, strict=True):
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


def power_at(planted: Sequence[PlantedScore], threshold_of: Callable[[str], float]) -> Power:
    """Count the planted defects that are flagged; those in images that are flagged without them do not count.

    Args:
        threshold_of: takes an image's key.
    """
    found: dict[tuple[str, int, int], list[bool]] = {}
    for one in planted:
        threshold = threshold_of(one.image_key)
        cell = found.setdefault((one.kind, one.size_px, one.contrast), [])
        if one.clean_score <= threshold:
            cell.append(one.score > threshold)
    cells = (PowerCell(*name, len(flags), sum(flags)) for name, flags in sorted(found.items()))
    return Power(len({one.image_key for one in planted}), tuple(cells))


def power_of(planted: pa.Table, calibration: Calibration) -> Power:
    """Count the planted defects (schema `PLANTED`) that are flagged for review."""

    def threshold_of(image_key: str) -> float:
        return calibration.thresholds_of(calibration.group_of(image_key)).review.value

    return power_at([PlantedScore(**row) for row in planted.to_pylist()], threshold_of)


def write_planted(model_uri: str, planted: pa.Table) -> None:
    """Store the scores of planted defects beside a model, in place of earlier ones."""
    body = pa.BufferOutputStream()
    pq.write_table(planted, body)
    Location(model_uri).write(PLANTED_FILE, body.getvalue().to_pybytes())


def read_power(model_uri: str, calibration: Calibration | None = None) -> Power | None:
    """Return the power of a model; None if no defects were planted for it.

    Args:
        calibration: its thresholds; None: the newest.
    """
    try:
        body = Location(model_uri).read(PLANTED_FILE)
    except ObjectMissing:
        return None
    return power_of(pq.read_table(pa.BufferReader(body)), calibration or read_calibration(model_uri)[0])
