"""Clients of an S3 server, and its failures in plain words without secrets.

Endpoint and credentials come from the AWS_* environment variables and are never kept, printed or logged here.
"""

import os
import threading
from typing import TYPE_CHECKING

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    FlexibleChecksumError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from steelray.config import ConfigError
from steelray.storage.local_folder import ObjectChanged, ObjectMissing

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60
CHECK_TIMEOUT_S = 8
"""Read timeout of an access check, so that a store which never answers is found out in well under 30 s."""

FAILURES = (BotoCoreError, ClientError)
BROKEN_BODY = (FlexibleChecksumError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError)
MISSING = ("NoSuchKey", "NotFound", "404")
CONFLICTS = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
DENIALS = ("AccessDenied", "InvalidObjectState")
"""Of one object, while the credentials as such are good: not readable for this user, or archived."""
REFUSALS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "403", "AccessDenied", "ExpiredToken")


_clients: dict[tuple[bool, tuple[tuple[str, str], ...]], "S3Client"] = {}
_making = threading.Lock()


def s3_client(*, patient: bool = True) -> "S3Client":
    """This process's client for the present AWS_* variables; one that is not `patient` gives up within seconds."""
    settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    with _making:  # making one takes 0.1 s of the interpreter: not once per task, and not once per thread
        if (patient, settings) not in _clients:
            _clients[patient, settings] = _new_client(patient=patient)
        return _clients[patient, settings]


def _new_client(*, patient: bool) -> "S3Client":
    import boto3
    from botocore.config import Config

    timeout_s, attempts = (READ_TIMEOUT_S, 7) if patient else (CHECK_TIMEOUT_S, 2)
    # not "standard": the threads of a process would share a quota of retries, which a burst of SlowDown uses up
    retries = {"mode": "legacy", "total_max_attempts": attempts}
    config = Config(connect_timeout=CONNECT_TIMEOUT_S, read_timeout=timeout_s, retries=retries)  # type: ignore[arg-type]
    try:
        # not boto3.client: its session remembers the first credentials of the process
        return boto3.session.Session().client("s3", config=config)
    except ValueError:
        raise ConfigError("AWS_ENDPOINT_URL is not a URL: write http://host:port or https://host") from None


def endpoint() -> str | None:
    """The server's URL; None for AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def overloaded(error: Exception) -> bool:
    """Whether the store is there, but cannot serve at this moment: it says so, or drops the connection."""
    if isinstance(error, ConnectionClosedError):
        return True
    answer = error.response.get("ResponseMetadata", {}) if isinstance(error, ClientError) else {}
    return bool(answer.get("HTTPStatusCode", 0) >= 500)


def translated(error: Exception, where: str, key: str = "") -> Exception:
    """A failure of the store as `ObjectMissing`, `ObjectChanged` or an `OSError` of one line without secrets.

    A `PermissionError` where one object is not to be had.
    """
    code = error.response.get("Error", {}).get("Code", "") if isinstance(error, ClientError) else ""
    if code in MISSING:
        return ObjectMissing(key)
    if code in CONFLICTS:
        return ObjectChanged(f"{key} has been written by somebody else")
    if isinstance(error, FlexibleChecksumError):
        return ObjectChanged("its body does not match the store's checksum")
    server = (endpoint() or "AWS S3").rpartition("@")[2]  # an endpoint may hold a password
    if isinstance(error, NoCredentialsError):
        why = "no credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
    elif isinstance(error, EndpointConnectionError):
        why = f"cannot reach {server}: check AWS_ENDPOINT_URL and the network"
    elif isinstance(error, ParamValidationError):
        why = "not a valid name of a bucket"
    elif code in REFUSALS:
        why = f"{server} refuses access ({code}): check the credentials and their rights"
    elif code == "NoSuchBucket":
        why = f"no such bucket at {server}: check its name"
    else:
        why = f"{server} answers {code}" if code else f"{server} fails ({type(error).__name__})"
    kind = PermissionError if code in DENIALS else OSError
    return kind(f"{where}: {why}")
