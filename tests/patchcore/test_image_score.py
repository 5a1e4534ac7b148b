"""One score from many patch distances, against each definition worked out by hand."""

import math

import numpy as np
import pytest

from steelray.config import ConfigError
from steelray.patchcore.config import ScoringConfig
from steelray.patchcore.scorer import image_score, neighbor_weights


def test_a_bank_must_hold_as_many_vectors_as_a_search_asks_for() -> None:
    ScoringConfig(image_score="reweighted").check_bank(9)
    with pytest.raises(ConfigError, match=r"scoring\.image_score reweighted compares 9 vectors but the bank has 8"):
        ScoringConfig(image_score="reweighted").check_bank(8)
    with pytest.raises(ConfigError, match=r"scoring\.num_neighbors is 9 but the bank has 8 vectors"):
        ScoringConfig(num_neighbors=9).check_bank(8)


def test_the_extreme_value_is_that_of_the_fitted_gumbel_distribution() -> None:
    """Maxima of many blocks from a known Gumbel distribution give back its expected largest."""
    rng = np.random.default_rng(0)
    location, scale = 10.0, 2.0
    scores = []
    for _ in range(400):
        maxima_n = rng.gumbel(location, scale, 16)
        distances_hw = np.repeat(np.stack([maxima_n, np.zeros(16)]), 4, axis=1).astype(np.float32)
        scores.append(image_score(distances_hw, None, ScoringConfig(image_score="extreme_value")))
    expected = location + scale * (np.euler_gamma + math.log(16))
    assert np.mean(scores) == pytest.approx(expected, rel=0.03)
    flat_hw = np.full((3, 40), 4.0, dtype=np.float32)
    assert image_score(flat_hw, None, ScoringConfig(image_score="extreme_value")) == pytest.approx(4.0)
    assert image_score(flat_hw[:, :1], None, ScoringConfig(image_score="extreme_value")) == pytest.approx(4.0)


def test_a_patch_in_a_dense_part_of_the_bank_weighs_less() -> None:
    squared_QK = np.array([[4.0, 4.0, 4.0], [4.0, 25.0, 36.0], [4.0, 4.0, 1e10]], dtype=np.float32)
    weights_Q = neighbor_weights(squared_QK)
    shares = np.exp([2.0, 5.0, 6.0])
    assert weights_Q.tolist() == pytest.approx([2 / 3, 1 - shares[0] / shares.sum(), 1.0])
    assert weights_Q.dtype == np.float32
    distances_hw = np.array([[2.0, 3.0]], dtype=np.float32)
    weights_hw = np.array([[1.0, 0.5]], dtype=np.float32)
    assert image_score(distances_hw, weights_hw, ScoringConfig(image_score="reweighted")) == 1.5
