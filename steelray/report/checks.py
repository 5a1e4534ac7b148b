"""The report's first screen: can the run be relied on, and what needs a look? Pure functions of `ReportData`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

import pyarrow.compute as pc
from scipy import stats

from steelray.models.calibration import ALL_STRIPS, GroupThresholds
from steelray.models.odd import extrapolation, too_few, without_reject
from steelray.report import drift
from steelray.report.data import ReportData
from steelray.report.rows import Counts
from steelray.report.words import number, percent
from steelray.schema import Verdict

SIGNIFICANT = 0.001
"""A flag rate is unusual if its probability by chance is below this."""
USUAL_EXCESS = 2.0
"""A flag rate is usual up to this multiple of the highest one of the earlier runs."""
MIN_HISTORY = 3
"""Earlier runs needed for that comparison."""
MAX_FLAG_RATE = 0.25
"""A flag rate is usual up to this one if there are fewer earlier runs."""


class Level(StrEnum):
    """Urgency of a finding."""

    OK = "ok"
    NOTE = "note"
    """Not judged, or worth knowing; no action needed."""
    LOOK = "look"
    PROBLEM = "problem"

    @property
    def urgency(self) -> int:
        """Return a number that is larger for a more urgent level."""
        return list(Level).index(self)


@dataclass(frozen=True)
class Check:
    """One line of the first screen; `anchor` names the section with the details."""

    level: Level
    title: str
    detail: str
    anchor: str


@dataclass(frozen=True)
class GroupFlags:
    """A group's flags, and the false alarms that its thresholds promise."""

    group: str
    limits: GroupThresholds | None
    fallback: bool
    num_scored: int
    num_review: int
    num_reject: int

    @property
    def num_flagged(self) -> int:
        return self.num_review + self.num_reject

    @property
    def share(self) -> float:
        """Return the share of scored strips that are flagged."""
        return self.num_flagged / max(1, self.num_scored)

    @property
    def expected(self) -> tuple[float, float, float] | None:
        """Return the false alarms if all strips are nominal: number, lower and upper end of its interval; or None."""
        if self.limits is None:
            return None
        review, count = self.limits.review, self.num_scored
        return review.rate * count, review.rate_low * count, review.rate_high * count

    @property
    def reading(self) -> str:
        """Return what the flag rate means, in words."""
        if self.expected is None:
            return "no promise: the threshold was set by hand, or there is none"
        if self.num_scored == 0:
            return "no strips"
        _, low, high = self.expected
        if chance(self.num_flagged, self.num_scored, high / self.num_scored, upwards=True) < SIGNIFICANT:
            return f"about {number(self.num_flagged - self.expected[0], 0)} more than false alarms explain"
        if chance(self.num_flagged, self.num_scored, low / self.num_scored, upwards=False) < SIGNIFICANT:
            return "fewer than false alarms alone should give: the scores have fallen"
        return "no more than false alarms explain"


def chance(count: int, total: int, rate: float, *, upwards: bool) -> float:
    """Return the probability of this many flagged strips or more (or fewer) at this rate."""
    rate = min(max(rate, 0.0), 1.0)
    return float(stats.binom.sf(count - 1, total, rate) if upwards else stats.binom.cdf(count, total, rate))


def flags_by_group(data: ReportData, counts: Counts) -> list[GroupFlags]:
    """Return the flags of every group with a row in the table."""
    own: Mapping[str, GroupThresholds] = {limits.group: limits for limits in data.thresholds}
    if data.threshold_override is not None:
        own = {}
    return [
        GroupFlags(
            group=group,
            limits=own.get(group, own.get(ALL_STRIPS)),
            fallback=group not in own and ALL_STRIPS in own,
            num_scored=counts.scored_in(group),
            num_review=counts.of(group, Verdict.REVIEW),
            num_reject=counts.of(group, Verdict.REJECT),
        )
        for group in counts.groups
    ]


def run_checks(data: ReportData, counts: Counts) -> list[Check]:
    """Check everything that must hold before the flags can be relied on, most important first."""
    return [
        _reconciled(data, counts),
        _quarantine(data, counts),
        _flag_rate(data, counts),
        _drift(data),
        *_support(data, counts),
        *_groups(data, counts),
    ]


def _reconciled(data: ReportData, counts: Counts) -> Check:
    distinct = pc.count_distinct(data.scores["image_key"]).as_py()
    earlier = f"; {number(data.num_already_scored)} more were scored by earlier runs" if data.num_already_scored else ""
    if counts.num_rows == data.num_listed == distinct:
        detail = f"{number(data.num_listed)} listed, {number(counts.num_rows)} rows: none lost, none twice{earlier}"
        return Check(Level.OK, "Complete", detail, "run")
    detail = (
        f"{number(data.num_listed)} listed, but {number(counts.num_rows)} rows of {number(distinct)} objects: "
        "run the same command again"
    )
    return Check(Level.PROBLEM, "Not complete", detail, "run")


