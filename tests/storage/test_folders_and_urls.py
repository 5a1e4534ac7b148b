from pathlib import Path
from urllib.parse import unquote

import pytest

from steelray.demo.object_store import ObjectStore
from steelray.storage.location import Location
from tests.fakes import faulty_store


@pytest.fixture(params=["s3", "folder"])
def location(request: pytest.FixtureRequest, object_store: ObjectStore, tmp_path: Path) -> Location:
    return Location(str(tmp_path / "place") if request.param == "folder" else f"s3://archive/{tmp_path.name}")


def test_folders_are_those_directly_below(location: Location) -> None:
    assert location.folders() == ()
    for key in ("b/1", "b/2", "a/deep/3", "file"):
        location.write(key, b"x")
    assert location.folders() == ("a", "b")
    assert (location / "a").folders() == ("deep",)


def test_many_folders_come_in_several_pages(s3_uri: str) -> None:
    location = Location(s3_uri)
    names = [f"{number:04d}" for number in range(1001)]
    for name in names:
        location.write(f"{name}/x", b"")
    assert location.folders() == tuple(names)


def test_a_url_names_the_object_and_no_secret(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = "line 1/<b>#?%20.jpg"
    server = object_store.endpoint_url.removeprefix("http://")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:password@{server}")
    url = Location("s3://archive/night").url(key)
    assert url.startswith(f"http://{server}/archive/night/line%201/")
    assert unquote(url).endswith(key)
    assert Location(str(tmp_path)).url(key).startswith("file:///")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert Location("s3://archive/night").url("a.jpg") == "https://s3.amazonaws.com/archive/night/a.jpg"


def test_a_browser_is_told_what_it_gets(s3_uri: str) -> None:
    location = Location(s3_uri)
    kinds = {"report.html": "text/html", "a.png": "image/png", "run.json": "application/json", "odd": "octet-stream"}
    for key, kind in kinds.items():
        location.write(key, b"x")
        head = location.client.head_object(Bucket="archive", Key=location.full_key(key))
        assert kind in head["ContentType"]


def test_a_busy_store_is_asked_again(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = ["slow_down"] * 4
    with faulty_store(object_store.endpoint_url, lambda method, path: busy.pop() if busy else None) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        Location("s3://archive/x").check_access()
    assert not busy
