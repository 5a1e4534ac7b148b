"""One small Ray cluster for all distributed tests, and a small bank in S3 to score with."""

from dataclasses import dataclass

import pytest

from steelray.cluster.archive_scorer import score_archive
from steelray.cluster.bank_builder import build_memory_bank
from steelray.config import ArchiveConfig, CalibrationConfig, ReportConfig
from steelray.demo.synthetic import DEFECTS, make_strip
from steelray.patchcore.config import BuildMemoryBankConfig, CoresetConfig, EmbedderConfig
from steelray.runs.config import ScoreArchiveConfig
from steelray.runs.run import Run
from steelray.storage.location import Location

SIZE_PX = (64, 256)
EMBEDDER = EmbedderConfig(levels=(2,))


def strip_jpeg(index: int, defect: str | None = None, seed: int = 0) -> bytes:
    """Return a small strip as a JPEG file."""
    return make_strip(seed, index, defect=defect, size_px=SIZE_PX).jpeg()


def build_config(nominal_uri: str, bank_uri: str, **changes: object) -> BuildMemoryBankConfig:
    """Return settings of a small bank."""
    settings: dict[str, object] = {
        "nominal": ArchiveConfig(nominal_uri),
        "bank_uri": bank_uri,
        "embedder": EMBEDDER,
        "coreset": CoresetConfig(ratio=0.05),
        "calibration": CalibrationConfig(held_out_fraction=0.4, false_alarm_rate=0.1, reject_rate=0.1),
        **changes,
    }
    return BuildMemoryBankConfig(**settings)  # type: ignore[arg-type]


@dataclass(frozen=True)
class World:
    """A store with nominal strips, an archive and a bank."""

    nominal_uri: str
    archive_uri: str
    bank_uri: str
    keys: tuple[str, ...]
    defects: dict[str, str]


def silent(line: str) -> None:
    """Ignore a line of progress."""


@pytest.fixture(scope="session")
def world(cluster: dict[str, float]) -> World:
    """Write 24 nominal strips and an archive of 20 with five defects, and build a bank on the cluster."""
    root = "s3://archive/world"
    nominal, archive = Location(f"{root}/nominal"), Location(f"{root}/archive")
    for index in range(24):
        nominal.write(f"{index:02d}.jpg", strip_jpeg(index))
    defects: dict[str, str] = {}
    keys = []
    for index in range(20):
        key = f"line{index % 2}/strip {index:02d}.jpg"
        defect = DEFECTS[index // 4 % 4] if index % 4 == 3 else None
        archive.write(key, strip_jpeg(index, defect, seed=1))
        keys.append(key)
        if defect:
            defects[key] = defect
    build_memory_bank(build_config(nominal.uri, f"{root}/bank"), silent)
    return World(nominal.uri, archive.uri, f"{root}/bank", tuple(sorted(keys)), defects)


@pytest.fixture(scope="session")
def clean_run(world: World) -> Run:
    """Score the archive once, undisturbed, with a replicated bank."""
    summary = score_archive(score_config(world, "s3://archive/world/results"), silent)
    return Run("s3://archive/world/results", summary["run_id"])


def score_config(world: World, results_uri: str, **changes: object) -> ScoreArchiveConfig:
    """Return settings that score the world's archive."""
    settings: dict[str, object] = {
        "archive": ArchiveConfig(world.archive_uri),
        "model_uri": world.bank_uri,
        "results_uri": results_uri,
        "report": ReportConfig(gallery=4),
        **changes,
    }
    return ScoreArchiveConfig(**settings)  # type: ignore[arg-type]
