"""Object storage and local folders behind one small class: the only user of boto3 and of pyarrow.fs.

A `Location` is a root (s3://bucket/prefix or a folder) and everything is addressed by a key below it. Endpoint and
credentials come from the AWS_* environment variables and are never kept, printed or logged here.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from steelray.config import ConfigError

if TYPE_CHECKING:
    import pyarrow.fs as pafs
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60
CONFLICTS = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")


class ObjectMissing(Exception):
    """There is no object under that key."""


class ObjectChanged(Exception):
    """The object's checksum or length is not the one that was listed."""


@dataclass(frozen=True)
class StoredObject:
    """What a listing knows of one object. `etag` is S3's; for a local file it is made of its time and size."""

    key: str
    etag: str
    size_bytes: int
    last_modified: datetime


def _file_etag(stat: os.stat_result) -> str:
    return hashlib.md5(f"{stat.st_mtime_ns}-{stat.st_size}".encode(), usedforsecurity=False).hexdigest()


def _s3_client(*, patient: bool = True) -> "S3Client":
    import boto3
    from botocore.config import Config

    retries = {"mode": "standard", "total_max_attempts": 8 if patient else 2}
    return boto3.client(
        "s3",
        config=Config(connect_timeout=CONNECT_TIMEOUT_S, read_timeout=READ_TIMEOUT_S, retries=retries),  # type: ignore[arg-type]
    )


def _why(error: Exception) -> str:
    """One line for a storage failure, without anything secret."""
    from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS S3"
    if isinstance(error, NoCredentialsError):
        return "no credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
    if isinstance(error, EndpointConnectionError):
        return f"cannot reach {endpoint}: check AWS_ENDPOINT_URL and the network"
    if isinstance(error, ClientError):
        code = error.response.get("Error", {}).get("Code", "")
        if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "403", "AccessDenied", "ExpiredToken"):
            return f"{endpoint} refuses access ({code}): check the credentials and their rights"
        if code in ("NoSuchBucket", "404"):
            return f"no such bucket at {endpoint}: check its name"
        return f"{endpoint} answers {code}"
    return f"{endpoint}: {type(error).__name__}"


