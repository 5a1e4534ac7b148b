"""Results of an ablation: JSON lines, one per finished row, and the tables made of them."""

import hashlib
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from steelray.config import ConfigError
from steelray.patchcore.config import identity
from steelray.research.ablation.settings import AblationConfig, AblationSetting

ROWS_FILE = "results.jsonl"
TABLE_FILE = "ablation.md"
SHARED = ("parts", "folds", "false_alarm_rates", "validation_fraction", "pixel_step")
"""Settings of the whole ablation on which a row's figures depend."""

Row = tuple[AblationSetting, int]
"""A setting and a split seed."""
RunRows = Callable[[Sequence[Row]], Iterator[tuple[Row, dict[str, Any]]]]
"""A function that evaluates rows and yields each when it is done, in any order."""

COLUMNS = {
    "image_auroc": "strip AUROC",
    "part_auroc": "part AUROC",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "aupro": "AUPRO",
    "part_best_accuracy": "best part accuracy",
}
CHOICE = "validation_part_auroc"
"""Figure by which a setting is chosen."""


def row_id(config: AblationConfig, row: Row) -> str:
    """Return the digest of all settings that a row's figures depend on; code and place of the images do not count."""
    setting, seed = row
    shared = {name: getattr(config, name) for name in SHARED}
    own = identity(setting)
    for member in own["members"]:
        del member["recipe"]  # a name only: its settings stand in the other sections
    facts = {"data": asdict(replace(config.data, seed=0, root="")), **shared, **own, "name": "", "seed": seed}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def read_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the finished rows by their id; a last line that was cut short is ignored."""
    rows = {}
    path = folder / ROWS_FILE
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
            rows[str(row["row_id"])] = row
        except (json.JSONDecodeError, KeyError):
            continue
    return rows


def rows_to_do(config: AblationConfig) -> list[Row]:
    """List the rows that results.jsonl does not hold yet, setting by setting."""
    done = read_rows(Path(config.output_dir))
    rows = [(setting, seed) for setting in config.settings for seed in config.seeds]
    return [row for row in rows if row_id(config, row) not in done]


def run_ablation(config: AblationConfig, run_rows: RunRows, report: Callable[[str], None]) -> list[dict[str, Any]]:
    """Evaluate the missing rows and write the tables.

    Args:
        report: receives a line on every row.

    Returns:
        One summary per setting, in the order of the settings.

    Raises:
        ConfigError: the data or a setting cannot be used.
    """
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ROWS_FILE
    if path.is_file() and not path.read_bytes().endswith(b"\n"):
        path.write_bytes(path.read_bytes() + b"\n")  # ends the line that a stopped run cut short
    to_do = rows_to_do(config)
    report(f"{len(to_do)} of {len(config.settings) * len(config.seeds)} rows to do")
    with path.open("a") as file:
        for number, (row, found) in enumerate(run_rows(to_do), start=1):
            file.write(json.dumps({"row_id": row_id(config, row), **found}) + "\n")
            file.flush()
            figures = ", ".join(f"{name} {found['figures'][name]:.3f}" for name in list(COLUMNS)[:3])
            report(f"{number}/{len(to_do)} {row[0].name}, seed {row[1]}: {figures}")
    summaries = summarize(config)
    (folder / TABLE_FILE).write_text(to_markdown(summaries))
    return summaries


def summarize(config: AblationConfig) -> list[dict[str, Any]]:
    """Summarise each setting: mean and standard deviation over the seeds.

    Raises:
        ConfigError: a row is missing.
    """
    done = read_rows(Path(config.output_dir))
    summaries = []
    for setting in config.settings:
        try:
            rows = [done[row_id(config, (setting, seed))] for seed in config.seeds]
        except KeyError:
            raise ConfigError(f"setting {setting.name!r} has no result yet: run the ablation to its end") from None
        names = [name for name in rows[0]["figures"] if all(name in row["figures"] for row in rows)]
        summaries.append(
            {
                "setting": setting.name,
                "mean": {name: statistics.fmean(row["figures"][name] for row in rows) for name in names},
                "std": {name: _spread([row["figures"][name] for row in rows]) for name in names},
                "seconds_per_strip": statistics.median(row["seconds_per_strip"] for row in rows),
                "by_class": _mean_by_class([row["by_class"] for row in rows]),
                "seeds": list(config.seeds),
                "learns_from_all": setting.num_fit is None and setting.contamination == 0,
                **{name: rows[0][name] for name in ("num_fit", "num_held_out", "num_anomalous")},
            }
        )
    return summaries


def best_setting(summaries: Sequence[dict[str, Any]]) -> str | None:
    """Return the setting that is best on the validation half; None without such a half.

    Settings that fit on fewer or contaminated strips answer another question and cannot be chosen.
    """
    judged = [summary for summary in summaries if CHOICE in summary["mean"] and summary["learns_from_all"]]
    return max(judged, key=lambda summary: summary["mean"][CHOICE])["setting"] if judged else None


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _mean_by_class(rows: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {key: statistics.fmean(row[name][key] for row in rows) for key in rows[0][name]}
        for name in sorted(set.intersection(*(set(row) for row in rows)))
    }


def _accuracy_columns(figures: dict[str, float]) -> dict[str, str]:
    """Return figure and title of the accuracies at thresholds from nominal strips, by false-alarm rate."""
    names = [name for name in figures if name.rpartition("_")[0] in ("part_accuracy", "accuracy")]
    columns = {}
    for name in sorted(names, key=lambda name: (not name.startswith("part"), float(name.rpartition("_")[2]))):
        kind, _, rate = name.rpartition("_")
        columns[name] = f"{'part' if kind == 'part_accuracy' else 'strip'} accuracy at {float(rate):.0%}"
    return columns


def to_markdown(summaries: Sequence[dict[str, Any]]) -> str:
    """Format the tables of all settings, of the two halves, and of the defect classes."""
    return "\n".join(_markdown_lines(summaries)) + "\n"


def _markdown_lines(summaries: Sequence[dict[str, Any]]) -> Iterator[str]:
    first = summaries[0]
    yield (
        f"{first['num_fit']} nominal strips to fit, {first['num_held_out']} held out, {first['num_anomalous']} "
        f"defective; mean ± standard deviation of {len(first['seeds'])} splits. "
        "Accuracy is taken at thresholds from nominal strips for these false-alarm rates."
    )
    yield ""
    columns = {**COLUMNS, **_accuracy_columns(first["mean"])}
    yield "| setting | " + " | ".join(columns.values()) + " | s per strip |"
    yield "|---" * (len(columns) + 2) + "|"
    for summary in summaries:
        cells = [f"{summary['mean'][name]:.3f} ± {summary['std'][name]:.3f}" for name in columns]
        yield f"| {summary['setting']} | " + " | ".join(cells) + f" | {summary['seconds_per_strip']:.3f} |"
    halves = [f"{half}_{name}" for half in ("validation", "test") for name in list(COLUMNS)[:3]]
    judged = [summary for summary in summaries if all(name in summary["mean"] for name in halves)]
    if judged:
        yield ""
        yield f"The two halves of the defective strips. The validation half prefers: {best_setting(summaries)}."
        yield ""
        yield "| setting | " + " | ".join(name.replace("_", " ") for name in halves) + " |"
        yield "|---" * (len(halves) + 1) + "|"
        for summary in judged:
            yield f"| {summary['setting']} | " + " | ".join(f"{summary['mean'][name]:.3f}" for name in halves) + " |"
    yield ""
    yield "| setting | class | strips | strip AUROC | part AUROC | part recall at the threshold |"
    yield "|---" * 6 + "|"
    for summary in summaries:
        for name, row in summary["by_class"].items():
            values = [f"{row[key]:.3f}" for key in ("image_auroc", "part_auroc", "part_recall")]
            yield f"| {summary['setting']} | {name} | {row['num_strips']:.0f} | " + " | ".join(values) + " |"
