"""The embedded S3 server starts, keeps its data, and leaves the process as it found it."""

import os
from pathlib import Path

import pytest

from steelray.config import ConfigError
from steelray.demo.object_store import ObjectStore, running_object_store, start_object_store
from steelray.storage.location import Location


def test_the_environment_points_at_the_server_while_it_runs(object_store: ObjectStore) -> None:
    for name, value in object_store.environment.items():
        assert os.environ[name] == value
    Location("s3://archive").check_access()


def test_a_restarted_server_holds_what_was_stored_and_the_environment_is_restored(
    tmp_path: Path, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "stale")
    before = dict(os.environ)
    with running_object_store(tmp_path / "store", bucket="strips") as first:
        assert "AWS_SESSION_TOKEN" not in os.environ
        Location("s3://strips/a").write("strip", b"steel")
    assert first.process.poll() is not None
    assert dict(os.environ) == before
    with running_object_store(tmp_path / "store", bucket="strips"):
        assert Location("s3://strips/a").read("strip") == b"steel"
    assert dict(os.environ) == before


def test_a_server_that_cannot_run_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be created"):
        start_object_store(tmp_path / "file")


def test_secrets_are_not_in_the_servers_repr_or_command(object_store: ObjectStore) -> None:
    secret = object_store.environment["AWS_SECRET_ACCESS_KEY"]
    assert secret not in repr(object_store)
    assert not any(secret in word for word in object_store.process.args)  # type: ignore[union-attr]
