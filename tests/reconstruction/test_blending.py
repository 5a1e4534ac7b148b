"""Blending changes pixels under the mask as specified, and no others."""

import numpy as np
import pytest

from steelray.reconstruction.blending import alpha_blend, harmonic_fill, match_contrast, meet_at_edge

SIZE = (3, 40, 48)


def mask_with(*blocks: tuple[slice, slice]) -> np.ndarray:
    mask_HW = np.zeros(SIZE[1:], dtype=bool)
    for block in blocks:
        mask_HW[block] = True
    return mask_HW


MASK = mask_with((slice(5, 20), slice(8, 30)), (slice(30, 40), slice(40, 48)))


def random_image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(SIZE, dtype=np.float32)


def test_opacity_is_the_weight_of_the_source() -> None:
    image, source = np.full(SIZE, 0.2, dtype=np.float32), np.full(SIZE, 0.7, dtype=np.float32)
    blended = alpha_blend(image, source, MASK, 0.6)
    np.testing.assert_allclose(blended[:, MASK], 0.4 * 0.2 + 0.6 * 0.7, rtol=1e-5)
    assert (blended[:, ~MASK] == image[:, ~MASK]).all()
    assert (image == np.float32(0.2)).all()


def test_contrast_is_matched_under_the_mask() -> None:
    image, source = 0.3 + 0.1 * random_image(0), random_image(1)
    matched = match_contrast(source, image, MASK)
    np.testing.assert_allclose(matched[:, MASK].mean(axis=1), image[:, MASK].mean(axis=1), atol=1e-3)
    np.testing.assert_allclose(matched[:, MASK].std(axis=1), image[:, MASK].std(axis=1), atol=1e-3)

    flat = match_contrast(np.full(SIZE, 0.9, dtype=np.float32), random_image(0), MASK)
    assert flat[:, MASK].std() < 0.02


def test_the_fill_is_harmonic() -> None:
    """A plane is harmonic: it is restored under the mask from its surroundings."""
    rows, columns = np.mgrid[: SIZE[1], : SIZE[2]].astype(np.float32)
    plane = np.stack([0.01 * rows, 0.02 * columns, 0.01 * rows - 0.005 * columns]).astype(np.float32)
    inner = mask_with((slice(5, 20), slice(8, 30)))
    filled = harmonic_fill(np.where(inner, np.float32(9), plane), inner)
    np.testing.assert_allclose(filled, plane, atol=0.02)


def test_a_filling_stays_within_the_values_around_it() -> None:
    values = random_image(0)
    filled = harmonic_fill(values, MASK)
    assert filled[:, MASK].min() >= values[:, ~MASK].min()
    assert filled[:, MASK].max() <= values[:, ~MASK].max()
    assert (filled[:, ~MASK] == values[:, ~MASK]).all()


def test_a_seamless_source_has_no_step_at_the_edge_and_keeps_its_texture() -> None:
    image = np.full(SIZE, 0.3, dtype=np.float32)
    source = (0.7 + 0.1 * random_image(1)).astype(np.float32)
    inner = mask_with((slice(10, 30), slice(10, 38)))
    plain, seamless = (alpha_blend(image, s, inner, 1.0) for s in (source, meet_at_edge(source, image, inner)))

    def step(blended: np.ndarray) -> float:
        return float(np.abs(blended[:, 10, 10:38] - blended[:, 9, 10:38]).mean())

    assert step(seamless) < step(plain) / 5
    assert seamless[:, 15:25, 15:30].std() == pytest.approx(source[:, 15:25, 15:30].std(), rel=0.3)


def test_a_mask_over_everything_has_no_edge() -> None:
    source = random_image(1)
    everywhere = np.ones(SIZE[1:], dtype=bool)
    assert meet_at_edge(source, random_image(0), everywhere) is source
