"""The JSON file that says what a model is: bank.json, checkpoint.json, ensemble.json."""

import json
from collections.abc import Callable
from typing import Any

from steelray.config import ConfigError

Read = Callable[[str], bytes]
"""Fetches one of a model's files by its name. Raises `LookupError` if there is none."""


def read_description(read: Read, name: str, where: str, kind: str, version: int, remedy: str) -> dict[str, Any]:
    """The fields of a description, of the format version that this code reads.

    Args:
        name: of the file.
        where: the model's URI, for messages.
        kind: what it describes, such as `memory bank`.
        remedy: what to do about one that cannot be used.

    Raises:
        ConfigError: it is missing, is no description, or is of another format version.
    """
    try:
        body = read(name)
    except LookupError:
        raise ConfigError(f"{where}: no {kind} there ({name} is missing): check the URI") from None
    try:
        raw: dict[str, Any] = json.loads(body)
        found = raw["format_version"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{where}/{name}: it describes no {kind}: {remedy}") from None
    if found != version:
        raise ConfigError(f"{where}: {kind} format {found}, this version of steelray reads {version}: {remedy}")
    return raw
