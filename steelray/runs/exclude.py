"""Nominal strips that a person wants left out: a list of keys, or the CSV file of verdicts that the bank page saves."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from steelray.config import ConfigError
from steelray.runs.review import KEY_COLUMNS, read_text, read_verdicts


@dataclass(frozen=True)
class Excluded:
    """The keys to leave out, and a line about the others in the file."""

    keys: tuple[str, ...]
    warnings: tuple[str, ...]


def exclude(keys: Sequence[str], uri: str, where: str) -> Excluded:
    """Return which of these keys a file names.

    Args:
        where: name of the strips, for messages.

    Raises:
        ConfigError: the file cannot be read, it names none of the strips, or all of them.
    """
    named = read_excluded(uri)
    known = dict.fromkeys(keys)
    found = tuple(key for key in named if key in known)
    if not found:
        raise ConfigError(
            f"exclude {uri}: none of its {len(named)} keys, such as {named[0]}, is in {where}: "
            "give keys as listed there"
        )
    if len(found) == len(known):
        raise ConfigError(f"exclude {uri}: it names all {len(known)} strips of {where}: leave some")
    unknown = [key for key in named if key not in known]
    if not unknown:
        return Excluded(found, ())
    line = f"exclude {uri}: {len(unknown)} of {len(named)} keys, such as {unknown[0]}, are not in {where}"
    return Excluded(found, (line,))


def read_excluded(uri: str) -> list[str]:
    """Read keys, one per line, or those of the strips that a CSV file of verdicts calls defective.

    Raises:
        ConfigError: the file cannot be read, or names no strip to leave out.
    """
    text = read_text(uri, f"exclude {uri} cannot be read", "give a text file with one key per line")
    lines = [line for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
    columns = {column.strip().strip('"').lower() for column in _split(lines[0])} if lines else set()
    if "verdict" in columns and columns & set(KEY_COLUMNS):
        keys = [key for key, wrong in read_verdicts(uri).items() if wrong]
    else:
        keys = list(dict.fromkeys(lines[1:] if columns <= set(KEY_COLUMNS) else lines))
    if not keys:
        raise ConfigError(f"exclude {uri}: it names no strip to leave out")
    return keys


def _split(header: str) -> list[str]:
    return header.split(max(",;\t", key=header.count))
