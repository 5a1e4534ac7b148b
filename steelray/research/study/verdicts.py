"""Verdicts per hypothesis and symptom, from the trials' figures. Pure.

A test compares one figure of an arm with its reference, seed by seed, or with a limit. Its effect has a 95 % confidence
interval over seeds (Student's t). The test is

* `supported` if the whole interval lies in the predicted direction and the mean effect is at least the smallest one
  that matters (stated per test);
* `refuted` if the whole interval lies below that smallest effect;
* `undecided` otherwise, and with fewer than `MIN_SEEDS` seeds.

A hypothesis is supported (refuted) for a symptom if at least one test is and none says the opposite.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scipy import stats

Row = dict[str, Any]
Verdict = Literal["supported", "refuted", "undecided"]
MIN_SEEDS = 3

SYMPTOMS = {"S1": "a high plateau", "S2": "fluctuation", "S3": "chance-level detection"}
HYPOTHESES = {
    "H1": "SSIM's grain floor",
    "H2": "rate too high late, no averaging",
    "H3": "black areas in SSIM's luminance term",
    "H4": "batch normalisation on bimodal brightness",
    "H5": "chroma shortcut: coloured sources on grey steel",
    "H6": "rotation of a directional texture",
    "H7": "false or invisible labels",
    "H8": "SSIM outweighs focal",
    "H9": "few strips",
}


@dataclass(frozen=True)
class Prediction:
    """One prediction of a hypothesis."""

    hypothesis: str
    symptom: str
    arm: str
    figure: str
    """Name of the compared figure, in `FIGURES`."""
    sign: int
    """+1: the hypothesis predicts a larger figure; -1: a smaller one."""
    least: float
    """Smallest effect that matters; absolute, or with `relative` a share of the reference's mean."""
    reference: str | None = "baseline"
    """Arm to compare with, seed by seed; None: compare with `limit`."""
    relative: bool = False
    limit: float = 0.0
    claim: str = ""
    """The prediction in words."""


@dataclass(frozen=True)
class Outcome:
    """The result of a test."""

    test: Prediction
    verdict: Verdict
    num_seeds: int
    mean: float
    low: float
    high: float
    reference_mean: float
    """The reference's figure, or the limit."""
    arm_mean: float


def _ratio(above: str, below: str) -> Callable[[Row], float]:
    return lambda row: row["figures"][above] / row["figures"][below] if row["figures"][below] else math.nan


def _difference(first: str, second: str) -> Callable[[Row], float]:
    return lambda row: row["figures"][first] - row["figures"][second]


def _gradient_ratio(row: Row) -> float:
    """Return SSIM's gradient norm on the reconstructing network over focal's, without the first step's report."""
    reports = row["curves"]["gradients"][1:] or row["curves"]["gradients"]
    return float(statistics.fmean(report["norm_ssim"] / max(report["norm_focal"], 1e-12) for report in reports))


def _black_share(row: Row) -> float:
    """Return black's share of the SSIM loss; NaN if the probe has next to no black, which makes it meaningless."""
    share = row["figures"]["black_share_of_ssim_loss"]
    return share if share >= 1e-3 else math.nan


def _figure(name: str) -> Callable[[Row], float]:
    return lambda row: row["figures"][name]


FIGURES: dict[str, tuple[str, Callable[[Row], float]]] = {
    "late_total": ("raw total, last fifth", _figure("late_total")),
    "reconstruction_loss": ("probe reconstruction loss", _figure("reconstruction_loss")),
    "pixel_ap": ("probe pixel AP", _figure("pixel_ap")),
    "pixel_ap_desaturated": ("pixel AP on the desaturated probe", _figure("pixel_ap_desaturated")),
    "cv": ("CV of the epoch-mean total", lambda row: row["criteria"]["cv"]),
    "floor_rank_correlation": ("rank correlation of floor and reached SSIM loss", _figure("floor_rank_correlation")),
    "sd_ratio": ("sd of the total after the drop over before", _ratio("sd_after_drop", "sd_before_drop")),
    "gap": ("train/eval gap", _figure("train_eval_gap")),
    "black_share": ("share of SSIM loss on black", _black_share),
    "chroma_drop": ("AP lost without colour", _difference("pixel_ap", "pixel_ap_desaturated")),
    "turned": ("SSIM loss turned over unturned", _figure("turned_over_unturned")),
    "below_grain": ("labels changed by less than the grain", _figure("share_below_grain")),
    "gradient_ratio": ("gradient norm of SSIM over focal", _gradient_ratio),
    "unseen_drop": ("AP lost on strips never seen", _difference("pixel_ap", "unseen_pixel_ap")),
}  # fmt: skip

