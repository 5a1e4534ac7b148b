"""Precision and recall of a run's alarms, from an operator's verdicts."""

import codecs
import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import stats

from steelray.config import ConfigError
from steelray.models.calibration import ALL_STRIPS, CONFIDENCE
from steelray.runs.config import ReviewConfig
from steelray.runs.run import Run, read_published
from steelray.schema import Status, Verdict
from steelray.storage.location import Location

TRUE_ALARM = ("true_alarm", "true", "defect", "anomalous", "yes", "1")
MISSED = ("missed_defect", "missed", "defect_not_flagged")
FALSE_ALARM = ("false_alarm", "false", "ok", "nominal", "no", "0")
KEY_COLUMNS = ("image_key", "key")


def read_verdicts(uri: str) -> dict[str, bool]:
    """Read a CSV file of verdicts: for each key, whether the strip is defective.

    The file has the columns that the report page saves: `image_key` (or `key`) and `verdict` (`true_alarm`,
    `false_alarm`, or `missed_defect` for a defective strip that was not flagged). It may be stored by a spreadsheet:
    with commas, semicolons or tabs, in UTF-8, UTF-16 or Windows-1252, with any line ends.

    Raises:
        ConfigError: the file cannot be read, lacks a column, has an unknown or a contradictory verdict, or none.
    """
    text = read_text(uri, f"verdicts {uri} cannot be read", "give a CSV file")
    try:
        header = next(iter(text.splitlines()), "")
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
        reader.fieldnames = [column.strip().lower() for column in reader.fieldnames or ()]
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ConfigError(f"verdicts {uri} cannot be read ({type(error).__name__}): give a CSV file") from None
    columns = list(reader.fieldnames or ())
    key_column = next((column for column in KEY_COLUMNS if column in columns), None)
    if key_column is None or "verdict" not in columns:
        raise ConfigError(f"verdicts {uri}: needs columns image_key and verdict, has {columns or 'none'}")
    verdicts: dict[str, bool] = {}
    for line, row in rows:
        key, said = row[key_column] or "", "_".join(re.findall("[a-z0-9]+", (row["verdict"] or "").lower()))
        if not said:
            continue
        if said not in TRUE_ALARM + MISSED + FALSE_ALARM:
            raise ConfigError(
                f"verdicts {uri}, line {line}: verdict {row['verdict']!r} is none of true_alarm, false_alarm and "
                "missed_defect"
            )
        if verdicts.setdefault(key, said not in FALSE_ALARM) != (said not in FALSE_ALARM):
            raise ConfigError(f"verdicts {uri}, line {line}: {key} is called both defective and not")
    if not verdicts:
        raise ConfigError(f"verdicts {uri}: there is no verdict in the file")
    return verdicts


def read_text(uri: str, complaint: str, remedy: str) -> str:
    """Read a text file as an editor or a spreadsheet stores it; raise `ConfigError` with the complaint if it cannot."""
    folder, _, name = uri.rpartition("/")
    try:
        return _decoded(Location(folder or ("/" if uri.startswith("/") else ".")).read(name))
    except (OSError, LookupError, UnicodeDecodeError) as error:
        raise ConfigError(f"{complaint} ({type(error).__name__}): {remedy}") from None


def _decoded(body: bytes) -> str:
    """Decode text in UTF-16 with a byte order mark, in UTF-8, or in the Windows-1252 of Excel's plain CSV."""
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return body.decode("utf-16")
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError:
        return body.decode("cp1252")


def verdicts_on(keys: Sequence[str], uri: str, where: str) -> tuple[dict[str, bool], int]:
    """Read the verdicts on strips with these keys, and count the verdicts on others.

    Args:
        where: name of the strips, for the message.

    Raises:
        ConfigError: the file is not as `read_verdicts` needs it, or it has no verdict on any of the strips.
    """
    verdicts = read_verdicts(uri)
    found = {key: verdicts[key] for key in keys if key in verdicts}
    if not found:
        raise ConfigError(
            f"verdicts {uri}: none of its {len(verdicts)} keys, such as {next(iter(verdicts))}, is in {where}: "
            "give the run that was reviewed"
        )
    return found, len(verdicts) - len(found)


LEVELS: dict[str, tuple[Verdict, ...]] = {"review": (Verdict.REVIEW, Verdict.REJECT), "reject": (Verdict.REJECT,)}
"""Verdicts above each threshold."""


