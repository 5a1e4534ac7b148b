"""The package that `ray job submit` uploads of this folder, made by Ray's own packaging."""

import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

REPOSITORY = Path(__file__).parent.parent.parent
MAX_BYTES = 5 * 2**20


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    file = tmp_path_factory.mktemp("upload") / "package.zip"
    create_package(str(REPOSITORY), file, include_gitignore=True, include_parent_dir=False, excludes=[".git", ".venv"])
    return zipfile.ZipFile(file)


def test_the_package_and_the_jobs_are_in_it_and_nothing_else(package: zipfile.ZipFile) -> None:
    names = [name for name in package.namelist() if not name.endswith("/")]
    assert {name.partition("/")[0] for name in names} == {"steelray", "jobs"}
    wanted = [f for folder in ("steelray", "jobs") for f in (REPOSITORY / folder).rglob("*") if f.is_file()]
    expected = {str(f.relative_to(REPOSITORY)) for f in wanted if "__pycache__" not in f.parts}
    assert set(names) == expected


def test_it_is_small(package: zipfile.ZipFile) -> None:
    assert sum(entry.compress_size for entry in package.infolist()) < MAX_BYTES
