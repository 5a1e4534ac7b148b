"""Objects in a real S3 server and in a folder: the same behaviour, and one clear line for what goes wrong."""

import os
import pickle
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.config import Config

from steelray.config import ConfigError
from steelray.demo.object_store import ObjectStore
from steelray.storage import s3_client
from steelray.storage.location import Location, ObjectChanged, ObjectMissing
from tests.awkward import AWKWARD_KEYS
from tests.fakes import faulty_store


@pytest.fixture
def no_aws_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leave no trace of AWS settings on this machine."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


def test_objects_come_back_as_they_were_written(location: Location) -> None:
    for key in AWKWARD_KEYS:
        location.write(key, key.encode())
    listed = {stored.key: stored for stored in location.list()}
    assert set(listed) == set(AWKWARD_KEYS)
    for key, stored in listed.items():
        body = key.encode()
        assert location.exists(key)
        assert stored.size_bytes == len(body)
        assert location.read(key) == location.read_listed(key, stored.etag, stored.size_bytes) == body


def test_a_missing_object_is_missing(location: Location) -> None:
    location.write("there", b"")
    assert location.read("there") == b""
    assert not location.exists("gone")
    for key in ("gone", "there/below"):
        with pytest.raises(ObjectMissing):
            location.read(key)


def test_an_object_deleted_after_listing_is_missing(location: Location) -> None:
    location.write("strip.jpg", b"steel")
    [stored] = location.list()
    location.delete("strip.jpg")
    location.delete("strip.jpg")
    with pytest.raises(ObjectMissing):
        location.read_listed(stored.key, stored.etag, stored.size_bytes)


@pytest.mark.parametrize("body", [b"other", b"longer than before"])
def test_an_object_changed_after_listing_is_noticed(location: Location, body: bytes) -> None:
    location.write("strip.jpg", b"steel")
    [stored] = location.list()
    location.write("strip.jpg", body)
    while location.etag("strip.jpg") == stored.etag:  # the clock of a folder's file times has not ticked yet
        location.write("strip.jpg", body)
    with pytest.raises(ObjectChanged):
        location.read_listed(stored.key, stored.etag, stored.size_bytes)


def test_no_key_leads_out_of_the_location(location: Location) -> None:
    inside = location / "inside"
    location.write("secret", b"secret")
    for key in ("../secret", "a/../../secret", "/etc/hostname" if location.bucket is None else ".."):
        with pytest.raises(ObjectMissing):
            inside.read(key)
        with pytest.raises(ValueError, match="leads out of"):
            inside.write(key, b"overwritten")
    assert location.read("secret") == b"secret"


def test_a_conditional_write_lets_only_one_through(location: Location) -> None:
    location.write_if("pointer", b"1", None)
    with pytest.raises(ObjectChanged):
        location.write_if("pointer", b"2", None)
    etag = location.etag("pointer")
    location.write_if("pointer", b"22", etag)
    with pytest.raises(ObjectChanged):
        location.write_if("pointer", b"3", etag)
    assert location.read("pointer") == b"22"


def test_delete_all_stays_below_the_location(location: Location) -> None:
    for key in ("a/1", "a/b/2", "ab/3"):
        location.write(key, b"x")
    assert (location / "a").delete_all() == 2
    assert [stored.key for stored in location.list()] == ["ab/3"]


def test_folders_are_those_directly_below(location: Location) -> None:
    assert location.folders() == ()
    for key in ("b/1", "b/2", "a/deep/3", "file"):
        location.write(key, b"x")
    assert location.folders() == ("a", "b")
    assert (location / "a").folders() == ("deep",)


def test_many_folders_come_in_several_pages(many: Location) -> None:
    assert many.folders() == tuple(f"{number:04d}" for number in range(1001))


