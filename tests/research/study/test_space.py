"""The search space: options of the training settings and nothing else, typed, and points inside of it."""

import pytest

from steelray.config import ConfigError
from steelray.reconstruction.config import TrainConfig, TrainDataConfig
from steelray.research.study.space import Axis, axis_names, check_points, option, with_settings

CONFIG = TrainConfig("draem", TrainDataConfig(generated=8), "unused", "study", num_steps=10)


def test_every_axis_of_the_hypotheses_is_an_option() -> None:
    wanted = {
        "synthesis.target_blur_px", "loss.w_ssim", "optimizer.lr", "optimizer.schedule", "optimizer.clip",
        "optimizer.ema", "synthesis.foreground", "data.max_black_fraction", "draem.norm", "batch_size",
        "input.brightness_norm", "synthesis.grey_source_probability", "synthesis.self_source_probability",
        "synthesis.match_contrast", "synthesis.blend", "synthesis.perlin_exponents", "synthesis.rotate",
        "input.tiling", "synthesis.opacity_min", "synthesis.opacity_max", "synthesis.relabel_levels", "loss.w_focal",
        "loss.detach", "loss.gamma", "data.dataset.num_fit",
    }  # fmt: skip
    assert wanted <= set(axis_names())


def test_settings_change_what_they_name_and_nothing_else() -> None:
    changed = with_settings(CONFIG, {"loss.w_ssim": 0, "synthesis.perlin_exponents": [1, 3], "batch_size": 4})
    assert changed.loss.w_ssim == 0.0
    assert changed.synthesis.perlin_exponents == (1, 3)
    names = [name for name in axis_names() if option(changed, name) != option(CONFIG, name)]
    assert names == ["batch_size", "loss.w_ssim", "synthesis.perlin_exponents"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss.w_sim": 1.0}, "did you mean loss.w_ssim"),
        ({"data.dataset.root": "x"}, "unknown axis"),
        ({"loss.w_ssim": "much"}, "'much' is not float"),
        ({"loss.w_ssim": -1.0}, "w_ssim must be >= 0"),
        ({"draem.norm": "layer"}, "is not"),
        ({"batch_size": 2.5}, "is not int"),
        ({"data.dataset.num_fit": 2}, "dataset is not set"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_settings(CONFIG, settings)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "loss.w_sim", "low": 0.1, "high": 1.0}, "unknown axis"),
        ({"name": "loss.w_ssim"}, "choices, or low < high"),
        ({"name": "loss.w_ssim", "low": 0.0, "high": 1.0, "log": True}, "above 0"),
        ({"name": "draem.norm", "choices": ("bn", "ln")}, "'ln' is not"),
    ],
)
def test_wrong_axes_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Axis(**values)


def test_a_search_starts_with_the_baseline_and_the_fix() -> None:
    axes = (Axis("loss.w_ssim", low=0.1, high=1.0, log=True), Axis("draem.norm", choices=("bn", "gn")))
    assert check_points(CONFIG, {"draem.norm": "gn"}, axes) == [
        {"loss.w_ssim": 1.0, "draem.norm": "bn"},
        {"loss.w_ssim": 1.0, "draem.norm": "gn"},
    ]
    with pytest.raises(ConfigError, match="not an axis of the search"):
        check_points(CONFIG, {"loss.detach": True}, axes)
    with pytest.raises(ConfigError, match=r"does not hold 0\.01"):
        check_points(CONFIG, {"loss.w_ssim": 0.01}, axes)
