"""A secret in the environment is written nowhere: not in logs, results, Ray's files or the error of a failed job."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from steelray.demo.object_store import ObjectStore
from steelray.storage.location import Location
from tests.plant import Plant, fill_archive, upload

REPOSITORY = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[Path]:
    """Return the folder of the job's Ray, whose path must be short for its sockets."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        yield Path(folder)


def score(root: str, environment: dict[str, str], ray_folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [
        sys.executable, str(REPOSITORY / "jobs" / "score_archive.py"), "--archive.uri", f"{root}/archive",
        "--model_uri", f"{root}/bank", "--results_uri", f"{root}/results", "--report.gallery", "2",
    ]  # fmt: skip
    settings = {**os.environ, **environment, "RAY_TMPDIR": str(ray_folder), "RAY_BACKEND_LOG_LEVEL": "debug"}
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=300, check=False)


def places_of(needle: str, folder: Path) -> list[str]:
    """Return the files below a folder that hold this text."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and needle.encode() in path.read_bytes():
            found.append(str(path))
    return found


def test_the_secret_of_the_store_is_nowhere(
    plant: Plant, ray_folder: Path, object_store: ObjectStore, s3_uri: str
) -> None:
    fill_archive(plant, 12)
    plant.place("archive").write("line0/dead.jpg", b"")
    secret, key_id = (object_store.environment[name] for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"))
    upload(plant, s3_uri, "bank", "archive")
    done = score(s3_uri, object_store.environment, ray_folder)
    assert done.returncode == 1, "one of 13 objects is more than may be unreadable"
    assert "1 of 13 objects" in done.stderr
    wrong = score(s3_uri, {**object_store.environment, "AWS_SECRET_ACCESS_KEY": "canary" + secret}, ray_folder)
    assert wrong.returncode == 2
    for text in (done.stdout, done.stderr, wrong.stdout, wrong.stderr):
        assert secret not in text
        assert key_id not in text
    results = Location(f"{s3_uri}/results")
    keys = [stored.key for stored in results.list()]
    assert any(key.endswith("report.html") for key in keys)
    for key in keys:
        body = results.read(key)
        assert secret.encode() not in body, key
        assert key_id.encode() not in body, key
    assert list(ray_folder.rglob("*.log")), "Ray has logged there"
    assert places_of(secret, ray_folder) == []
    assert places_of(key_id, ray_folder) == []
