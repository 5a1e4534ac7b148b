import numpy as np
import pytest

from steelray.config import ArchiveConfig
from steelray.demo.synthetic import encode, make_strip
from steelray.runs.batch import shape_error
from steelray.storage.listing import list_archive
from tests.plant import SIZE_PX, Plant


@pytest.mark.parametrize(("rows", "columns"), [(1, 0), (-3, 0), (0, 5), (9, -7)])
def test_a_strip_of_about_the_nominal_size_scores_as_one_of_that_size(plant: Plant, rows: int, columns: int) -> None:
    height_px, width_px = SIZE_PX
    for index in range(9):
        pixels_HW = make_strip(2, index, size_px=(height_px * 2, width_px + 16)).pixels_HW
        for name, part in {
            "same": pixels_HW[:height_px, :width_px],
            "near": pixels_HW[: height_px + rows, : width_px + columns],
            "far": pixels_HW[:, :width_px],
        }.items():
            plant.place("archive").write(f"{name}/{index}.png", encode(part, "PNG"))
    table = plant.score("archive", list_archive(ArchiveConfig(str(plant.root / "archive"))), "run", None)
    found = {name: [row for row in table.to_pylist() if row["image_key"].startswith(name)] for name in ("same", "near")}
    assert sorted(table["status"].to_pylist()) == ["ok"] * 18 + ["wrong_shape"] * 9
    ratios = [
        near["anomaly_score"] / same["anomaly_score"] for near, same in zip(found["near"], found["same"], strict=True)
    ]
    assert 0.8 < np.median(ratios) < 1.2, "if the backbone's cells lay otherwise than in the bank, it would be 2 to 4"


@pytest.mark.parametrize(
    ("size_px", "accepted"),
    [((256, 1600), True), ((320, 1200), True), ((321, 1600), False), ((256, 1199), False), ((1600, 256), False)],
)
def test_only_a_large_difference_in_size_is_refused(size_px: tuple[int, int], accepted: bool) -> None:
    error = shape_error(size_px, (256, 1600))
    assert (error is None) is accepted
    assert accepted or f"{size_px[1]}x{size_px[0]}: more than 25% off the 1600x256" in (error or "")
    assert accepted or "embedder.resize_px" in (error or "")
    assert shape_error(size_px, None) is None
