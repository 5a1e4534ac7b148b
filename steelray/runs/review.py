"""Precision and recall of a run's alarms, from an operator's verdicts."""

import csv
import io
from collections.abc import Mapping
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
FALSE_ALARM = ("false_alarm", "false", "ok", "nominal", "no", "0")
KEY_COLUMNS = ("image_key", "key")


def read_verdicts(uri: str) -> dict[str, bool]:
    """Read a CSV file of verdicts: for each key, whether the strip is defective.

    The file has the columns that the report page saves: `image_key` (or `key`) and `verdict` (`true_alarm` or
    `false_alarm`). A spreadsheet's byte order mark and semicolons are accepted.

    Raises:
        ConfigError: the file cannot be read, lacks a column, or has an unknown or a contradictory verdict.
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
            raise ConfigError(f"verdicts {uri}, line {reader.line_num}: {key} is both a true and a false alarm")
    return verdicts


LEVELS: dict[str, tuple[Verdict, ...]] = {"review": (Verdict.REVIEW, Verdict.REJECT), "reject": (Verdict.REJECT,)}
"""Verdicts above each threshold."""


@dataclass(frozen=True)
class AlarmFigures:
    """Figures of one threshold's alarms, among all strips or those of a group."""

    flagged: int
    judged: int
    true_alarms: int
    false_alarms: int
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
    verdicts = read_verdicts(config.verdicts)
    known = set(scores["image_key"].to_pylist())
    unknown = [key for key in verdicts if key not in known]
    if len(unknown) == len(verdicts):
        raise ConfigError(f"verdicts {config.verdicts}: none of its {len(verdicts)} keys is in run {run_id}")
    levels, groups = judge(scores, verdicts)
    return Review(run_id, len(verdicts), len(unknown), levels, groups)


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
        precision=found / judged if judged else None,
        precision_low=low,
        precision_high=high,
        recall=found / defective if judged_below and defective else None,
    )
