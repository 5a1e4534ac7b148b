"""The results of a study: trials.jsonl, one line per finished trial, and study.json, what they have in common.

A line is written in one piece and flushed to the disk, so a killed run loses no finished trial; a half line that a
crash left at the end is passed over.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steelray.config import ConfigError
from steelray.study.config import STUDY_VERSION, StudyConfig
from steelray.study.plan import study_digest

TRIALS_FILE, STUDY_FILE = "trials.jsonl", "study.json"
Row = dict[str, Any]


class StudyResults:
    """The results folder of one study.

    Raises:
        ConfigError: it holds results of another version or of another baseline.
    """

    def __init__(self, folder: str | Path, study: StudyConfig, facts: Row | None = None) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        digest = study_digest(study)
        path = self.folder / STUDY_FILE
        if path.is_file():
            stored = read_study(self.folder)
            if stored["digest"] != digest:
                raise ConfigError(
                    f"{self.folder}: results of another baseline or scale; give another results_dir, or its settings"
                )
        config = _public(asdict(study))
        record = {"study_version": STUDY_VERSION, "digest": digest, "config": config, **(facts or {})}
        path.write_text(json.dumps(record, indent=2, default=str) + "\n")

    def finished(self) -> set[str]:
        """The ids of the trials that need not run again."""
        return {row["trial_id"] for row in read_trials(self.folder)}

    def append(self, row: Row) -> None:
        """Adds a finished trial."""
        line = json.dumps({**_finite(row), "finished_at": datetime.now(UTC).isoformat(timespec="seconds")}) + "\n"
        path = self.folder / TRIALS_FILE
        if path.is_file() and (body := path.read_bytes()) and not body.endswith(b"\n"):
            line = "\n" + line
        with path.open("a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def read_study(folder: str | Path) -> Row:
    """study.json. Raises `ConfigError` where there is none, or one of another version."""
    path = Path(folder) / STUDY_FILE
    if not path.is_file():
        raise ConfigError(f"{path} is missing: not a study's results; run jobs/tune_draem.py first")
    try:
        record: Row = json.loads(path.read_text())
        version = record["study_version"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: not a study's description; give another results_dir") from None
    if version != STUDY_VERSION:
        raise ConfigError(
            f"{path}: results of study version {version}, this is version {STUDY_VERSION}: give another results_dir"
        )
    return record


def read_trials(folder: str | Path) -> list[Row]:
    """The finished trials, in the order in which they ended; each once."""
    path = Path(folder) / TRIALS_FILE
    rows: dict[str, Row] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows[row["trial_id"]] = row
    return list(rows.values())


def write_parquet(rows: Sequence[Row], path: Path) -> None:
    """The trials as a table, one row each: settings, figures and criteria as columns, curves left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def flat(row: Row) -> Row:
        kept = ("trial_id", "arm", "hypothesis", "condition", "seed", "status", "num_steps", "duration_s")
        result: Row = {name: row.get(name) for name in kept}
        result["settings"] = json.dumps(row["settings"], sort_keys=True)
        for group in ("figures", "criteria", "detection"):
            result.update({f"{group}.{name}": value for name, value in (row.get(group) or {}).items()})
        return result

    table = [flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in table for name in row))
    pq.write_table(pa.table({name: [row.get(name) for row in table] for name in names}), path)


def _finite(value: Any) -> Any:
    """JSON knows no NaN: null stands for a figure that there is not."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _public(config: Row) -> Row:
    """Without the places on the machine that ran it, but for the folders' last names."""
    paths = ("root", "texture_uri", "results_dir", "output_uri")
    return {
        name: _public(value) if isinstance(value, dict)
        else Path(value).name if name in paths and isinstance(value, str) else value
        for name, value in config.items()
    }  # fmt: skip
