"""How good a run's alarms were, by what an operator says of them: precision, and recall where it can be known."""

import csv
import io
from collections.abc import Mapping
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


LEVELS: dict[str, tuple[Verdict, ...]] = {"review": (Verdict.REVIEW, Verdict.REJECT), "reject": (Verdict.REJECT,)}
"""Verdicts that lie above each threshold."""


def review(config: ReviewConfig) -> dict[str, Any]:
    """Judges a run by a file of verdicts.

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
    return {"run_id": run_id, "verdicts": len(verdicts), "not_in_run": len(unknown), **judge(scores, verdicts)}


def judge(scores: pa.Table, verdicts: Mapping[str, bool]) -> dict[str, Any]:
    """Precision and recall of both thresholds, of all strips and of every group.

    Args:
        scores: columns image_key, status, verdict and group of schema `SCORES`.
        verdicts: by key, whether there is something wrong with the strip; need not name all.

    Returns:
        `levels` and, where there are groups, `groups`: by name, and in them by threshold, what `_level` returns.
    """
    scored = scores.filter(pc.equal(scores["status"], Status.OK.value))
    said_N = np.array([verdicts.get(key) for key in scored["image_key"].to_pylist()], dtype=object)
    verdict_N = np.array(scored["verdict"].to_pylist(), dtype=object)
    group_N = np.array([group or ALL_STRIPS for group in scored["group"].to_pylist()], dtype=object)
    every_N = np.ones(len(said_N), dtype=bool)
    groups = sorted({group for group in group_N if group != ALL_STRIPS})
    return {
        "levels": _levels(said_N, verdict_N, every_N),
        "groups": {group: _levels(said_N, verdict_N, group_N == group) for group in groups},
    }


def _levels(said_N: NDArray[Any], verdict_N: NDArray[Any], own_N: NDArray[np.bool_]) -> dict[str, Any]:
    said_N, verdict_N = said_N[own_N], verdict_N[own_N]
    return {name: _level(said_N, np.isin(verdict_N, above)) for name, above in LEVELS.items()}


def _level(said_N: NDArray[Any], flagged_N: NDArray[np.bool_]) -> dict[str, Any]:
    """What became of the strips above one threshold.

    Returns:
        Counts; `precision` of the judged alarms with its 95 % interval (Clopper-Pearson), None if none was judged;
        `recall` among all strips known to be defective, None unless strips below the threshold were looked at too.
    """
    judged_N, defective_N = np.array([said is not None for said in said_N]), np.array([said is True for said in said_N])
    judged, found = int((flagged_N & judged_N).sum()), int((flagged_N & defective_N).sum())
    low, high = stats.binomtest(found, judged).proportion_ci(CONFIDENCE) if judged else (None, None)
    looked_below = bool((judged_N & ~flagged_N).any())
    defective = int(defective_N.sum())
    return {
        "flagged": int(flagged_N.sum()),
        "judged": judged,
        "true_alarms": found,
        "false_alarms": judged - found,
        "precision": found / judged if judged else None,
        "precision_low": low,
        "precision_high": high,
        "recall": found / defective if looked_below and defective else None,
    }
