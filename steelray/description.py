"""Read and write the JSON files that steelray keeps: each is one plain dataclass.

pydantic is imported only where a file is read: training on a machine without it, and `--help`, do not need it.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from steelray.config import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic import TypeAdapter, ValidationError

Read = Callable[[str], bytes]
"""Fetches one of a model's files by its name. Raises `LookupError` if there is none."""
Kind = TypeVar("Kind")
SHOWN_CHARACTERS = 40
"""Longest wrong value that a message repeats."""
_adapters: dict[type, Any] = {}


def fetch(read: Read, name: str, where: str, kind: str) -> bytes:
    """Fetch the description of a model.

    Args:
        where: the model's URI, for messages.
        kind: kind of model, such as `memory bank`, for messages.

    Raises:
        ConfigError: it is missing.
    """
    try:
        return read(name)
    except LookupError:
        raise ConfigError(f"{where}: no {kind} there ({name} is missing): check the URI") from None


def parse(kind: type[Kind], body: bytes, where: str, remedy: str) -> Kind:
    """Read a JSON file into a dataclass.

    Unknown fields are ignored, absent ones take their default. Values must have the type of their field, numbers must
    be finite, and the checks of nested settings apply.

    Args:
        kind: a dataclass; a `format_version` in it is a `Literal` of the versions that this code reads.
        where: the file's URI, for messages.
        remedy: advice to the user about a file that cannot be used.

    Raises:
        ConfigError: the file is cut off, or a field is missing or wrong.
    """
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_json(body, strict=True)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_problem(error)}: {remedy}") from None


def _first_problem(error: "ValidationError") -> str:
    problems = error.errors(include_url=False)
    # a file of another version may differ anywhere: its version is the reason
    first = next((problem for problem in problems if problem["loc"] == ("format_version",)), problems[0])
    field = ".".join(map(str, first["loc"]))
    reason = first["msg"].removeprefix("Value error, ")
    if first["loc"] == ("format_version",) and first["type"] == "literal_error":
        reason = f"this version of steelray reads {first['ctx']['expected']}, not {first['input']!r}"
    elif first["type"] not in ("json_invalid", "missing", "value_error"):
        given = repr(first["input"])
        reason += f", not {given}" if len(given) <= SHOWN_CHARACTERS else ""
    return f"{field}: {reason}" if field else reason


def _adapter(kind: type[Kind]) -> "TypeAdapter[Kind]":
    if kind not in _adapters:
        from pydantic import ConfigDict, TypeAdapter, with_config

        _adapters[kind] = TypeAdapter(with_config(ConfigDict(allow_inf_nan=False))(kind))
    adapter: TypeAdapter[Kind] = _adapters[kind]
    return adapter


def dump(description: "DataclassInstance", **leading: Any) -> bytes:
    """Return the JSON file of a dataclass, with further fields before its own."""
    return json.dumps({**leading, **asdict(description)}, indent=2, default=str).encode()
