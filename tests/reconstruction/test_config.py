"""Training settings: the published recipe by default, parsed from the command line and files, wrong ones refused."""

from pathlib import Path
from typing import Any

import pytest

from steelray.config import ConfigError, DatasetConfig
from steelray.job import parse
from steelray.reconstruction.config import (
    ConvAutoencoderConfig,
    DraemConfig,
    InputConfig,
    LossConfig,
    OptimizerConfig,
    SynthesisConfig,
    TrainConfig,
    TrainDataConfig,
)
from tests.test_architecture import loaded_after

DATA = TrainDataConfig(dataset=DatasetConfig("mvtec", "bottle"))
LINE = ["--model", "draem", "--data.nominal.uri", "s3://plant/strips", "--output-uri", "runs", "--run-name", "first"]


def config(**settings: Any) -> TrainConfig:
    return TrainConfig(**{"model": "draem", "data": DATA, "output_uri": "runs", "run_name": "first", **settings})


def test_defaults_are_the_published_recipe() -> None:
    recipe = config()
    assert recipe.draem == DraemConfig(width=1.0, norm="bn")
    assert recipe.input == InputConfig((256, 256), "squeeze", "none")
    assert recipe.loss == LossConfig(w_ssim=1, w_focal=1, gamma=2, detach=False)
    assert (recipe.optimizer.lr, recipe.batch_size, recipe.num_epochs) == (1e-4, 8, 700)
    off = recipe.synthesis
    assert (off.anomaly_probability, off.opacity_min, off.opacity_max) == (0.5, 0.2, 1.0)
    assert (off.target_blur_px, off.foreground, off.relabel_levels, off.blend) == (0, "none", None, "alpha")
    assert (off.grey_source_probability, off.match_contrast, off.self_source_probability) == (0, False, 0)
    assert (recipe.optimizer.clip, recipe.optimizer.ema, recipe.data.max_black_fraction) == (0, 0, 1.0)


def test_from_the_command_line() -> None:
    settings = [
        "--input.size_px", "[64, 96]", "--draem.width", "0.125", "--draem.norm", "gn",
        "--synthesis.relabel-levels", "2", "--optimizer.schedule", "cosine", "--loss.detach", "true",
        "--num-steps", "40", "--precision", "bf16",
    ]  # fmt: skip
    parsed = parse(TrainConfig, "train", [*LINE, *settings])
    assert parsed.data.nominal is not None
    assert parsed.data.nominal.uri == "s3://plant/strips"
    assert parsed.data.dataset is None
    assert parsed.input.size_px == (64, 96)
    assert parsed.network == DraemConfig(0.125, "gn")
    assert parsed.synthesis.relabel_levels == 2
    assert parsed.loss.detach
    assert (parsed.num_steps, parsed.precision, parsed.optimizer.schedule) == (40, "bf16", "cosine")


def test_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "model: conv_ae\noutput_uri: runs\nrun_name: second\n"
        "data:\n  dataset:\n    kind: severstal\n    root: data\n    tiling: 400x256\n"
        "optimizer:\n  milestones: [0.5]\n"
    )
    parsed = parse(TrainConfig, "train", ["--config", str(file), "--batch-size", "16"])
    assert parsed.network == ConvAutoencoderConfig()
    assert parsed.data.dataset == DatasetConfig("severstal", "data", "400x256")
    assert parsed.optimizer.milestones == (0.5,)
    assert parsed.batch_size == 16


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match="colour"):
        parse(TrainConfig, "train", [*LINE, "--synthesis.colour", "grey"])


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (
            lambda: config(input=InputConfig((256, 400))),
            r"\[256, 400\] is not divisible by 32, .* nearest: \[256, 384\]",
        ),
        (lambda: config(model="conv_ae", input=InputConfig((40, 64))), "not divisible by 16"),
        (lambda: config(num_workers=3), "batch_size 8 does not divide among 3 workers"),
        (lambda: config(run_name="a/b"), "run_name may hold"),
        (lambda: config(num_steps=0), "num_steps must be > 0"),
        (lambda: config(output_uri=""), "output_uri is empty"),
        (lambda: TrainDataConfig(), "give exactly one of data.dataset .* data.nominal"),
        (lambda: DraemConfig(width=0.1), "multiple of 1/16"),
        (lambda: SynthesisConfig(opacity_min=0.9, opacity_max=0.5), "opacities must rise"),
        (lambda: SynthesisConfig(opacity_min=0.0), "opacities must rise"),
        (lambda: SynthesisConfig(perlin_exponents=(3, 1)), "perlin_exponents must rise"),
        (lambda: SynthesisConfig(anomaly_probability=1.5), "anomaly_probability must lie"),
        (lambda: SynthesisConfig(texture_uri=""), "texture_uri is empty"),
        (lambda: LossConfig(gamma=0.5), "gamma must be 0 or >= 1"),
        (lambda: OptimizerConfig(milestones=(0.9, 0.8)), "milestones must rise"),
        (lambda: OptimizerConfig(ema=1.0), "ema must lie"),
    ],
)
def test_wrong_settings_are_named(make: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make()


def test_the_schedule_counts_steps() -> None:
    multistep = OptimizerConfig(lr=1.0)
    rates = [multistep.rate_at(step, 100) for step in (0, 79, 80, 89, 90, 99)]
    assert rates == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04])
    cosine = OptimizerConfig(lr=1.0, schedule="cosine")
    assert [cosine.rate_at(step, 100) for step in (0, 50, 100)] == pytest.approx([1, 0.5, 0])
    assert OptimizerConfig(lr=0.3, schedule="constant").rate_at(99, 100) == 0.3


def test_the_length_of_a_run() -> None:
    assert config(num_epochs=700).total_steps(209) == 700 * 209 // 8
    assert config(num_steps=5).total_steps(209) == 5
    assert config(num_epochs=1).total_steps(3) == 1


def test_settings_load_neither_torch_nor_ray() -> None:
    assert loaded_after(["steelray.reconstruction.config"]).isdisjoint({"torch", "ray", "numpy"})


def test_training_needs_neither_ray_nor_the_scoring_stack() -> None:
    """Training runs on a bare GPU machine with torch, torchvision and numpy only."""
    loaded = loaded_after(
        ["steelray.reconstruction.session", "steelray.reconstruction.synthesis", "steelray.reconstruction.checkpoint"]
    )
    assert loaded.isdisjoint({"ray", "faiss", "timm", "pyarrow", "boto3", "scipy", "sklearn", "jsonargparse"})
