"""Lines of progress: plain text for people, or one JSON object per line for a log collector.

STEELRAY_LOG_FORMAT=json chooses the second. Its lines carry the tags of the process, such as the run's id.
"""

import json
import os
from datetime import UTC, datetime

FORMAT_VARIABLE = "STEELRAY_LOG_FORMAT"
_tags: dict[str, str] = {}


def tag_lines(**tags: str) -> None:
    """From now on every JSON line of this process carries these, such as `run_id`."""
    _tags.update(tags)


def progress_line(message: str, level: str = "info") -> str:
    """A message as it is to be printed."""
    if os.environ.get(FORMAT_VARIABLE) != "json":
        return message
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level, **_tags, "message": message}
    return json.dumps(line)
