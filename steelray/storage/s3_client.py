"""S3 clients, and their failures in plain words without secrets.

Endpoint and credentials come from the AWS_* environment variables; they are never kept, printed or logged here.
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
"""Read timeout of an access check: a store that never answers is reported in well under 30 s."""

FAILURES = (BotoCoreError, ClientError)
BROKEN_BODY = (FlexibleChecksumError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError)
MISSING = ("NoSuchKey", "NotFound", "404")
CONFLICTS = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
DENIALS = ("AccessDenied", "InvalidObjectState")
"""Codes that mean this one object is unreadable (no permission, or archived) although the credentials are valid."""
REFUSALS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "403", "AccessDenied", "ExpiredToken")


_clients: dict[tuple[bool, tuple[tuple[str, str], ...]], "S3Client"] = {}
_making = threading.Lock()


def s3_client(*, patient: bool = True) -> "S3Client":
    """Return this process's client for the present AWS_* variables; without `patient` it gives up within seconds."""
    settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    with _making:  # creating a client holds the interpreter for 0.1 s: tasks and threads share one
        if (patient, settings) not in _clients:
            _clients[patient, settings] = _new_client(patient=patient)
        return _clients[patient, settings]


def _new_client(*, patient: bool) -> "S3Client":
    import boto3
    from botocore.config import Config

    timeout_s, attempts = (READ_TIMEOUT_S, 7) if patient else (CHECK_TIMEOUT_S, 2)
    # in "standard" mode all threads share one quota of retries, which a burst of SlowDown uses up
    retries = {"mode": "legacy", "total_max_attempts": attempts}
    config = Config(connect_timeout=CONNECT_TIMEOUT_S, read_timeout=timeout_s, retries=retries)  # type: ignore[arg-type]
    try:
        # boto3.client would remember the first credentials of the process
        return boto3.session.Session().client("s3", config=config)
    except ValueError:
        raise ConfigError("AWS_ENDPOINT_URL is not a URL: write http://host:port or https://host") from None


def endpoint() -> str | None:
    """Return the server's URL; None for AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def overloaded(error: Exception) -> bool:
    """Return whether the store exists but cannot serve now: it says so, or drops the connection."""
    if isinstance(error, ConnectionClosedError):
        return True
    answer = error.response.get("ResponseMetadata", {}) if isinstance(error, ClientError) else {}
    return bool(answer.get("HTTPStatusCode", 0) >= 500)


def translated(error: Exception, where: str, key: str = "") -> Exception:
    """Return a failure of the store as `ObjectMissing`, `ObjectChanged` or an `OSError` of one line without secrets.

    The `OSError` is a `PermissionError` if only this object is unreadable.
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
        why = "not a valid bucket name"
    elif code in REFUSALS:
        why = f"{server} refuses access ({code}): check the credentials and their rights"
    elif code == "NoSuchBucket":
        why = f"no such bucket at {server}: check its name"
    else:
        why = f"{server} answers {code}" if code else f"{server} fails ({type(error).__name__})"
    kind = PermissionError if code in DENIALS else OSError
    return kind(f"{where}: {why}")
