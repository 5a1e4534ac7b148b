"""A study that is small enough for tests: generated strips, few steps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from steelray.reconstruction.config import (
    DraemConfig,
    InputConfig,
    OptimizerConfig,
    SynthesisConfig,
    TrainConfig,
    TrainDataConfig,
)
from steelray.research.study.config import StudyConfig

TRAIN = TrainConfig(
    "draem", TrainDataConfig(generated=16), "unused", "study", input=InputConfig((32, 32), "crop"),
    draem=DraemConfig(1 / 16), synthesis=SynthesisConfig(perlin_exponents=(0, 2)), optimizer=OptimizerConfig(lr=1e-3),
    batch_size=2, num_steps=5,
)  # fmt: skip


def small_study(folder: Path, **changes: Any) -> StudyConfig:
    values: dict[str, Any] = {
        "fix": {"loss.w_focal": 5.0}, "mode": "confirm", "confirm_seeds": (0,), "steps_per_epoch": 1, "num_probes": 5,
        "in_process": True,
    }  # fmt: skip
    return replace(StudyConfig(TRAIN, str(folder)), **{**values, **changes})