def _quarantine(data: ReportData, counts: Counts) -> Check:
    if counts.num_failed == 0:
        return Check(Level.OK, "Every object has a score", "nothing in quarantine", "failures")
    share = counts.num_failed / max(1, counts.num_rows)
    detail = f"{number(counts.num_failed)} objects ({percent(share)}) in quarantine"
    if data.quarantine_limit is None:
        return Check(Level.NOTE, "Objects without a score", detail, "failures")
    limit = percent(data.quarantine_limit)
    if share > data.quarantine_limit:
        return Check(Level.PROBLEM, "Too many objects without a score", f"{detail}; the limit is {limit}", "failures")
    return Check(Level.OK, "Few objects without a score", f"{detail}, within the limit of {limit}", "failures")


def _flag_rate(data: ReportData, counts: Counts) -> Check:
    seen = counts.num_flagged / max(1, counts.num_scored)
    flags = flags_by_group(data, counts)
    expectations = [flag.expected for flag in flags]
    if counts.num_scored == 0:
        return Check(Level.PROBLEM, "No strip has a score", "every object is in quarantine", "thresholds")
    detail = f"{percent(seen)} flagged"
    known = [expected for expected in expectations if expected is not None]
    if len(known) == len(expectations):
        low, high = (sum(expected[end] for expected in known) / counts.num_scored for end in (1, 2))
        detail += f"; false alarms alone give {percent(low)} to {percent(high)}"
        if chance(counts.num_flagged, counts.num_scored, low, upwards=False) < SIGNIFICANT:
            return Check(Level.LOOK, "Fewer flags than expected", f"{detail}: defects may be missed", "thresholds")
    earlier = [run.num_flagged / scored for run in data.history if (scored := run.num_rows - run.num_failed) > 0]
    usual = USUAL_EXCESS * max(earlier) if len(earlier) >= MIN_HISTORY else MAX_FLAG_RATE
    if seen > usual and chance(counts.num_flagged, counts.num_scored, usual, upwards=True) < SIGNIFICANT:
        compared = f"more than {percent(MAX_FLAG_RATE)} is unusual"
        if earlier:
            compared = f"at most {percent(max(earlier))} in the last {len(earlier)} runs"
        return Check(Level.LOOK, "Unusually many flags", f"{detail}; {compared}", "thresholds")
    return Check(Level.OK, "Flag rate is plausible", detail, "thresholds")


def _drift(data: ReportData) -> Check:
    warnings = drift.warnings(data.shifts, data.trends)
    judged = sum(shift.state in ("steady", "drifted") for shift in data.shifts)
    if warnings:
        more = f" (and {len(warnings) - 1} more)" if len(warnings) > 1 else ""
        return Check(Level.LOOK, "Drift", f"{warnings[0]}{more}", "drift")
    if judged == 0:
        return Check(Level.NOTE, "Drift not judged", "too few strips in every group", "drift")
    absent = sorted({shift.group for shift in data.shifts if shift.state == "absent"})
    note = f"; no strips came from {', '.join(absent)}" if absent else ""
    return Check(
        Level.NOTE if absent else Level.OK, "No drift", f"the strips look as they did at calibration{note}", "drift"
    )


def _support(data: ReportData, counts: Counts) -> Iterator[Check]:
    if data.threshold_override is not None:
        detail = f"set by hand to {data.threshold_override:.4g}: no false-alarm rate is promised"
        yield Check(Level.LOOK, "Threshold", detail, "thresholds")
        return
    if not data.thresholds:
        yield Check(Level.LOOK, "No threshold", "nothing is flagged: run jobs/calibrate.py", "thresholds")
        return
    used = {id(flag.limits): flag.limits for flag in flags_by_group(data, counts) if flag.limits and flag.num_scored}
    yield from support_checks({limits.group: limits for limits in used.values()})


def support_checks(groups: Mapping[str, GroupThresholds]) -> Iterator[Check]:
    """Yield what the thresholds of these groups are short of, in the words of the jobs."""
    anchor = "thresholds"
    if line := too_few(groups):
        yield Check(Level.LOOK, "Thresholds rest on few strips", line, anchor)
    if line := extrapolation(groups, "review"):
        yield Check(Level.LOOK, "Review threshold is extrapolated", line, anchor)
    if line := extrapolation(groups, "reject"):
        yield Check(Level.NOTE, "Reject threshold is extrapolated", line, anchor)
    if line := without_reject(groups):
        yield Check(Level.NOTE, "No reject threshold", line, anchor)


def _groups(data: ReportData, counts: Counts) -> Iterator[Check]:
    if data.threshold_override is None and data.group_warnings:
        own = {limits.group for limits in data.thresholds} - {ALL_STRIPS}
        level = Level.NOTE if own & set(counts.groups) else Level.LOOK
        title = "Not every strip has its group's thresholds" if level == Level.NOTE else "No group has its thresholds"
        yield Check(level, title, "; ".join(data.group_warnings), "thresholds")


def headline(checks: list[Check]) -> tuple[Level, str]:
    """Return the level and the sentence at the top of the page."""
    problems = sum(check.level == Level.PROBLEM for check in checks)
    looks = sum(check.level == Level.LOOK for check in checks)
    if problems:
        return Level.PROBLEM, "Do not rely on this run yet"
    if looks:
        return Level.LOOK, f"The run is complete; {'one thing needs' if looks == 1 else f'{looks} things need'} a look"
    return Level.OK, "The run is complete and sound"