class Location:
    """A place for objects: s3://bucket/prefix or a local folder.

    Instances hold no connection when pickled; each process opens its own on first use.

    Args:
        uri: `s3://bucket/prefix`, `file:///folder` or a local path.

    Raises:
        ConfigError: the URI has another scheme or no bucket.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/") if len(uri) > 1 else uri
        parts = urlsplit(uri)
        self.bucket: str | None = None
        if parts.scheme == "s3":
            if not parts.netloc:
                raise ConfigError(f"{uri}: no bucket in it; write s3://bucket/prefix")
            # not parts.path: a prefix may hold '?' or '#'
            self.bucket, _, prefix = uri.removeprefix("s3://").partition("/")
            self.prefix = prefix.strip("/")
        elif parts.scheme in ("", "file"):
            path = parts.path if parts.scheme == "file" else uri
            self.prefix = str(Path(path).expanduser().absolute())
            self.uri = self.prefix
        else:
            raise ConfigError(f"{uri}: scheme {parts.scheme}:// is not supported; write s3://bucket/prefix or a path")
        self._client: S3Client | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_client": None}

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, key: str) -> "Location":
        return Location(f"{self.uri}/{key}")

    @property
    def client(self) -> "S3Client":
        if self._client is None:
            self._client = _s3_client()
        return self._client

    def full_key(self, key: str) -> str:
        """The key as the store knows it: below this location's prefix."""
        return f"{self.prefix}/{key}" if self.prefix else key

    def _local(self, key: str) -> Path:
        root = Path(self.prefix)
        path = root / key
        if not path.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"{key!r} leads out of {root}")
        return path

    def check_access(self, *, create: bool = False) -> None:
        """Fails within seconds if the place cannot be used, with the reason in one line.

        Args:
            create: the place will be written to: a local folder is made; a bucket must exist.

        Raises:
            ConfigError: missing folder or bucket, wrong credentials, unreachable endpoint.
        """
        if self.bucket is None:
            if create:
                try:
                    Path(self.prefix).mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise ConfigError(f"{self.prefix}: cannot be created ({error.strerror})") from None
            elif not Path(self.prefix).is_dir():
                raise ConfigError(f"{self.prefix}: no such folder")
            return
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            _s3_client(patient=False).list_objects_v2(
                Bucket=self.bucket, Prefix=self.prefix + "/" if self.prefix else "", MaxKeys=1
            )
        except (BotoCoreError, ClientError) as error:
            raise ConfigError(f"s3://{self.bucket}: {_why(error)}") from None

    def list(self) -> Iterator[StoredObject]:
        """All objects below this location, in the store's order (S3 pages of 1000), keys relative to it.

        Raises:
            ConfigError: the place cannot be listed.
        """
        if self.bucket is None:
            yield from self._list_folder(Path(self.prefix))
            return
        from botocore.exceptions import BotoCoreError, ClientError

        prefix = self.prefix + "/" if self.prefix else ""
        try:
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
                for item in page.get("Contents", []):
                    key = item["Key"][len(prefix) :]
                    if key and not key.endswith("/"):
                        yield StoredObject(key, item["ETag"].strip('"'), item["Size"], item["LastModified"])
        except (BotoCoreError, ClientError) as error:
            raise ConfigError(f"{self.uri}: cannot be listed: {_why(error)}") from None

    def _list_folder(self, root: Path) -> Iterator[StoredObject]:
        for folder, _, names in os.walk(root, followlinks=True):
            for name in names:
                path = Path(folder, name)
                try:
                    stat = path.stat()
                except OSError:
                    continue  # a dangling link, or gone since
                key = path.relative_to(root).as_posix()
                yield StoredObject(key, _file_etag(stat), stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))

    def read(self, key: str) -> bytes:
        """The object's bytes. boto3 verifies the store's checksum where there is one.

        Raises:
            ObjectMissing: there is none. OSError: the store failed for another reason, after retries.
        """
        if self.bucket is None:
            try:
                return self._local(key).read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise ObjectMissing(key) from None
        from botocore.exceptions import BotoCoreError, ClientError, FlexibleChecksumError

        try:
            return self.client.get_object(Bucket=self.bucket, Key=self.full_key(key))["Body"].read()
        except FlexibleChecksumError:
            raise ObjectChanged("its body does not match the store's checksum") from None
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in ("NoSuchKey", "404"):
                raise ObjectMissing(key) from None
            raise OSError(f"{self.uri}: {_why(error)}") from None
        except BotoCoreError as error:
            raise OSError(f"{self.uri}: {_why(error)}") from None

    def read_listed(self, key: str, etag: str, size_bytes: int) -> bytes:
        """The object's bytes if they are still those that were listed.

        Raises:
            ObjectMissing, OSError: as `read`. ObjectChanged: length or checksum differ from the listing's.
        """
        body = self.read(key)
        if len(body) != size_bytes:
            raise ObjectChanged(f"has {len(body)} bytes, {size_bytes} were listed")
        # a plain ETag is the body's MD5; a multipart one (with a dash) or an encrypted one is not
        if self.bucket and re.fullmatch(r"[0-9a-f]{32}", etag):
            seen = hashlib.md5(body, usedforsecurity=False).hexdigest()
            if seen != etag:
                raise ObjectChanged(f"its MD5 is {seen}, the listing's ETag {etag}")
        return body

    def write(self, key: str, body: bytes) -> None:
        """Stores an object whole or not at all.

        Raises:
            OSError: the store failed, after retries.
        """
        if self.bucket is None:
            path = self._local(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{os.getpid()}.part")
            part.write_bytes(body)
            part.replace(path)
            return
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self.client.put_object(Bucket=self.bucket, Key=self.full_key(key), Body=body)
        except (BotoCoreError, ClientError) as error:
            raise OSError(f"{self.uri}: {_why(error)}") from None

    def write_if(self, key: str, body: bytes, etag: str | None) -> None:
        """Stores an object only if the present one still has this ETag (None: only if there is none).

        Raises:
            ObjectChanged: somebody else has written it. OSError: as `write`.
        """
        if self.bucket is None:
            import fcntl

            path = self._local(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.with_name(f".{path.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if self.etag(key) != etag:
                    raise ObjectChanged(f"{key} has been written by somebody else")
                self.write(key, body)
            return
        from botocore.exceptions import BotoCoreError, ClientError

        condition: dict[str, str] = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        try:
            self.client.put_object(Bucket=self.bucket, Key=self.full_key(key), Body=body, **condition)  # type: ignore[arg-type]
        except (BotoCoreError, ClientError) as error:
            if isinstance(error, ClientError) and error.response["Error"].get("Code") in CONFLICTS:
                raise ObjectChanged(f"{key} has been written by somebody else") from None
            raise OSError(f"{self.uri}: {_why(error)}") from None

    def etag(self, key: str) -> str | None:
        """The object's ETag, for `write_if`; None if there is no object."""
        if self.bucket is None:
            path = self._local(key)
            return _file_etag(path.stat()) if path.is_file() else None
        from botocore.exceptions import ClientError

        try:
            return self.client.head_object(Bucket=self.bucket, Key=self.full_key(key))["ETag"].strip('"')
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in ("404", "NoSuchKey", "NotFound"):
                return None
            raise OSError(f"{self.uri}: {_why(error)}") from None

    def exists(self, key: str) -> bool:
        """Whether there is an object under that key."""
        return self.etag(key) is not None

    def delete(self, key: str) -> None:
        """Deletes one object; it need not be there."""
        if self.bucket is None:
            self._local(key).unlink(missing_ok=True)
        else:
            self.client.delete_object(Bucket=self.bucket, Key=self.full_key(key))

    def delete_all(self) -> int:
        """Deletes every object below this location; returns how many."""
        keys = [stored.key for stored in self.list()]
        for key in keys:
            self.delete(key)
        return len(keys)

    def arrow(self) -> tuple["pafs.FileSystem", str]:
        """This location for Arrow readers and writers: a filesystem and a path in it."""
        import pyarrow.fs as pafs

        if self.bucket is None:
            return pafs.LocalFileSystem(), self.prefix
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        parts = urlsplit(endpoint) if endpoint else None
        filesystem = pafs.S3FileSystem(
            endpoint_override=parts.netloc if parts else None,
            scheme=parts.scheme if parts else "https",
            region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
            connect_timeout=CONNECT_TIMEOUT_S,
            request_timeout=READ_TIMEOUT_S,
        )
        return filesystem, f"{self.bucket}/{self.prefix}" if self.prefix else self.bucket
