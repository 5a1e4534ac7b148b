"""run.json says what ran, on what, with which versions, and nothing secret."""

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import steelray
from steelray.config import ArchiveConfig
from steelray.provenance import git_commit, hardware, package_versions, run_record

PACKAGE = Path(steelray.__file__).parent


def test_versions_are_those_installed() -> None:
    versions = package_versions()
    assert versions["steelray"] == steelray.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"ray", "torch", "timm", "numpy", "pyarrow", "boto3"} <= set(versions)
    assert {"faiss-gpu", "faiss-cpu"} & set(versions)


def test_hardware_is_this_machines() -> None:
    facts = hardware()
    assert facts["cpu"]
    assert 1 <= facts["cores"] <= (os.cpu_count() or 1)


def commit_seen_from(folder: Path) -> str:
    """Return the commit that a copy of the package in `folder` reports."""
    script = (
        "import steelray; from steelray.provenance import git_commit; print(steelray.__file__); print(git_commit())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    where, commit = done.stdout.splitlines()
    assert where.startswith(str(folder))
    return commit


@pytest.fixture
def package(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / "steelray", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.com", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_is_that_of_the_source(package: Path) -> None:
    git(package, "init", "-q")
    git(package, "add", "steelray")
    git(package, "commit", "-qm", "all")
    commit = git(package, "rev-parse", "HEAD")[:12]
    assert commit_seen_from(package) == commit
    with (package / "steelray" / "config.py").open("a") as source:
        source.write("\n")
    assert commit_seen_from(package) == f"{commit}+"


def test_an_installed_package_does_not_take_the_commit_of_what_surrounds_it(package: Path) -> None:
    git(package, "init", "-q")
    (package / "README").touch()
    git(package, "add", "README")
    git(package, "commit", "-qm", "somebody else's project")
    assert commit_seen_from(package) == "None"


def test_no_commit_outside_a_checkout(package: Path) -> None:
    assert commit_seen_from(package) == "None"
    assert re.fullmatch(r"[0-9a-f]{12}\+?|None", str(git_commit()))


def test_a_record_is_complete_and_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-tell")
    started_at = datetime.now(UTC) - timedelta(seconds=5)
    body = run_record(ArchiveConfig("s3://archive/x"), started_at, counts={"ok": 3}, when=started_at)
    assert b"do-not-tell" not in body
    record = json.loads(body)
    assert record["config"]["uri"] == "s3://archive/x"
    assert record["counts"] == {"ok": 3}
    assert record["duration_s"] == pytest.approx(5, abs=2)
    assert datetime.fromisoformat(record["ended_at"]) > datetime.fromisoformat(record["started_at"])
    assert {"git_commit", "packages", "hardware"} <= set(record)
