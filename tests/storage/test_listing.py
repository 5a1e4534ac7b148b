"""An archive is listed as one table in one order, or refused in one line."""

import os
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from steelray.config import ArchiveConfig, ConfigError
from steelray.demo.object_store import ObjectStore
from steelray.schema import MANIFEST
from steelray.storage.listing import list_archive
from steelray.storage.location import Location
from tests.awkward import AWKWARD_KEYS


def keys_of(uri: str, **settings: object) -> list[str]:
    return list_archive(ArchiveConfig(uri, **settings)).column("image_key").to_pylist()  # type: ignore[arg-type]


def test_every_object_is_listed_once_in_bytewise_order(location: Location) -> None:
    for key in AWKWARD_KEYS:
        location.write(key, key.encode())
    in_order = sorted(AWKWARD_KEYS, key=str.encode)
    table = list_archive(ArchiveConfig(location.uri))
    assert table.schema == MANIFEST
    assert table.column("image_key").to_pylist() == in_order
    assert table.column("image_index").to_pylist() == list(range(len(in_order)))
    assert table.column("size_bytes").to_pylist() == [len(key.encode()) for key in in_order]
    assert list_archive(ArchiveConfig(location.uri)).equals(table)
    assert keys_of(location.uri, limit=2) == in_order[:2]


def test_more_than_a_page_of_objects_is_listed_and_counted(many: Location) -> None:
    assert keys_of(many.uri) == [f"{number:04d}/x" for number in range(1001)]
    assert len(keys_of(many.uri, limit=1_000)) == 1_000


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


def test_an_archive_without_a_match_is_refused(location: Location) -> None:
    location.check_access(create=True)
    with pytest.raises(ConfigError, match="the archive is empty; check the prefix"):
        keys_of(location.uri)
    location.write("a.png", b"x")
    with pytest.raises(ConfigError, match=r"none of its 1 objects match glob '\*\.jpg'"):
        keys_of(location.uri, glob="*.jpg")


def test_a_place_that_cannot_be_listed_is_refused(object_store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such bucket"):
        keys_of("s3://no-such-bucket/prefix")
    with pytest.raises(ConfigError, match="no such folder"):
        keys_of(str(tmp_path / "none"))


def test_the_real_archive_is_listed_whole(real_data: Path) -> None:
    folder = real_data / "severstal" / "test_images"
    assert len(keys_of(str(folder))) == len(list(folder.iterdir())) == 46
