"""Scoring needs only read access to the archive and the bank; it writes to the results' bucket alone."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from steelray.demo.object_store import ObjectStore, running_object_store
from steelray.storage.location import Location
from tests.plant import Plant, fill_archive, upload

REPOSITORY = Path(__file__).parent.parent.parent
ACTIONS = "Read:archive,List:archive,Read:results,List:results,Write:results"


def add_user(store: ObjectStore, actions: str) -> dict[str, str]:
    """Add a user with these rights, and return its credentials as AWS_* variables."""
    weed, *arguments = map(str, store.process.args)  # type: ignore[arg-type]
    options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    key_id, secret = secrets.token_hex(8), secrets.token_hex(16)
    subprocess.run(
        [weed, "shell", f"-master=127.0.0.1:{options['-master.port']}", f"-filer=127.0.0.1:{options['-filer.port']}"],
        input=f"s3.configure -user=scorer -access_key={key_id} -secret_key={secret} -actions={actions} -apply\nexit\n",
        text=True,
        capture_output=True,
        check=True,
        timeout=60,
    )
    return {"AWS_ACCESS_KEY_ID": key_id, "AWS_SECRET_ACCESS_KEY": secret}


def test_rights_to_read_the_archive_suffice(plant: Plant, tmp_path: Path) -> None:
    fill_archive(plant, 12)
    # entered in this order so that the variables of the session's store are restored last
    with running_object_store(tmp_path / "store") as store, pytest.MonkeyPatch.context() as monkeypatch:
        # not boto3.client: its session remembers the credentials of an earlier store
        boto3.session.Session().client("s3").create_bucket(Bucket="results")
        upload(plant, "s3://archive", "bank", "archive")
        for name, value in {**store.environment, **add_user(store, ACTIONS)}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(OSError, match="AccessDenied"):
            Location("s3://archive/archive").write("new.jpg", b"1")
        command = [
            sys.executable, str(REPOSITORY / "jobs" / "score_archive.py"), "--archive.uri", "s3://archive/archive",
            "--model_uri", "s3://archive/bank", "--results_uri", "s3://results/line1", "--report.gallery", "2",
        ]  # fmt: skip
        done = subprocess.run(command, env={**os.environ}, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert Location("s3://results/line1").exists("published.json")
