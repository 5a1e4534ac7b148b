"""The Markdown page of a study, written from its results alone."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from steelray.config import ConfigError
from steelray.research.study import criteria, figures
from steelray.research.study.plan import BASELINE, FIX
from steelray.research.study.results import Row, read_comparison, read_study, read_trials
from steelray.research.study.space import Axis
from steelray.research.study.verdicts import (
    FIGURES,
    HYPOTHESES,
    MIN_SEEDS,
    SYMPTOMS,
    Outcome,
    combine,
    interval,
    judge_tests,
    values_by_seed,
)
from steelray.storage.location import Location

DETECTION = ("pixel_auroc", "pixel_ap", "image_auroc")
UNTRAINED = ("smoothed_1", "smoothed_2", "smoothed_4", "chroma")
RULES = (
    "Each prediction is tested on its own, seed by seed against its reference, with Student's 95 % interval. "
    "Supported: the whole interval lies in the predicted direction and the mean effect is at least the smallest one "
    "that matters. "
    f"Refuted: the whole interval lies below that. Undecided: otherwise, or with fewer than {MIN_SEEDS} seeds. "
    "A hypothesis takes the verdict of its predictions unless they contradict each other. A diagnosis compares a "
    "figure of the baseline with a limit; an intervention changes one thing and is the stronger evidence. "
    "Intervals are not corrected for the number of predictions."
)


@dataclass(frozen=True)
class Picture:
    """A figure with its title and caption."""

    name: str
    title: str
    caption: str
    svg: str

    @property
    def file(self) -> str:
        return f"figures/{self.name}.svg"


def write_report(results_dir: str, output_dir: str) -> dict[str, Any]:
    """Write study.md and figures/*.svg; return the verdicts and the number of trials.

    Raises:
        ConfigError: no results there, or those of another study version.
    """
    study, rows = read_study(results_dir), read_trials(results_dir)
    if not rows:
        raise ConfigError(f"{results_dir}: no finished trials yet; run jobs/tune_draem.py")
    comparison = read_comparison(results_dir)
    screened, confirmed = parted(rows, study["config"].get("confirm_steps"))
    outcomes = judge_tests(screened)
    verdicts = verdict_lines(outcomes)
    pictures = _pictures(study, screened, confirmed)
    values: dict[str, Any] = {
        **_facts(study, rows), "rows": rows, "failed": [row for row in rows if row["status"] != "ok"],
        "verdicts": verdicts, "outcomes": outcomes, "figures": FIGURES, "rules": RULES,
        "convergence": convergence_lines(rows), "fix_lines": fix_lines(confirmed), "pictures": pictures,
        "untrained": untrained_lines(screened),
        "detection": detection_lines(comparison), "detection_note": comparison.get("note", ""),
        "differences": detection_differences(comparison),
    }  # fmt: skip
    output = Location(output_dir)
    output.check_access(create=True)
    for picture in pictures:
        output.write(picture.file, f"{picture.svg}\n".encode())
    output.write("study.md", f"{_environment().get_template('study.md.j2').render(values)}\n".encode())
    return {"num_trials": len(rows), "verdicts": {line["hypothesis"]: line for line in verdicts}}


def parted(rows: Sequence[Row], confirm_steps: int | None) -> tuple[list[Row], list[Row]]:
    """Return the trials by which hypotheses are judged, and those of baseline and fix on which the claim rests.

    Both are all trials unless those of the claim are longer: rows of two lengths are never compared.
    """
    if confirm_steps is None:
        return list(rows), list(rows)
    screened = [row for row in rows if "num_steps" not in row["settings"]]
    pair = [row for row in rows if row["arm"] in (BASELINE, FIX)]
    return screened, [row for row in pair if row["settings"].get("num_steps") == confirm_steps]


def verdict_lines(outcomes: Sequence[Outcome]) -> list[dict[str, str]]:
    """Return one line per hypothesis: the verdict for each symptom, and its evidence."""
    lines = []
    for hypothesis, title in HYPOTHESES.items():
        own = [outcome for outcome in outcomes if outcome.test.hypothesis == hypothesis]
        line = {"hypothesis": hypothesis, "title": title}
        for symptom in SYMPTOMS:
            asked = [outcome for outcome in own if outcome.test.symptom == symptom]
            line[symptom] = combine(asked) if asked else "–"
        decided = [outcome for outcome in own if outcome.verdict != "undecided"]
        kinds = sorted({"a diagnosis" if outcome.test.reference is None else "an intervention" for outcome in decided})
        seeds = min((outcome.num_seeds for outcome in decided), default=0)
        line["rests"] = f"{' and '.join(kinds)}, {seeds} seeds" if decided else "nothing decisive yet"
        line["count"] = f"{len(decided)} of {len(own)} predictions decided"
        lines.append(line)
    return lines


def convergence_lines(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Count the seeds that meet each criterion, per arm and length."""
    lines = []
    for arm, steps in dict.fromkeys((row["arm"], row["num_steps"]) for row in rows if row["arm"] != "search"):
        own = [row for row in rows if (row["arm"], row["num_steps"]) == (arm, steps)]
        met = {name: sum(bool(row["criteria"][name]) for row in own)
               for name in ("c1", "c2", "c3", "c4", "converged", "thesis")}  # fmt: skip
        enough = criteria.share_of_seeds([row["criteria"]["converged"] for row in own])
        claim = "converges" if enough["claimed"] else "screened" if enough["screened"] else "no"
        lines.append({"arm": arm, "steps": steps, "condition": own[0]["condition"], "seeds": len(own), **met,
                      "claim": claim})  # fmt: skip
    return lines


def untrained_lines(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return, per condition that has it, the pixel AP without training beside the baseline's."""
    lines = []
    for condition in dict.fromkeys(row["condition"] for row in rows):
        own = [row for row in rows if row["condition"] == condition and "chroma" in row["probe"]]
        trained = [row["figures"]["pixel_ap"] for row in own if row["status"] == "ok" and not row["settings"]]
        if own and trained:
            known = {name: _figure(own[0]["probe"][name]) for name in UNTRAINED}
            lines.append({"condition": condition, "trained": _figure(statistics.fmean(trained)), **known})
    return lines


def fix_lines(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Compare the fix with the baseline, seed by seed, on figures that do not depend on the weights of the loss."""
    lines = []
    for name in ("reconstruction_loss", "pixel_ap", "pixel_ap_desaturated", "cv", "gap"):
        both = [values_by_seed(rows, arm, name) for arm in ("baseline", "fix")]
        seeds = sorted(both[0].keys() & both[1].keys())
        if seeds:
            mean, low, high = interval([both[1][seed] - both[0][seed] for seed in seeds])
            means = [_figure(statistics.fmean(values[seed] for seed in seeds)) for values in both]
            lines.append({"figure": FIGURES[name][0], "baseline": means[0], "fix": means[1], "seeds": str(len(seeds)),
                          "effect": f"{_figure(mean, '+')} [{_figure(low, '+')}, {_figure(high, '+')}]"})  # fmt: skip
    return lines


def detection_lines(comparison: Row) -> list[dict[str, Any]]:
    """Return the detection figures of baseline and fix, plain and as chosen, and of the other methods."""
    networks = comparison.get("networks", {})
    found: dict[str, list[Row]] = {}
    for arm, own in networks.items():
        found[f"DRAEM, {arm}"] = list(own["plain"].values())
        found[f"DRAEM, {arm}, {_reading(own)}"] = list(own["chosen"].values())
    found |= {method: [one] for method, one in comparison.get("methods", {}).items()}
    return [
        {"method": method, "seeds": len(own),
         **{name: _mean_with_interval([one[name] for one in own]) for name in DETECTION}}
        for method, own in found.items()
    ]  # fmt: skip


def detection_differences(comparison: Row) -> list[dict[str, Any]]:
    """Return the chosen fix minus the baseline, plain and chosen, seed by seed, and minus each other method."""
    networks, methods = comparison.get("networks", {}), comparison.get("methods", {})
    if FIX not in networks:
        return []
    fix = networks[FIX]["chosen"]
    others: dict[str, Row] = {method: dict.fromkeys(fix, one) for method, one in methods.items()}
    if BASELINE in networks:
        base = networks[BASELINE]
        others = {"DRAEM, baseline": base["plain"], f"DRAEM, baseline, {_reading(base)}": base["chosen"], **others}
    lines = []
    for method, other in others.items():
        seeds = sorted(fix.keys() & other.keys())
        gaps = {name: interval([fix[seed][name] - other[seed][name] for seed in seeds]) for name in DETECTION}
        lines.append({"method": method, "seeds": len(seeds), **{
            name: f"{_figure(mean, '+')} [{_figure(low, '+')}, {_figure(high, '+')}]"
            for name, (mean, low, high) in gaps.items()
        }})  # fmt: skip
    return lines


def _reading(networks: Row) -> str:
    scale = networks["scoring_scale"]
    size = "at native size" if scale == 1 else f"strips shrunk to {scale:g}"
    return f"{size}, maps smoothed by {networks['map_sigma_px']:g} px"


def _pictures(study: Row, rows: Sequence[Row], confirmed: Sequence[Row]) -> list[Picture]:
    arms = list(dict.fromkeys(row["arm"] for row in rows if row["arm"] != "search"))
    conditions = {row["arm"]: row["condition"] for row in rows}
    transplants = ["baseline", *(arm for arm in arms if conditions[arm] != "steel")]
    factors = [arm for arm in arms if conditions[arm] == "steel"]
    axes = [Axis(**{**axis, "choices": tuple(axis["choices"]) if axis["choices"] is not None else None})
            for axis in study["config"]["search"]["axes"]]  # fmt: skip
    made = [
        ("curves", "Loss curves of baseline and fix", "One line per seed. Raw totals weigh terms differently; they are "
         "shown because the thesis judged by them. The other two panels are comparable.",
         figures.loss_curves(confirmed, study["config"]["steps_per_epoch"])),
        ("floor", "Floor against reached SSIM loss, per probe tile", "Below the dotted line a reconstruction is better "
         "than the tile's own blur.", figures.floor_against_reached(confirmed)),
        ("transplants", "Transplants: a cause put in, a cause taken out", "Raw total of the last fifth, equal weights; "
         "dots are seeds, bars 95 % intervals.", figures.arms_beside(rows, transplants, "late_total")),
        ("factors", "One factor at a time: segmentation", "On steel; dots are seeds, bars 95 % intervals.",
         figures.arms_beside(rows, factors, "pixel_ap")),
        ("factors_loss", "One factor at a time: reconstruction", "Reference loss on the frozen probe.",
         figures.arms_beside(rows, factors, "reconstruction_loss")),
    ]  # fmt: skip
    if axes and any(row["arm"] == "search" for row in rows):
        made += [
            ("importance", "Importance of the search's axes", "Absolute rank correlation over its trials.",
             figures.axis_importance(rows, axes, "pixel_ap")),
            ("parallel", "The search, all axes at once", "A line per trial, from its settings to its result.",
             figures.parallel_coordinates(rows, axes, "pixel_ap")),
        ]  # fmt: skip
    return [Picture(*one) for one in made]


def _facts(study: Row, rows: Sequence[Row]) -> Row:
    train = study["config"]["train"]
    height_px, width_px = train["input"]["size_px"]
    confirm_steps = study["config"].get("confirm_steps")
    longer = f" ({confirm_steps} for the claim)" if confirm_steps else ""
    scale = (
        f"{width_px}x{height_px} px crops, width {train['draem']['width']:g} of the paper's, batch "
        f"{train['batch_size']}, {train['num_steps']} steps{longer}, learning rate {train['optimizer']['lr']:g}"
    )
    provenance = rows[-1].get("provenance") or {}
    packages, hardware = provenance.get("packages", {}), provenance.get("hardware", {})
    dates = sorted(str(row.get("finished_at", ""))[:16] for row in rows)
    machine = f"{hardware.get('cpu', '?')}, {hardware.get('cores', '?')} cores, {hardware.get('gpu') or 'no GPU'}"
    return {
        "scale": scale,
        "reduced": f"(Reduced: {scale}.)",
        "version": study["study_version"],
        "digest": study["digest"],
        "hardware": machine,
        "versions": ", ".join(f"{name} {packages[name]}" for name in ("torch", "ray", "numpy") if name in packages),
        "dates": f"{dates[0]} to {dates[-1]} UTC",
    }


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("steelray.research.study"),
        autoescape=False,  # noqa: S701 (Markdown)
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(figure=_figure, signed=lambda value: _figure(value, "+"))
    return environment


def _figure(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}" if math.isfinite(value) else "–"


def _mean_with_interval(values: Sequence[float]) -> str:
    mean, low, high = interval(values)
    if not math.isfinite(low):
        return f"{statistics.fmean(values):.3f}"
    return f"{mean:.3f} [{max(0.0, low):.3f}, {min(1.0, high):.3f}]"
