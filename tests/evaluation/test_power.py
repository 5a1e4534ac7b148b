from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from steelray.config import CalibrationConfig
from steelray.evaluation.planting import Defect, place_defects, wanted_defects
from steelray.evaluation.power import (
    PLANTED,
    DetectionLimit,
    Power,
    PowerCell,
    power_of,
    read_power,
    score_planted,
    write_planted,
)
from steelray.imaging.scorer import Evidence, Floats, Images, Scorer
from steelray.models.calibration import Calibration, calibrate
from tests.patchcore.samples import strip


class Edges(Scorer):
    """Scores by the largest difference of neighbouring pixels, on a grid of 8 px."""

    min_size_px = 8

    def measure(self, images: Images, keys: Sequence[str] | None = None) -> list[Evidence]:
        evidence: list[Evidence] = []
        for image in images:
            steps = np.abs(np.diff(image[:, :, 0].astype(np.float32), axis=1, append=0))[:, :-8]
            rows, columns = (side // 8 for side in steps.shape)
            evidence.append([steps[: rows * 8, : columns * 8].reshape(rows, 8, columns, 8).max(axis=(1, 3))])
        return evidence

    def anomaly_map(self, evidence: Evidence, size_px: tuple[int, int]) -> Floats:
        return evidence[0]

    def anomaly_score(self, evidence: Evidence) -> float:
        return float(evidence[0].max())


def thresholds_at(value: float) -> Calibration:
    scores = np.full(60, value, np.float32)
    return calibrate([f"{number}.png" for number in range(60)], scores, scores, scores, CalibrationConfig())


def test_each_defect_is_scored_as_if_it_stood_alone() -> None:
    image, foreign, scorer = strip(192, 400), strip(64, 64, 3), Edges()
    _, defects = next(place_defects(wanted_defects((192, 400)), [(192, 400)], seed=2))
    assert len(defects) > 2
    together = list(score_planted(scorer, image, "a.png", [defects], foreign))
    for defect, row in zip(defects, together, strict=True):
        [alone] = score_planted(scorer, image, "a.png", [[defect]], foreign)
        assert row == alone
        assert (row.kind, row.size_px, row.contrast) == (defect.kind, defect.size_px, defect.contrast)
    assert any(row.score > row.clean_score for row in together)


def test_a_limit_is_the_least_contrast_that_stays_found() -> None:
    shares = {"spot": (0, 2, 8, 8), "scratch": (8, 8, 3, 8), "texture": (0, 0, 0, 3), "roughness": (4, 8, 8, 8)}
    cells = tuple(
        PowerCell(kind, 48, contrast, 8, found)
        for kind, row in shares.items()
        for contrast, found in zip((8, 16, 32, 64), row, strict=True)
    )
    power = Power(5, cells)
    assert power.limits == (
        DetectionLimit("spot", 48, 32),
        DetectionLimit("scratch", 48, 64),
        DetectionLimit("texture", 48, None),
        DetectionLimit("roughness", 48, 8),
    )
    assert power.can_decide
    assert not Power(5, tuple(cell for cell in cells if cell.kind == "texture")).can_decide
    assert not Power(0, ()).can_decide
    assert Power(1, (PowerCell("spot", 16, 64, 2, 2),)).limits == (DetectionLimit("spot", 16, None),), "two are few"


def test_power_follows_the_thresholds_and_flagged_images_do_not_count(tmp_path_factory: pytest.TempPathFactory) -> None:
    uri = str(tmp_path_factory.mktemp("model"))
    rows = [
        {"image_key": key, "kind": "spot", "size_px": 16, "contrast": 32, "score": score, "clean_score": clean}
        for key, score, clean in (("a", 5.0, 1.0), ("b", 3.0, 1.0), ("c", 9.0, 8.0), ("d", 1.5, 1.0))
    ]
    assert read_power(uri, thresholds_at(2.0)) is None
    write_planted(uri, pa.Table.from_pylist(rows, PLANTED))
    assert read_power(uri, thresholds_at(2.0)) == Power(4, (PowerCell("spot", 16, 32, 3, 2),))
    assert read_power(uri, thresholds_at(4.0)) == Power(4, (PowerCell("spot", 16, 32, 3, 1),))
    assert power_of(PLANTED.empty_table(), thresholds_at(1.0)) == Power(0, ())


def test_a_defect_at_the_edge_of_the_image_counts() -> None:
    image = np.full((64, 64, 1), 100, np.uint8)
    corner = Defect("roughness", 48, 64, 0, top_px=16, left_px=0)
    [row] = score_planted(Edges(), image, "a.png", [[corner]], image)
    assert row.score > row.clean_score + 20
