"""Small ablations on folder datasets of generated strips."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from steelray.config import DatasetConfig
from steelray.demo.synthetic import encode, make_strip
from steelray.patchcore.config import CoresetConfig, EmbedderConfig, ScoringConfig
from steelray.research.ablation.results import Row
from steelray.research.ablation.rows import evaluate_row
from steelray.research.ablation.settings import AblationConfig, AblationMember, AblationSetting

SIZE_PX = (64, 512)
NUM_NOMINAL, NUM_ANOMALOUS = 8, 6
EMBEDDER = EmbedderConfig(levels=(2,))


def member(**scoring: object) -> AblationMember:
    """A bank of level 2 of the bundled backbone."""
    return AblationMember(EMBEDDER, CoresetConfig(ratio=0.1), ScoringConfig(**scoring))  # type: ignore[arg-type]


def tread(index: int) -> NDArray[np.float64]:
    """A raised pattern that repeats along the strip, in a direction and at a pitch of its own."""
    rows_HW, columns_HW = np.mgrid[: SIZE_PX[0], : SIZE_PX[1]].astype(float)
    angle = index * np.pi / (NUM_NOMINAL + NUM_ANOMALOUS)
    along_HW = columns_HW * np.cos(angle) + rows_HW * np.sin(angle)
    pattern_HW: NDArray[np.float64] = 45 * np.sin(2 * np.pi * along_HW / (6 + 1.5 * index)) ** 3
    return pattern_HW


def write_dataset(
    root: Path, *, size_px: tuple[int, int] = SIZE_PX, finish: Callable[[int], NDArray[np.float64]] | None = None
) -> DatasetConfig:
    """Write nominal/, anomalous/ and masks/ of small strips; a finish is added to each."""
    for folder in ("nominal", "anomalous", "masks"):
        (root / folder).mkdir(parents=True)
    for index in range(NUM_NOMINAL + NUM_ANOMALOUS):
        nominal = index < NUM_NOMINAL
        strip = make_strip(3, index, defect=None if nominal else "inclusion", size_px=size_px, brightness=120.0)
        pixels_HW = strip.pixels_HW.astype(float) + (finish(index) if finish else 0.0)
        image = encode(np.clip(pixels_HW, 0, 255).astype(np.uint8), "PNG")
        (root / ("nominal" if nominal else "anomalous") / f"{index:02d}.png").write_bytes(image)
        if not nominal:
            (root / "masks" / f"{index:02d}.png").write_bytes(encode(strip.mask_HW.astype(np.uint8) * 255, "PNG"))
    return DatasetConfig("folder", str(root), num_fit=5)


@pytest.fixture(scope="session")
def plain_strips(tmp_path_factory: pytest.TempPathFactory) -> DatasetConfig:
    """Strips of one finish."""
    return write_dataset(tmp_path_factory.mktemp("strips") / "plain")


@pytest.fixture(scope="session")
def tread_strips(tmp_path_factory: pytest.TempPathFactory) -> DatasetConfig:
    """Strips of which each has a tread pattern of its own."""
    return write_dataset(tmp_path_factory.mktemp("strips") / "tread", finish=tread)


def ablation(data: DatasetConfig, folder: Path, *settings: AblationSetting, **changes: object) -> AblationConfig:
    """An ablation with one split."""
    values: dict[str, object] = {"seeds": (0,), "pixel_step": 2, "folds": 2, **changes}
    return AblationConfig(data, settings, str(folder), **values)  # type: ignore[arg-type]


def local_rows(config: AblationConfig, rows: Sequence[Row]) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Evaluate rows one after the other, as `steelray.research.ablation.remote` does side by side."""
    for setting, seed in rows:
        yield (setting, seed), evaluate_row(config, setting, seed, 1)
