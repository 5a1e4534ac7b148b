"""What operators say of strips: a CSV of keys and whether each alarm was a true one."""

import csv
import io

from steelray.config import ConfigError
from steelray.data.storage import Location

TRUE_ALARM = ("true_alarm", "true", "defect", "anomalous", "yes", "1")
FALSE_ALARM = ("false_alarm", "false", "ok", "nominal", "no", "0")
KEY_COLUMNS = ("image_key", "key")


def read_verdicts(uri: str) -> dict[str, bool]:
    """Whether there is something wrong with a strip, by key.

    The file has columns `image_key` (or `key`) and `verdict` (`true_alarm` or `false_alarm`): what the report page
    saves. A spreadsheet's byte order mark and its semicolons are taken.

    Raises:
        ConfigError: it cannot be read, lacks a column, or says something else or both of a strip.
    """
    folder, _, name = uri.rpartition("/")
    try:
        text = Location(folder or ("/" if uri.startswith("/") else ".")).read(name).decode("utf-8-sig")
    except (OSError, LookupError, UnicodeDecodeError) as error:
        raise ConfigError(f"verdicts {uri} cannot be read ({type(error).__name__}): give a CSV file") from None
    header = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text), delimiter=";" if ";" in header else ",")
    key_column = next((column for column in KEY_COLUMNS if column in (reader.fieldnames or ())), None)
    if key_column is None or "verdict" not in (reader.fieldnames or ()):
        raise ConfigError(f"verdicts {uri}: needs columns image_key and verdict, has {reader.fieldnames or 'none'}")
    verdicts: dict[str, bool] = {}
    for row in reader:
        key, said = row[key_column] or "", (row["verdict"] or "").strip().lower()
        if not said:
            continue
        if said not in TRUE_ALARM + FALSE_ALARM:
            raise ConfigError(
                f"verdicts {uri}, line {reader.line_num}: verdict {said!r} is neither true_alarm nor false_alarm"
            )
        if verdicts.setdefault(key, said in TRUE_ALARM) != (said in TRUE_ALARM):
            raise ConfigError(f"verdicts {uri}, line {reader.line_num}: {key} is said to be a true and a false alarm")
    return verdicts
