"""The part of a scoring run's run.json that later runs, the index page and other jobs read."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from steelray.config import ArchiveConfig, DecodeConfig, require
from steelray.models.model import Model

Measure = Literal["brightness", "score", "distance"]


@dataclass(frozen=True)
class GroupSummary:
    """Figures of one group in a run, kept for trends; a measure without values has no median."""

    group: str
    num_scored: int
    num_flagged: int
    medians: Mapping[Measure, float]


@dataclass(frozen=True)
class RunSummary:
    """Figures of a run, for trends and the index page.

    Attributes:
        finished_at: ISO 8601.
        num_failed: rows without a score.
        groups: `ALL_STRIPS` comes first.
    """

    run_id: str
    finished_at: str
    num_rows: int
    num_failed: int
    num_flagged: int
    groups: tuple[GroupSummary, ...]

    def __post_init__(self) -> None:
        require(bool(self.groups), "groups is empty")


@dataclass(frozen=True)
class JobSummary:
    """The summary that the scoring job prints.

    Attributes:
        counts: objects listed, flagged, and with each status.
        already_scored: objects that were left out because earlier runs have scored them.
        quarantined: objects without a score.
        scored_now: objects that this attempt has scored; earlier attempts scored the others.
        threshold: the one that the job was given, or that of all strips.
        already_complete: the run was complete before this attempt.
        group_warnings: reasons for which strips have the thresholds of all strips instead of their group's.
    """

    run_id: str
    counts: Mapping[str, int]
    already_scored: int
    quarantined: int
    scored_now: int
    scoring_s: float
    images_per_s: float | None
    threshold: float
    drift_warnings: tuple[str, ...]
    scores_uri: str
    report_uri: str
    run_uri: str
    already_complete: bool = False
    group_warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScoredSettings:
    """The settings that decide which objects a run has scored, and how they were decoded."""

    archive: ArchiveConfig
    decode: DecodeConfig


@dataclass(frozen=True)
class ScoredBy:
    """The identity of a run's model."""

    model_id: str


@dataclass(frozen=True)
class DriftWarnings:
    """The findings of a run that an operator has to know, one line each."""

    warnings: tuple[str, ...]


@dataclass(frozen=True)
class RunRecord:
    """run.json, as far as it is read; `night` is its name for the run's figures."""

    run_id: str
    config: ScoredSettings
    model: ScoredBy
    bank_id: str | None
    night: RunSummary
    drift: DriftWarnings
    summary: JobSummary
    ended_at: datetime
    format_version: Literal[1] = 1

    def __post_init__(self) -> None:
        require(self.ended_at.tzinfo is not None, "ended_at has no time zone")

    def is_of(self, model: Model) -> bool:
        """Tell whether the run's scores are comparable with those of a model."""
        return (self.model.model_id, self.bank_id) == (model.model_id, model.bank_id)
