import numpy as np
import pytest

from steelray.evaluation.planting import (
    CONTRASTS,
    GAP_PX,
    KINDS,
    MAX_TOGETHER,
    SIZES_PX,
    Defect,
    noise_mask,
    place_defects,
    plant,
    wanted_defects,
)
from tests.patchcore.samples import strip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size_px", SIZES_PX)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_defect_changes_its_box_by_its_contrast_and_nothing_else(kind: str, size_px: int, channels: int) -> None:
    grey = np.repeat(strip(192, 256), channels, axis=2) // 4 + 96  # far from black and white
    defect = Defect(kind, size_px, 16, 3, top_px=20, left_px=30)
    changed = plant(grey, [defect], strip(64, 64, 5)).astype(float) - grey
    top, left, bottom, right = defect.box()
    inside = changed[top:bottom, left:right].copy()
    changed[top:bottom, left:right] = 0
    assert not changed.any()
    strong = np.abs(inside) > 4
    assert strong.any()
    assert 8 < np.sqrt((inside[strong] ** 2).mean()) < 32
    assert np.array_equal(plant(grey, [defect], strip(64, 64, 5)), plant(grey, [defect], strip(64, 64, 5)))


def test_every_defect_is_placed_once_and_apart() -> None:
    wanted = wanted_defects((128, 300))
    sizes_px = [(128, 300), (100, 400), (256, 256)]
    rounds = list(place_defects(wanted, sizes_px, seed=4))
    placed = [defect for _, defects in rounds for defect in defects]
    names = [(d.kind, d.size_px, d.contrast, d.number) for d in placed]
    assert sorted(names) == sorted((d.kind, d.size_px, d.contrast, d.number) for d in wanted)
    assert {d.contrast for d in placed} == set(CONTRASTS)
    for host, defects in rounds:
        height_px, width_px = sizes_px[host]
        assert 0 < len(defects) <= MAX_TOGETHER
        for one in defects:
            top, left, bottom, right = one.box()
            assert min(top, left, height_px - bottom, width_px - right) >= 0
            for other in defects:
                near_rows = one.box(GAP_PX)[0] < other.box()[2] and other.box()[0] < one.box(GAP_PX)[2]
                near_columns = one.box(GAP_PX)[1] < other.box()[3] and other.box()[1] < one.box(GAP_PX)[3]
                assert one is other or not (near_rows and near_columns)


def test_the_number_of_passes_is_bounded() -> None:
    wanted, sizes_px = wanted_defects((128, 300)), [(128, 300)] * 3
    whole = list(place_defects(wanted, sizes_px, seed=4))
    assert list(place_defects(wanted, sizes_px, seed=4, max_rounds=7)) == whole[:7]


def test_defects_larger_than_the_strips_are_left_out() -> None:
    assert {defect.size_px for defect in wanted_defects((64, 500))} == {16, 48}
    assert wanted_defects((8, 8)) == []
    assert list(place_defects([Defect("spot", 120, 8, 0)], [(64, 500)])) == []
    assert list(place_defects([Defect("spot", 120, 8, 0)], [])) == []


def test_a_noise_mask_is_an_irregular_patch() -> None:
    masks = [noise_mask(48, np.random.default_rng(seed)) for seed in range(8)]
    assert all(mask.min() == 0 and mask.max() == 1 for mask in masks)
    assert all(0.2 < (mask > 0.5).mean() < 0.75 for mask in masks)
    assert not np.array_equal(masks[0], masks[1])


def test_a_planted_image_stays_within_black_and_white() -> None:
    white = np.full((64, 64, 1), 250, np.uint8)
    planted = plant(white, [Defect("spot", 48, 128, number, 8, 8) for number in range(2)], white)
    assert planted.dtype == np.uint8
    assert planted.max() <= 255
