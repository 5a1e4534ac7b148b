"""What is measured before training is what was put in."""

import numpy as np
import pytest

from steelray.config import ConfigError
from steelray.research.study.diagnostics import FIGURE_TITLES, grain_floor, measure_tile, summarize, to_markdown
from steelray.research.study.transplant import apply_changes

RNG = np.random.default_rng(0)
FLAT = np.full((128, 128, 1), 120, dtype=np.uint8)


@pytest.mark.parametrize("grain", [2.0, 4.0, 8.0])
def test_grain_is_found_and_the_formula_foretells_the_floor(grain: float) -> None:
    figures = measure_tile(apply_changes(FLAT, (("grain", grain),), 1))
    assert figures.grain_sd == pytest.approx(grain, rel=0.08)
    # a blur of sigma 2 keeps a little of the grain, so it lies somewhat below what no trace of it would give
    assert 0.75 * grain_floor(grain / 255) < figures.floor <= grain_floor(grain / 255)


def test_denoising_takes_the_floor_away() -> None:
    grainy = apply_changes(FLAT, (("grain", 8.0),), 1)
    assert measure_tile(grainy).floor > 0.4
    assert measure_tile(apply_changes(grainy, (("denoise", 2.0),), 1)).floor < 0.1


def test_black_is_left_out_of_everything_else() -> None:
    banded = apply_changes(FLAT, (("bands", 0.25),), 3)
    figures = measure_tile(banded)
    assert figures.black_fraction == pytest.approx(0.25, abs=0.03)
    assert figures.brightness > 110
    assert np.isnan(measure_tile(np.zeros_like(FLAT)).floor)


def test_stripes_have_a_direction_and_noise_has_none() -> None:
    stripes = np.broadcast_to(RNG.integers(80, 160, (128, 1, 1)), (128, 128, 1)).astype(np.uint8)
    noise = RNG.integers(80, 160, (128, 128, 1)).astype(np.uint8)
    assert measure_tile(stripes).directionality > 0.95
    assert measure_tile(noise).directionality < 0.1


def test_grey_has_no_chroma() -> None:
    tinted = np.concatenate([FLAT, FLAT, FLAT + 20], axis=2)
    assert measure_tile(tinted).chroma == pytest.approx(20)
    assert measure_tile(apply_changes(tinted, (("grey", 1.0),), 0)).chroma == 0


def test_the_summary_says_what_a_smooth_reconstruction_can_reach() -> None:
    tiles = [measure_tile(apply_changes(FLAT, (("grain", sd),), n)) for n, sd in enumerate((1.0, 4.0, 8.0))]
    summary = summarize(tiles)
    assert summary["reachable_ssim_loss"] == pytest.approx(np.mean([tile.floor for tile in tiles]))
    assert summary["tiles_above_thesis_total"]["0.1"] == pytest.approx(2 / 3)
    table = to_markdown(["a", "b"], [summary, summary])
    assert all(title in table for title in FIGURE_TITLES.values())


def test_a_dataset_of_black_tiles_is_refused() -> None:
    with pytest.raises(ConfigError, match="no nominal tiles"):
        summarize([measure_tile(np.zeros_like(FLAT))])