TESTS: tuple[Prediction, ...] = (
    Prediction("H1", "S1", "steel denoised", "late_total", -1, 0.3, relative=True,
               claim="without grain, steel's total falls"),
    Prediction("H1", "S1", "grain put back", "late_total", 1, 0.3, "steel denoised", relative=True,
               claim="grain of sd 8 put into denoised steel brings the plateau back"),
    Prediction("H1", "S1", "control with grain", "late_total", 1, 0.3, "control", relative=True,
               claim="with steel's grain, the control stalls too"),
    Prediction("H1", "S1", "blurred target", "late_total", -1, 0.3, relative=True,
               claim="a target without grain takes the plateau away"),
    Prediction("H1", "S1", "baseline", "floor_rank_correlation", 1, 0.0, None, limit=0.5,
               claim="tiles rank by their floor"),
    Prediction("H1", "S2", "blurred target", "cv", -1, 0.2, relative=True,
               claim="a target without grain calms the loss"),
    Prediction("H2", "S2", "constant rate", "cv", 1, 0.2, relative=True,
               claim="never lowering the rate makes it worse"),
    Prediction("H2", "S2", "baseline", "sd_ratio", -1, 0.0, None, limit=0.5,
               claim="lowering the rate halves the spread"),
    Prediction("H3", "S1", "control with black bands", "late_total", 1, 0.1, "control", relative=True,
               claim="black bands raise the control's plateau"),
    Prediction("H3", "S1", "baseline", "black_share", 1, 0.0, None, limit=0.1,
               claim="a tenth of SSIM's loss is on black"),
    Prediction("H3", "S3", "foreground only", "pixel_ap", 1, 0.05, claim="leaving black out helps segmentation"),
    Prediction("H4", "S2", "group normalisation", "cv", -1, 0.2, relative=True,
               claim="without batch statistics the loss is calmer"),
    Prediction("H4", "S3", "group normalisation", "pixel_ap", 1, 0.05,
               claim="without batch statistics it segments better"),
    Prediction("H4", "S3", "baseline", "gap", 1, 0.0, None, limit=0.1, claim="training and evaluation mode differ"),
    Prediction("H5", "S3", "grey sources", "pixel_ap_desaturated", 1, 0.05,
               claim="grey sources teach what steel shows"),
    Prediction("H5", "S3", "baseline", "chroma_drop", 1, 0.0, None, limit=0.05, claim="without colour the AP drops"),
    Prediction("H6", "S1", "no rotation", "late_total", -1, 0.1, relative=True,
               claim="without rotation the plateau falls"),
    Prediction("H6", "S1", "baseline", "turned", 1, 0.0, None, limit=1.1, claim="turned tiles are reconstructed worse"),
    Prediction("H7", "S3", "visible labels", "pixel_ap", 1, 0.05, claim="visible anomalies segment better"),
    Prediction("H7", "S3", "baseline", "below_grain", 1, 0.0, None, limit=0.1,
               claim="a tenth of the labels hides in grain"),
    Prediction("H8", "S3", "focal weighs more", "pixel_ap", 1, 0.05, claim="weighing focal more segments better"),
    Prediction("H8", "S3", "baseline", "gradient_ratio", 1, 0.0, None, limit=10.0,
               claim="SSIM's gradient is ten times focal's"),
    Prediction("H9", "S3", "four strips only", "pixel_ap", -1, 0.05, claim="with fewer strips it segments worse"),
    Prediction("H9", "S3", "baseline", "unseen_drop", 1, 0.0, None, limit=0.05,
               claim="on strips never seen the AP drops"),
)  # fmt: skip
"""Written before their arms had results, but after short exploratory runs of baseline, fix and control."""


def judge_tests(rows: Sequence[Row], tests: Sequence[Prediction] = TESTS) -> list[Outcome]:
    """Judge every test by the rows of trials.jsonl."""
    return [_outcome(test, rows) for test in tests]


def combine(outcomes: Sequence[Outcome]) -> Verdict:
    """Combine the outcomes of one hypothesis on one symptom into its verdict."""
    said = {outcome.verdict for outcome in outcomes} - {"undecided"}
    if len(said) != 1:
        return "undecided"
    return "supported" if "supported" in said else "refuted"


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean and 95 % confidence interval (Student's t) of independent values; NaN bounds below two values."""
    if not values:
        return math.nan, math.nan, math.nan
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def _outcome(test: Prediction, rows: Sequence[Row]) -> Outcome:
    arm = values_by_seed(rows, test.arm, test.figure)
    if test.reference is None:
        effects, reference_mean, least = [value - test.limit for value in arm.values()], test.limit, test.least
    else:
        reference = values_by_seed(rows, test.reference, test.figure)
        seeds = sorted(arm.keys() & reference.keys())
        arm = {seed: arm[seed] for seed in seeds}
        effects = [arm[seed] - reference[seed] for seed in seeds]
        reference_mean = statistics.fmean(reference[seed] for seed in seeds) if seeds else math.nan
        least = test.least * abs(reference_mean) if test.relative else test.least
    mean, low, high = interval(effects)
    arm_mean = statistics.fmean(arm.values()) if arm else math.nan
    return Outcome(test, _verdict(test, effects, least), len(effects), mean, low, high, reference_mean, arm_mean)


def _verdict(test: Prediction, effects: Sequence[float], least: float) -> Verdict:
    if len(effects) < MIN_SEEDS:
        return "undecided"
    mean, low, high = interval([test.sign * effect for effect in effects])
    if low > 0 and mean >= least:
        return "supported"
    if high < least or (least == 0 and high < 0):
        return "refuted"
    return "undecided"


def values_by_seed(rows: Sequence[Row], arm: str, figure: str) -> dict[int, float]:
    """Return a figure of the arm's finished trials by seed, without those that ended in NaN or lack it."""
    read = FIGURES[figure][1]
    values: dict[int, float] = {}
    for row in rows:
        if row["arm"] == arm and row["status"] == "ok":
            try:
                value = read(row)
            except (KeyError, TypeError):  # the figure is missing or null
                continue
            if value is not None and math.isfinite(value):
                values[row["seed"]] = value
    return values
