"""A local folder as an object store, and the errors and records that every store shares. Knows no S3."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from steelray.config import ConfigError


class ObjectMissing(LookupError):
    """There is no object under that key."""


class ObjectChanged(Exception):
    """The object is not the one that was listed, or that was to be replaced."""


@dataclass(frozen=True)
class StoredObject:
    """One object of a listing. `etag` comes from S3; for a local file it is a digest of its time and size."""

    key: str
    etag: str
    size_bytes: int
    last_modified: datetime


class LocalFolder:
    """Files below a folder, each addressed by its relative path."""

    def __init__(self, path: str) -> None:
        self.root = Path(os.path.normpath(Path(path).expanduser().absolute()))

    def check_access(self, *, create: bool) -> None:
        if create:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"{self.root}: cannot be created ({error.strerror})") from None
        elif not self.root.is_dir():
            raise ConfigError(f"{self.root}: no such folder")

    def list(self) -> Iterator[StoredObject]:
        for folder, subfolders, names in os.walk(self.root, followlinks=True):
            here = Path(folder)
            # a link to one of its own parent folders would be followed for ever
            subfolders[:] = [s for s in subfolders if not here.resolve().is_relative_to((here / s).resolve())]
            for name in names:
                path = here / name
                try:
                    stat = path.stat()
                except OSError:
                    continue  # a dangling link, or deleted meanwhile
                key = path.relative_to(self.root).as_posix()
                if any("\ud800" <= letter <= "\udfff" for letter in key):
                    raise ConfigError(f"{self.root}: file name {key!r} is not UTF-8; rename it")
                yield StoredObject(key, _etag(stat), stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))

    def folders(self) -> tuple[str, ...]:
        return tuple(sorted(path.name for path in self.root.glob("*") if path.is_dir()))

    def read(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
            raise ObjectMissing(key) from None

    def write(self, key: str, body: bytes) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            part.write_bytes(body)
            part.replace(path)
        except OSError:  # such as a full disk
            part.unlink(missing_ok=True)
            raise

    def write_if(self, key: str, body: bytes, etag: str | None) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.etag(key) != etag:
                raise ObjectChanged(f"{key} has been written by somebody else")
            self.write(key, body)

    def etag(self, key: str) -> str | None:
        path = self._path(key)
        return _etag(path.stat()) if path.is_file() else None

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def remove_empty(self) -> None:
        """Remove folders that hold no file, this one included."""
        for folder, _, _ in os.walk(self.root, topdown=False):
            with suppress(OSError):  # not empty
                os.rmdir(folder)

    def _path(self, key: str) -> Path:
        # only the name is checked: the archive's owner may have put links to other places
        path = Path(os.path.normpath(self.root / key))
        if not path.is_relative_to(self.root):
            raise ValueError(f"{key!r} leads out of {self.root}")
        return path


def _etag(stat: os.stat_result) -> str:
    return hashlib.md5(f"{stat.st_mtime_ns}-{stat.st_size}".encode(), usedforsecurity=False).hexdigest()