def test_a_url_names_the_object_and_no_secret(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = "line 1/<b>#?%20.jpg"
    server = object_store.endpoint_url.removeprefix("http://")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:password@{server}")
    url = Location("s3://archive/line").url(key)
    assert url.startswith(f"http://{server}/archive/line/line%201/")
    assert unquote(url).endswith(key)
    assert Location(str(tmp_path)).url(key).startswith("file:///")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert Location("s3://archive/line").url("a.jpg") == "https://s3.amazonaws.com/archive/line/a.jpg"


@pytest.mark.parametrize(
    ("key", "kind"),
    [("report.html", "text/html"), ("a.png", "image/png"), ("run.json", "application/json"), ("odd", "octet-stream")],
)
def test_a_browser_is_told_what_it_gets(s3_uri: str, key: str, kind: str) -> None:
    location = Location(s3_uri)
    location.write(key, b"x")
    assert kind in location.client.head_object(Bucket="archive", Key=location.full_key(key))["ContentType"]


def test_a_pickled_location_works_and_holds_no_secret(s3_uri: str, object_store: ObjectStore) -> None:
    location = Location(s3_uri)
    location.write("strip", b"steel")
    pickled = pickle.dumps(location)
    assert object_store.environment["AWS_SECRET_ACCESS_KEY"].encode() not in pickled
    assert object_store.environment["AWS_ACCESS_KEY_ID"].encode() not in pickled
    assert pickle.loads(pickled).read("strip") == b"steel"  # noqa: S301 (made above)


def test_arrow_reads_and_writes_at_the_location(location: Location) -> None:
    location.check_access(create=True)
    filesystem, root = (location / "run 1").arrow()
    filesystem.create_dir(root)
    pq.write_table(pa.table({"x": [1, 2]}), f"{root}/part.parquet", filesystem=filesystem)
    assert [stored.key for stored in location.list()] == ["run 1/part.parquet"]
    assert pq.read_table(pa.BufferReader(location.read("run 1/part.parquet"))).column("x").to_pylist() == [1, 2]


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("s3://", "no bucket"),
        ("s3:///prefix", "no bucket"),
        ("gs://bucket/x", "scheme gs:// is not supported"),
        ("s3://key:secret@bucket/x", "takes no credentials"),
    ],
)
def test_a_uri_that_names_no_place_is_refused(uri: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        Location(uri)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["run:1", "a[b", "what?", "50%", "#7"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    Location(f"{tmp_path}/{name}").write("key", b"x")
    assert (tmp_path / name / "key").read_bytes() == b"x"
    assert Location(f"file://{tmp_path}/{name}").read("key") == b"x"


def test_a_prefix_may_hold_signs_of_a_url(s3_uri: str) -> None:
    Location(f"{s3_uri}/what?#50%25").write("key", b"x")
    assert [stored.key for stored in Location(s3_uri).list()] == ["what?#50%25/key"]


def test_links_are_followed_but_not_for_ever(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "strip").write_bytes(b"steel")
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "archive" / "round").symlink_to(tmp_path / "archive")
    (tmp_path / "archive" / "dangling").symlink_to(tmp_path / "nowhere")
    location = Location(str(tmp_path / "archive"))
    assert [stored.key for stored in location.list()] == ["linked/strip"]
    assert location.read("linked/strip") == b"steel"


def test_a_file_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"str\xfcp.jpg")).write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"'str\\udcfcp.jpg' is not UTF-8"):
        list(Location(str(tmp_path)).list())


