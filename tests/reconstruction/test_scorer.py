"""Scoring with a trained network: a score depends on its image alone, whatever the other images are."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional

from steelray.config import ConfigError
from steelray.reconstruction.build import build_model
from steelray.reconstruction.config import ConvAutoencoderConfig, DraemConfig, InputConfig, NetworkConfig
from steelray.reconstruction.input import scoring_views
from steelray.reconstruction.scorer import ConvAutoencoderScorer, DraemScorer, box_maximum, reconstruction_scorer

SQUEEZE = InputConfig(size_px=(32, 64))
CROP = InputConfig(size_px=(32, 64), tiling="crop")
NETWORKS: list[NetworkConfig] = [DraemConfig(width=1 / 16), DraemConfig(1 / 16, "gn"), ConvAutoencoderConfig()]


def images(*sizes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size, dtype=np.uint8) for size in sizes]


MIXED = images((32, 64, 1), (40, 200, 3), (32, 64, 3), (20, 30, 1), (70, 64, 1))


def scorer_of(network: NetworkConfig, input_config: InputConfig) -> Any:
    return reconstruction_scorer(build_model(network), input_config)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("input_config", [SQUEEZE, CROP], ids=["squeeze", "crop"])
def test_a_score_depends_on_its_image_alone(network: NetworkConfig, input_config: InputConfig) -> None:
    scorer = scorer_of(network, input_config)
    maps, scores = scorer.score(MIXED)
    assert scores.dtype == np.float32
    for image, map_HW, score in zip(MIXED, maps, scores, strict=True):
        assert map_HW.dtype == np.float32
        assert map_HW.shape == ((32, 64) if input_config is SQUEEZE else image.shape[:2])
        (alone,), (alone_score,) = scorer.score([image])
        assert (alone == map_HW).all()
        assert alone_score == score
    backwards, _ = scorer.score(MIXED[::-1])
    assert all((a == b).all() for a, b in zip(backwards[::-1], maps, strict=True))
    assert len({map_HW.tobytes() for map_HW in maps}) == len(MIXED)


def test_no_images_are_no_scores() -> None:
    maps, scores = scorer_of(NETWORKS[0], SQUEEZE).score([])
    assert maps == []
    assert scores.shape == (0,)


def test_running_statistics_are_used_and_kept() -> None:
    model = build_model(NETWORKS[0]).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    DraemScorer(model, SQUEEZE).score(MIXED)
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class RedMeter(nn.Module):
    """Network whose logits rise with a pixel's red."""

    def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        red = 10 * images_BCHW[:, :1]
        return images_BCHW, torch.cat((torch.zeros_like(red), red - 5), dim=1)


def test_channels_are_red_green_blue_and_class_one_is_the_anomaly() -> None:
    pixels = np.zeros((32, 64, 3), dtype=np.uint8)
    pixels[:, :32] = (255, 0, 0)
    pixels[:, 32:] = (0, 255, 255)
    (map_HW,), _ = DraemScorer(RedMeter(), SQUEEZE).score([pixels])
    np.testing.assert_allclose(map_HW[:, :32], 1 / (1 + np.exp(-5)), rtol=1e-5)
    np.testing.assert_allclose(map_HW[:, 32:], 1 / (1 + np.exp(5)), rtol=1e-4)


def test_the_image_score_is_the_maximum_of_the_box_average() -> None:
    map_HW = np.random.default_rng(0).random((50, 70), dtype=np.float32)
    average = functional.avg_pool2d(torch.from_numpy(map_HW)[None, None], 21, stride=1, padding=10)
    assert box_maximum(map_HW, 21) == pytest.approx(average.max().item(), rel=1e-5)
    pixels = np.zeros((32, 64, 3), dtype=np.uint8)
    pixels[10:14, 20:24, 0] = 255
    (seen,), (score,) = DraemScorer(RedMeter(), SQUEEZE).score([pixels])
    assert score == pytest.approx(box_maximum(seen, 21))
    assert score < 0.1 < seen.max()


class Blank(nn.Module):
    """Network that reconstructs black."""

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(images_BCHW)


def test_a_smoothed_map_has_the_score_of_the_map_as_it_was() -> None:
    plain, smooth = (scorer_of(DraemConfig(1 / 16, map_sigma_px=sigma_px), CROP) for sigma_px in (0.0, 4.0))
    maps, scores = plain.score(MIXED)
    smooth_maps, smooth_scores = smooth.score(MIXED)
    assert (smooth_scores == scores).all()
    for map_HW, smooth_HW in zip(maps, smooth_maps, strict=True):
        assert smooth_HW == pytest.approx(ndimage.gaussian_filter(map_HW, 4.0, truncate=8.0), abs=1e-6)
        assert smooth_HW.dtype == np.float32


def test_the_autoencoder_s_map_is_the_difference_image() -> None:
    pixels = np.full((32, 64, 3), (51, 102, 0), dtype=np.uint8)
    (map_HW,), (score,) = ConvAutoencoderScorer(Blank(), SQUEEZE).score([pixels])
    np.testing.assert_allclose(map_HW, (0.2 + 0.4) / 3, rtol=1e-5)
    assert score == pytest.approx(0.2)  # the window fits in, so that no zeros beyond the edge count


def test_a_strip_is_scored_in_tiles_at_native_resolution() -> None:
    pixels = np.zeros((32, 200, 1), dtype=np.uint8)
    pixels[8:24, 150:170] = 255
    (map_HW,), _ = ConvAutoencoderScorer(Blank(), CROP).score([pixels])
    np.testing.assert_allclose(map_HW, pixels[:, :, 0] / 255, rtol=1e-5)


def test_a_shrunk_strip_has_a_map_of_its_own_size_from_fewer_tiles() -> None:
    pixels = np.zeros((64, 400, 1), dtype=np.uint8)
    pixels[16:48, 296:344] = 200
    half = InputConfig(size_px=(32, 64), tiling="crop", scoring_scale=0.5)
    assert len(scoring_views(pixels, half)[0]) < len(scoring_views(pixels, CROP)[0]) / 3
    (map_HW,), (score,) = ConvAutoencoderScorer(Blank(), half).score([pixels])
    assert map_HW.shape == (64, 400)
    assert map_HW.dtype == np.float32
    assert map_HW[32, 320] == pytest.approx(200 / 255)
    assert np.abs(map_HW - pixels[:, :, 0] / 255).mean() < 0.01  # soft at the edges only
    assert score == pytest.approx(16 * 21 / 21**2 * 200 / 255)  # the window is in pixels of the shrunk strip


def test_a_scale_is_refused_where_it_means_nothing() -> None:
    with pytest.raises(ConfigError, match="scoring_scale needs tiling: crop"):
        InputConfig(scoring_scale=0.5)
    with pytest.raises(ConfigError, match=r"scoring_scale must lie in \(0, 1\], not 0"):
        InputConfig(tiling="crop", scoring_scale=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_too_a_score_depends_on_its_image_alone() -> None:
    scorer = reconstruction_scorer(build_model(NETWORKS[0]), CROP, "cuda")
    maps, _ = scorer.score(MIXED)
    assert all((scorer.score([image])[0][0] == map_HW).all() for image, map_HW in zip(MIXED, maps, strict=True))
