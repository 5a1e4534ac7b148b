"""Places to store objects in."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from steelray.demo.object_store import ObjectStore
from steelray.storage.location import Location


@pytest.fixture(params=["folder", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty place of either kind."""
    return Location(str(tmp_path / "root") if request.param == "folder" else request.getfixturevalue("s3_uri"))


@pytest.fixture(scope="session")
def many(object_store: ObjectStore) -> Location:
    """1001 objects in S3, one more than fits a page of a listing, each in a folder of its own; read only."""
    location = Location(f"s3://archive/{uuid.uuid4().hex}")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: location.write(f"{number:04d}/x", b"x"), range(1001)))
    return location