class TestAccessIsChecked:
    """Each failure is one line that names place and remedy, and comes in well under 30 s."""

    def _refusal(self, uri: str, within_s: float = 28) -> str:
        start_s = time.monotonic()
        with pytest.raises(ConfigError) as caught:
            Location(uri).check_access()
        assert time.monotonic() - start_s < within_s
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_missing_folder(self, tmp_path: Path) -> None:
        assert self._refusal(str(tmp_path / "none")) == f"{tmp_path / 'none'}: no such folder"

    def test_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="cannot be created"):
            Location(str(tmp_path / "file" / "below")).check_access(create=True)

    @pytest.mark.parametrize(
        ("uri", "setting", "value", "complaint"),
        [
            ("s3://no-such-bucket/x", "AWS_REGION", "us-east-1", "no such bucket"),
            ("s3://No Such_Bucket!/x", "AWS_REGION", "us-east-1", "not a valid bucket name"),
            ("s3://archive/x", "AWS_SECRET_ACCESS_KEY", "wrong-secret-value", "check the credentials"),
            ("s3://archive/x", "AWS_ACCESS_KEY_ID", "nobody", "check the credentials"),
            ("s3://archive/x", "AWS_ENDPOINT_URL", "http://127.0.0.1:1", "cannot reach http://127.0.0.1:1"),
            ("s3://archive/x", "AWS_ENDPOINT_URL", "nonsense", "is not a URL"),
        ],
    )
    def test_place_that_the_store_refuses(
        self, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch,
        uri: str, setting: str, value: str, complaint: str,
    ) -> None:  # fmt: skip
        monkeypatch.setenv(setting, value)
        line = self._refusal(uri)
        assert complaint in line
        assert "wrong-secret-value" not in line
        assert object_store.environment["AWS_ACCESS_KEY_ID"] not in line

    @pytest.mark.usefixtures("no_aws_settings")
    def test_no_credentials(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        assert "set AWS_ACCESS_KEY_ID" in self._refusal("s3://archive/x")

    def test_endpoint_that_never_answers(self, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
        shorter = 8
        monkeypatch.setattr(s3_client, "CHECK_TIMEOUT_S", s3_client.CHECK_TIMEOUT_S / shorter)
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:password@127.0.0.1:{port}")
            line = self._refusal("s3://archive/x", within_s=28 / shorter)
        assert f"127.0.0.1:{port}" in line
        assert "password" not in line

    def test_working_place(self, s3_uri: str, tmp_path: Path) -> None:
        Location(s3_uri).check_access()
        Location(str(tmp_path / "new")).check_access(create=True)
        assert (tmp_path / "new").is_dir()

    def test_listing_a_missing_bucket(self, object_store: ObjectStore) -> None:
        with pytest.raises(ConfigError, match=r"cannot be listed.*no such bucket"):
            list(Location("s3://no-such-bucket").list())


class TestDamagedAnswers:
    """Through a proxy that breaks the answers of the real store."""

    @pytest.fixture
    def break_next(self, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str | None]]:
        """Faults of the next GET answers, one after the other; then all is well."""
        faults: list[str | None] = []

        def fault_of(method: str, path: str) -> str | None:
            return faults.pop(0) if method == "GET" and faults else None

        with faulty_store(object_store.endpoint_url, fault_of) as url:
            monkeypatch.setenv("AWS_ENDPOINT_URL", url)
            yield faults

    @pytest.mark.parametrize("fault", ["corrupt", "truncate", "slow_down"])
    def test_a_passing_fault_is_survived(self, s3_uri: str, break_next: list[str | None], fault: str) -> None:
        location = Location(s3_uri)
        location.write("strip", b"steel" * 1000)
        break_next[:] = [fault]
        assert location.read("strip") == b"steel" * 1000
        assert break_next == []

    def test_a_busy_store_is_checked_again(self, object_store: ObjectStore, break_next: list[str | None]) -> None:
        break_next[:] = ["slow_down"] * 4
        Location("s3://archive/x").check_access()
        assert break_next == []

    def test_a_lasting_corruption_is_noticed(self, s3_uri: str, break_next: list[str | None]) -> None:
        location = Location(s3_uri)
        location.write("strip", b"steel" * 1000)
        break_next[:] = ["corrupt"] * 9
        with pytest.raises(ObjectChanged, match="checksum"):
            location.read("strip")

    def test_corruption_is_noticed_without_a_stored_checksum(self, s3_uri: str, break_next: list[str | None]) -> None:
        old = boto3.client("s3", config=Config(request_checksum_calculation="when_required"))
        location = Location(s3_uri)
        old.put_object(Bucket="archive", Key=location.full_key("strip"), Body=b"steel" * 1000)
        old.close()
        [stored] = location.list()
        break_next[:] = ["corrupt"] * 9
        with pytest.raises(ObjectChanged, match="MD5"):
            location.read_listed(stored.key, stored.etag, stored.size_bytes)

    def test_a_body_that_always_breaks_off_is_a_failure_of_the_store(
        self, s3_uri: str, break_next: list[str | None]
    ) -> None:
        location = Location(s3_uri)
        location.write("strip", b"steel" * 1000)
        break_next[:] = ["truncate"] * 9
        with pytest.raises(OSError, match="fails"):
            location.read("strip")


def test_threads_and_locations_of_a_process_share_one_client(s3_uri: str) -> None:
    """A client holds the interpreter for 0.1 s while it is made; one per thread made reading four times slower."""
    Location(s3_uri).write("strip", b"steel")
    with ThreadPoolExecutor(8) as pool:
        places = list(pool.map(lambda _: Location(s3_uri), range(16)))
        assert set(pool.map(lambda place: place.read("strip"), places)) == {b"steel"}
    assert len({id(place.client) for place in places}) == 1


def test_other_credentials_make_another_client(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Location(s3_uri)
    before.write("a", b"1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ConfigError, match="refuses access"):
        Location(s3_uri).check_access()
    assert before.read("a") == b"1"
