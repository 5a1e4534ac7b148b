"""Fixtures for all tests. Nothing is mocked: they run a real S3 server, a real backbone, real files."""

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from steelray.demo.object_store import ObjectStore, running_object_store
from steelray.patchcore.config import EmbedderConfig
from steelray.patchcore.embedder import PatchEmbedder, build_patch_embedder, compile_embedder
from steelray.patchcore.portable_embedder import Embedder, EmbedFunction
from tests.plant import Plant, build_plant

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def single_thread() -> None:
    """Run torch on one thread: tensors as small as those of most tests spend their time waiting for a second one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """Run an S3 server with the bucket `archive`; the AWS_* variables point at it until the session ends."""
    with running_object_store(tmp_path_factory.mktemp("object-store")) as store:
        yield store


@pytest.fixture(scope="session")
def cluster(object_store: ObjectStore) -> Iterator[dict[str, float]]:
    """Ray with two CPUs, started after the store so that its workers reach it."""
    from steelray.cluster.connect import connected

    with connected(num_cpus=2) as resources:
        yield resources


@pytest.fixture
def s3_uri(object_store: ObjectStore) -> str:
    """Return an empty s3:// prefix that no other test uses."""
    return f"s3://archive/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real images: STEELRAY_DATA, or shared/data beside the repository."""
    folder = Path(os.environ.get("STEELRAY_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (folder / "severstal").is_dir():
        pytest.skip(f"no real images in {folder}: set STEELRAY_DATA to a folder with severstal/ and mvtec/ in it")
    return folder


@pytest.fixture(scope="session")
def embedder_config() -> EmbedderConfig:
    """Return settings of the bundled backbone up to level 2: 40 dimensions, a cell per 8 pixels, a few ms per image."""
    return EmbedderConfig(levels=(2,))


@pytest.fixture(scope="session")
def embedder(embedder_config: EmbedderConfig) -> PatchEmbedder:
    """Return the module of `embedder_config`."""
    return build_patch_embedder(embedder_config)


@pytest.fixture(scope="session")
def embed(embedder: PatchEmbedder) -> EmbedFunction:
    """Return `embedder` as a function on NumPy images, in plain PyTorch."""
    return compile_embedder(embedder, backend="eager")


@pytest.fixture(scope="session")
def eager(embedder: PatchEmbedder, embed: EmbedFunction) -> Embedder:
    """Return `embedder` ready to run, in plain PyTorch."""
    return Embedder(embedder.config, embed, embedder.stride_px, embedder.weights_digest)


@pytest.fixture(scope="session")
def built_plant(tmp_path_factory: pytest.TempPathFactory, eager: Embedder) -> Plant:
    """Build a small plant: bank and calibration, no archive yet. Read only."""
    return build_plant(tmp_path_factory.mktemp("plant"), eager)


@pytest.fixture
def plant(built_plant: Plant, tmp_path: Path) -> Plant:
    """Return a copy of it that the test may change."""
    shutil.copytree(built_plant.root, tmp_path / "plant")
    return Plant(tmp_path / "plant")
