"""`Location`: objects in S3 or in a local folder, addressed by keys below a root.

No other module uses pyarrow.fs or `s3_client`.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from mimetypes import guess_type
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from steelray.config import ConfigError
from steelray.storage.local_folder import LocalFolder, ObjectChanged, ObjectMissing, StoredObject
from steelray.storage.s3_client import (
    BROKEN_BODY,
    CONNECT_TIMEOUT_S,
    FAILURES,
    READ_TIMEOUT_S,
    endpoint,
    overloaded,
    s3_client,
    translated,
)

if TYPE_CHECKING:
    import pyarrow.fs as pafs
    from mypy_boto3_s3 import S3Client

__all__ = ["Location", "ObjectChanged", "ObjectMissing", "StoredObject"]

READ_ATTEMPTS = 3
"""Attempts to read a body that breaks off or arrives damaged; boto3's own retries do not cover these."""


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
        self.bucket: str | None = None
        scheme, separator, rest = uri.partition("://")
        if separator and scheme == "s3":
            self.bucket, _, prefix = rest.partition("/")
            self.prefix = prefix.strip("/")
            if "@" in self.bucket:
                raise ConfigError("an s3:// URI takes no credentials: they belong in the AWS_* variables")
            if not self.bucket:
                raise ConfigError(f"{uri}: names no bucket; write s3://bucket/prefix")
        elif separator and scheme != "file":
            raise ConfigError(f"{uri}: scheme {scheme}:// is not supported; write s3://bucket/prefix or a path")
        else:
            self._folder = LocalFolder(rest if separator else uri)
            self.uri = self.prefix = str(self._folder.root)
        self._client: S3Client | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_client": None}

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, key: str) -> "Location":
        below = Location(f"{self.uri}/{key}")
        below._client = self._client
        return below

    @property
    def client(self) -> "S3Client":
        if self._client is None:
            self._client = s3_client()
        return self._client

    def full_key(self, key: str) -> str:
        """Return the store's own key: `key` below this prefix. Raises `ValueError` if it leads out of the prefix."""
        if ".." in key.split("/"):  # AWS takes ".." literally, but other stores follow it
            raise ValueError(f"{key!r} leads out of {self.uri}")
        return f"{self.prefix}/{key}" if self.prefix else key

    def check_access(self, *, create: bool = False) -> None:
        """Fail within seconds, with the reason in one line, if the place cannot be used.

        Args:
            create: create a local folder that is missing; a bucket must exist all the same.

        Raises:
            ConfigError: missing folder or bucket, wrong credentials, unreachable endpoint.
        """
        if self.bucket is None:
            self._folder.check_access(create=create)
            return
        for patient in (False, True):
            try:
                s3_client(patient=patient).list_objects_v2(Bucket=self.bucket, Prefix=self.full_key(""), MaxKeys=1)
                return
            except FAILURES as error:
                if patient or not overloaded(error):  # a busy store gets a second, patient attempt
                    raise ConfigError(str(translated(error, f"s3://{self.bucket}"))) from None

    def list(self) -> Iterator[StoredObject]:
        """Yield every object below this location in the store's order, with keys relative to it.

        Raises:
            ConfigError: the place cannot be listed.
        """
        if self.bucket is None:
            yield from self._folder.list()
            return
        prefix = self.full_key("")
        try:
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
                for item in page.get("Contents", []):
                    key = item["Key"][len(prefix) :]
                    if key and not key.endswith("/"):
                        yield StoredObject(key, item["ETag"].strip('"'), item["Size"], item["LastModified"])
        except FAILURES as error:
            raise ConfigError(f"cannot be listed: {translated(error, self.uri)}") from None

    def folders(self) -> tuple[str, ...]:
        """Return the names of the folders directly below, sorted. Raises `ConfigError` like `list`."""
        if self.bucket is None:
            return self._folder.folders()
        prefix = self.full_key("")
        names: set[str] = set()
        try:
            pages = self.client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=prefix, Delimiter="/"):
                names |= {part["Prefix"][len(prefix) : -1] for part in page.get("CommonPrefixes", [])}
        except FAILURES as error:
            raise ConfigError(f"cannot be listed: {translated(error, self.uri)}") from None
        return tuple(sorted(names))

    def url(self, key: str) -> str:
        """Return the URL at which an authorised browser finds the object; it holds no credentials."""
        if self.bucket is None:
            return (self._folder.root / key).as_uri()
        parts = urlsplit(endpoint() or "https://s3.amazonaws.com")
        server = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{server}/{quote(self.bucket)}/{quote(self.full_key(key))}"

    def read(self, key: str) -> bytes:
        """Return the object's bytes; boto3 verifies the store's checksum where there is one.

        Raises:
            ObjectMissing: there is no such object. OSError: the store failed for another reason, after retries.
        """
        if self.bucket is None:
            return self._folder.read(key)
        try:
            full_key = self.full_key(key)
        except ValueError:
            raise ObjectMissing(key) from None
        for attempt in range(1, READ_ATTEMPTS + 1):
            try:
                return self.client.get_object(Bucket=self.bucket, Key=full_key)["Body"].read()
            except FAILURES as error:
                if attempt == READ_ATTEMPTS or not isinstance(error, BROKEN_BODY):
                    raise translated(error, self.uri, key) from None
        raise AssertionError

    def read_listed(self, key: str, etag: str, size_bytes: int) -> bytes:
        """Return the object's bytes if they are still those that were listed.

        Raises:
            ObjectMissing, OSError: like `read`. ObjectChanged: length or checksum differ from the listing's.
        """
        body = self.read(key)
        if len(body) != size_bytes:
            raise ObjectChanged(f"has {len(body)} bytes, but {size_bytes} were listed")
        if self.bucket is None:
            if self.etag(key) != etag:
                raise ObjectChanged("has been written since it was listed")
        elif re.fullmatch(r"[0-9a-f]{32}", etag):
            # a plain ETag is the body's MD5; a multipart one (with a dash) or an encrypted one is not
            seen = hashlib.md5(body, usedforsecurity=False).hexdigest()
            if seen != etag:
                raise ObjectChanged(f"its MD5 is {seen}, but the listing's ETag is {etag}")
        return body

    def write(self, key: str, body: bytes) -> None:
        """Store an object, whole or not at all.

        Raises:
            OSError: the store failed, after retries.
        """
        if self.bucket is None:
            self._folder.write(key, body)
            return
        try:
            kind = guess_type(key)[0] or "application/octet-stream"
            self.client.put_object(Bucket=self.bucket, Key=self.full_key(key), Body=body, ContentType=kind)
        except FAILURES as error:
            raise translated(error, self.uri, key) from None

    def write_if(self, key: str, body: bytes, etag: str | None) -> None:
        """Store an object only if the present one still has this ETag (None: only if there is none).

        Raises:
            ObjectChanged: somebody else has written it. OSError: like `write`.
        """
        if self.bucket is None:
            self._folder.write_if(key, body, etag)
            return
        condition: dict[str, str] = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        try:
            self.client.put_object(Bucket=self.bucket, Key=self.full_key(key), Body=body, **condition)  # type: ignore[arg-type]
        except FAILURES as error:
            raise translated(error, self.uri, key) from None

    def etag(self, key: str) -> str | None:
        """Return the object's ETag, for `write_if`; None if there is no object."""
        if self.bucket is None:
            return self._folder.etag(key)
        try:
            return self.client.head_object(Bucket=self.bucket, Key=self.full_key(key))["ETag"].strip('"')
        except FAILURES as error:
            if isinstance(failure := translated(error, self.uri, key), ObjectMissing):
                return None
            raise failure from None

    def exists(self, key: str) -> bool:
        """Return whether there is an object under this key."""
        return self.etag(key) is not None

    def delete(self, key: str) -> None:
        """Delete one object; it need not exist."""
        if self.bucket is None:
            self._folder.delete(key)
            return
        try:
            self.client.delete_object(Bucket=self.bucket, Key=self.full_key(key))
        except FAILURES as error:
            raise translated(error, self.uri, key) from None

    def delete_all(self) -> int:
        """Delete every object below this location and return how many there were."""
        keys = [stored.key for stored in self.list()]
        for key in keys:
            self.delete(key)
        if self.bucket is None:
            self._folder.remove_empty()
        return len(keys)

    def arrow(self) -> tuple["pafs.FileSystem", str]:
        """Return this location for Arrow readers and writers: a filesystem and a path in it."""
        import pyarrow.fs as pafs

        if self.bucket is None:
            return pafs.LocalFileSystem(), self.prefix
        server = endpoint()
        parts = urlsplit(server) if server else None
        filesystem = pafs.S3FileSystem(
            endpoint_override=parts.netloc if parts else None,
            scheme=parts.scheme if parts else "https",
            region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
            connect_timeout=CONNECT_TIMEOUT_S,
            request_timeout=READ_TIMEOUT_S,
        )
        return filesystem, f"{self.bucket}/{self.prefix}" if self.prefix else self.bucket
