"""An archive becomes one table in one order, or one clear line."""

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from steelray.config import ArchiveConfig, ConfigError
from steelray.demo.object_store import ObjectStore
from steelray.schema import MANIFEST
from steelray.storage.listing import list_archive
from steelray.storage.location import Location
from tests.awkward import AWKWARD_KEYS


@pytest.fixture(params=["folder", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "folder" else request.getfixturevalue("s3_uri")


def keys_of(uri: str, **settings: object) -> list[str]:
    return list_archive(ArchiveConfig(uri, **settings)).column("image_key").to_pylist()  # type: ignore[arg-type]


def test_every_object_is_listed_once_in_bytewise_order(uri: str) -> None:
    location = Location(uri)
    for key in AWKWARD_KEYS:
        location.write(key, key.encode())
    table = list_archive(ArchiveConfig(uri))
    assert table.schema == MANIFEST
    assert table.column("image_key").to_pylist() == sorted(AWKWARD_KEYS, key=str.encode)
    assert table.column("image_index").to_pylist() == list(range(len(AWKWARD_KEYS)))
    assert table.column("size_bytes").to_pylist() == [len(key.encode()) for key in sorted(AWKWARD_KEYS, key=str.encode)]
    assert list_archive(ArchiveConfig(uri)).equals(table)


def test_more_than_a_page_of_objects_is_listed_and_counted(s3_uri: str) -> None:
    location = Location(s3_uri)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: location.write(f"{number}.jpg", b"x"), range(1_003)))
    assert keys_of(s3_uri) == sorted(f"{number}.jpg" for number in range(1_003))
    assert len(keys_of(s3_uri, limit=1_001)) == 1_001


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*", ["a/1.jpg", "a/2.png", "b/3.jpg", "b/c/4.JPG", "t[1].jpg"]),
        ("*.jpg", ["a/1.jpg", "b/3.jpg", "t[1].jpg"]),
        ("b/*", ["b/3.jpg", "b/c/4.JPG"]),
        ("*.[jJ][pP][gG]", ["a/1.jpg", "b/3.jpg", "b/c/4.JPG", "t[1].jpg"]),
        ("t[[]1].jpg", ["t[1].jpg"]),
    ],
)
def test_a_glob_chooses_keys(tmp_path: Path, glob: str, expected: list[str]) -> None:
    for key in ("a/1.jpg", "a/2.png", "b/3.jpg", "b/c/4.JPG", "t[1].jpg"):
        Location(str(tmp_path)).write(key, b"x")
    assert keys_of(str(tmp_path), glob=glob) == expected


def test_a_cut_off_makes_a_rerun_see_the_same_archive(tmp_path: Path) -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    for hours in (-1, 0, 1):
        path = tmp_path / f"{hours}.jpg"
        path.write_bytes(b"x")
        os.utime(path, (0, (noon + timedelta(hours=hours)).timestamp()))
    assert keys_of(str(tmp_path), modified_before=noon) == ["-1.jpg"]
    assert keys_of(str(tmp_path), modified_after=noon) == ["0.jpg", "1.jpg"]
    assert keys_of(str(tmp_path), modified_after=noon.replace(tzinfo=None)) == ["0.jpg", "1.jpg"]
    in_tokyo = noon.astimezone(timezone(timedelta(hours=9)))
    assert keys_of(str(tmp_path), modified_before=in_tokyo) == ["-1.jpg"]


def test_a_cut_off_works_on_the_times_of_the_store(s3_uri: str) -> None:
    Location(s3_uri).write("now.jpg", b"x")
    now = datetime.now(UTC)
    assert keys_of(s3_uri, modified_after=now - timedelta(minutes=5)) == ["now.jpg"]
    with pytest.raises(ConfigError, match="none of its 1 objects match"):
        keys_of(s3_uri, modified_before=now - timedelta(minutes=5))


def test_a_limit_takes_the_first_in_key_order(uri: str) -> None:
    location = Location(uri)
    for key in ("c", "a", "b"):
        location.write(key, b"x")
    assert keys_of(uri, limit=2) == ["a", "b"]


def test_an_empty_archive_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="the archive is empty; check the prefix"):
        keys_of(uri)


def test_a_glob_that_matches_nothing_is_named(uri: str) -> None:
    Location(uri).write("a.png", b"x")
    with pytest.raises(ConfigError, match=r"none of its 1 objects match glob '\*\.jpg'"):
        keys_of(uri, glob="*.jpg")


def test_a_place_that_cannot_be_listed_is_refused(object_store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such bucket"):
        keys_of("s3://no-such-bucket/prefix")
    with pytest.raises(ConfigError, match="no such folder"):
        keys_of(str(tmp_path / "none"))


def test_the_real_archive_is_listed_whole(real_data: Path) -> None:
    folder = real_data / "severstal" / "test_images"
    assert len(keys_of(str(folder))) == len(list(folder.iterdir())) == 46
