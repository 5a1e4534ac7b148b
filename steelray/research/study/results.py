"""Results of a study: trials.jsonl, one line per finished trial, and study.json, its settings.

They lie in a folder or in object storage. A trial's line is stored as soon as it ends and the file is always complete,
so a killed study loses no finished trial.
"""

import json
import math
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steelray.config import ConfigError
from steelray.research.study.config import STUDY_VERSION, StudyConfig
from steelray.research.study.plan import study_digest
from steelray.storage.location import Location, ObjectChanged, ObjectMissing

TRIALS_FILE, STUDY_FILE, COMPARISON_FILE = "trials.jsonl", "study.json", "detection.json"
Row = dict[str, Any]


class StudyResults:
    """Writes the results of one study.

    Raises:
        ConfigError: the place cannot be used, or holds results of another version or of another baseline.
    """

    def __init__(self, results_dir: str, study: StudyConfig, facts: Row | None = None) -> None:
        self._location = Location(results_dir)
        self._location.check_access(create=True)
        digest = study_digest(study)
        if self._location.exists(STUDY_FILE) and read_study(results_dir)["digest"] != digest:
            raise ConfigError(
                f"{results_dir}: results of another baseline or scale; give another results_dir, or their settings"
            )
        config = _public(asdict(study))
        record = {"study_version": STUDY_VERSION, "digest": digest, "config": config, **(facts or {})}
        self._location.write(STUDY_FILE, (json.dumps(record, indent=2, default=str) + "\n").encode())

    def append(self, row: Row) -> None:
        """Add a finished trial; other drivers may add theirs at the same time."""
        line = json.dumps({**_finite(row), "finished_at": datetime.now(UTC).isoformat(timespec="seconds")}) + "\n"
        while True:
            etag = self._location.etag(TRIALS_FILE)
            body = self._location.read(TRIALS_FILE) if etag else b""
            try:
                self._location.write_if(TRIALS_FILE, body + line.encode(), etag)
            except ObjectChanged:
                continue
            return


def read_study(results_dir: str) -> Row:
    """Read study.json. Raises `ConfigError` if it is missing, unreadable or of another version."""
    place = f"{results_dir}/{STUDY_FILE}"
    try:
        record: Row = json.loads(Location(results_dir).read(STUDY_FILE))
        version = record["study_version"]
    except ObjectMissing:
        raise ConfigError(f"{place} is missing: not a study's results; run jobs/tune_draem.py first") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{place}: not a study's description; give another results_dir") from None
    if version != STUDY_VERSION:
        raise ConfigError(
            f"{place}: results of study version {version}, this is version {STUDY_VERSION}: give another results_dir"
        )
    return record


def read_trials(results_dir: str) -> list[Row]:
    """Read the finished trials in the order in which they ended, each once."""
    location = Location(results_dir)
    body = location.read(TRIALS_FILE) if location.exists(TRIALS_FILE) else b""
    rows = [json.loads(line) for line in body.splitlines()]
    return list({row["trial_id"]: row for row in rows}.values())


def read_comparison(results_dir: str) -> Row:
    """Read detection.json, the results of the mode `compare`; empty if it has not run."""
    try:
        found: Row = json.loads(Location(results_dir).read(COMPARISON_FILE))
    except ObjectMissing:
        return {}
    return found


def _finite(value: Any) -> Any:
    """Replace NaN, which JSON lacks, by null."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _public(config: Row) -> Row:
    """Reduce paths to their last part: the rest only describes the machine."""
    paths = ("root", "texture_uri", "results_dir", "output_uri")
    return {
        name: _public(value) if isinstance(value, dict)
        else Path(value).name if name in paths and isinstance(value, str) else value
        for name, value in config.items()
    }  # fmt: skip