@dataclass(frozen=True)
class AlarmFigures:
    """Figures of one threshold's alarms, among all strips or those of a group."""

    flagged: int
    judged: int
    true_alarms: int
    false_alarms: int
    missed: int
    """Strips judged defective that were not flagged."""
    precision: float | None
    """Share of true alarms among the judged ones; None if none was judged."""
    precision_low: float | None
    precision_high: float | None
    """The 95 % interval of `precision` (Clopper-Pearson)."""
    recall: float | None
    """Share of the strips judged defective that were flagged; None unless strips below the threshold were judged too,
    and one strip was defective."""

    def in_words(self) -> str:
        """Describe the figures in one line."""
        counted = f"{self.judged} of {self.flagged} alarms judged"
        counted += f", {self.missed} defective strips not flagged" if self.missed else ""
        if self.precision is None:
            return counted
        interval = f"{self.precision_low:.1%} to {self.precision_high:.1%}"
        recall = "not known: no strip below the threshold was judged" if self.recall is None else f"{self.recall:.1%}"
        return f"{counted}, precision {self.precision:.1%} ({interval}), recall {recall}"


Levels = dict[str, AlarmFigures]
"""Figures by threshold, `review` and `reject`."""


@dataclass(frozen=True)
class Review:
    """Figures of a run's alarms; `verdicts` counts the verdicts, `not_in_run` those of strips that the run lacks."""

    run_id: str
    verdicts: int
    not_in_run: int
    levels: Levels
    groups: dict[str, Levels]


def review(config: ReviewConfig) -> Review:
    """Judge a run's alarms by a file of verdicts.

    Raises:
        ConfigError: no such run, or no verdict on any of its strips.
    """
    run_id = config.run_id or read_published(config.results_uri).current
    run = Run(config.results_uri, run_id or "none")
    if run_id is None or run.record() is None:
        raise ConfigError(f"{config.results_uri}: there is no complete run {run_id or ''}: see jobs/runs.py")
    scores = run.scores(["image_key", "status", "verdict", "group"])
    verdicts, num_others = verdicts_on(scores["image_key"].to_pylist(), config.verdicts, f"run {run_id}")
    levels, groups = judge(scores, verdicts)
    return Review(run_id, len(verdicts) + num_others, num_others, levels, groups)


def judge(scores: pa.Table, verdicts: Mapping[str, bool]) -> tuple[Levels, dict[str, Levels]]:
    """Compute the figures of both thresholds' alarms, for all strips and for each group.

    Args:
        scores: columns image_key, status, verdict and group of schema `SCORES`.
        verdicts: whether a strip is defective, by key; strips may be missing.
    """
    scored = scores.filter(pc.equal(scores["status"], Status.OK.value))
    said_N = np.array([verdicts.get(key) for key in scored["image_key"].to_pylist()], dtype=object)
    verdict_N = np.array(scored["verdict"].to_pylist(), dtype=object)
    group_N = np.array([group or ALL_STRIPS for group in scored["group"].to_pylist()], dtype=object)
    every_N = np.ones(len(said_N), dtype=bool)
    groups = sorted({group for group in group_N if group != ALL_STRIPS})
    return (
        _levels(said_N, verdict_N, every_N),
        {group: _levels(said_N, verdict_N, group_N == group) for group in groups},
    )


def _levels(said_N: NDArray[Any], verdict_N: NDArray[Any], own_N: NDArray[np.bool_]) -> Levels:
    said_N, verdict_N = said_N[own_N], verdict_N[own_N]
    return {name: _level(said_N, np.isin(verdict_N, above)) for name, above in LEVELS.items()}


def _level(said_N: NDArray[Any], flagged_N: NDArray[np.bool_]) -> AlarmFigures:
    judged_N, defective_N = np.array([said is not None for said in said_N]), np.array([said is True for said in said_N])
    judged, found = int((flagged_N & judged_N).sum()), int((flagged_N & defective_N).sum())
    low, high = stats.binomtest(found, judged).proportion_ci(CONFIDENCE) if judged else (None, None)
    judged_below = bool((judged_N & ~flagged_N).any())
    defective = int(defective_N.sum())
    return AlarmFigures(
        flagged=int(flagged_N.sum()),
        judged=judged,
        true_alarms=found,
        false_alarms=judged - found,
        missed=defective - found,
        precision=found / judged if judged else None,
        precision_low=low,
        precision_high=high,
        recall=found / defective if judged_below and defective else None,
    )
