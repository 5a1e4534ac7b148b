"""The trials of a study, the most telling first in case it is cut short. Pure; no torch, no ray."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from steelray.config import ConfigError, DatasetConfig
from steelray.reconstruction.config import TrainConfig, TrainDataConfig
from steelray.research.study.condition import parse_condition
from steelray.research.study.config import STUDY_VERSION, Arm, StudyConfig
from steelray.research.study.space import axis_names, option, with_settings

BASELINE, FIX = "baseline", "fix"


@dataclass(frozen=True)
class Trial:
    """One training run of the study."""

    arm: str
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    condition: str = "steel"
    hypothesis: str | None = None
    keep: bool = False
    """Keep the network, so that it can score the test split."""

    @property
    def trial_id(self) -> str:
        """Digest of settings, condition and seed; the arm's name does not count."""
        text = json.dumps([self.settings, str(parse_condition(self.condition))], sort_keys=True, default=list)
        return f"{hashlib.sha256(text.encode()).hexdigest()[:10]}-{self.seed}"

    def config(self, study: StudyConfig) -> TrainConfig:
        """Return the trial's training settings. Raises `ConfigError` for an unknown axis or an impossible value."""
        return with_settings(study.train, {**self.settings, "seed": self.seed})


def plan_trials(study: StudyConfig) -> list[Trial]:
    """Plan all trials of the study's mode, each once; the search plans its own.

    Raises:
        ConfigError: an axis is unknown, a value impossible, or there are more trials than the budget allows.
    """
    confirmed = [Arm(BASELINE), Arm(FIX, study.fix)] if study.fix else [Arm(BASELINE)]
    arms = [arm for arm in study.arms if study.control is not None or not arm.condition.startswith("control")]
    transplants = [arm for arm in arms if arm.condition != "steel"]
    factors = [arm for arm in arms if arm.condition == "steel"]
    first = study.seeds[:3]
    groups: dict[str, list[Trial]] = {
        "transplant": _trials(study, confirmed[:1] + transplants, study.seeds),
        "one_factor": _trials(study, confirmed + factors, study.seeds),
        "confirm": [
            replace(trial, keep=study.detect)
            for trial in _trials(
                study, [_lengthened(arm, study.confirm_steps) for arm in confirmed], study.confirm_seeds
            )
        ],
        "search": [],
        "compare": [],
    }
    groups["all"] = [
        *_trials(study, confirmed, first),
        *(trial for arm in transplants + factors for trial in _trials(study, [arm], study.seeds)),
        *groups["confirm"],
    ]
    planned = list({trial.trial_id: trial for trial in groups[study.mode]}.values())
    if len(planned) > study.max_trials:
        raise ConfigError(
            f"the plan has {len(planned)} trials, max_trials is {study.max_trials}: remove arms or seeds, or raise it"
        )
    for trial in planned:
        trial.config(study)
    return planned


def _lengthened(arm: Arm, num_steps: int | None) -> Arm:
    return arm if num_steps is None else replace(arm, settings={**arm.settings, "num_steps": num_steps})


def _trials(study: StudyConfig, arms: Sequence[Arm], seeds: Sequence[int]) -> list[Trial]:
    return [
        Trial(arm.name, seed, {**(study.fix if arm.from_fix else {}), **arm.settings}, arm.condition, arm.hypothesis)
        for seed in seeds
        for arm in arms
    ]


def study_digest(study: StudyConfig) -> str:
    """Return a digest of what comparable results share: the version, the baseline and how trials are judged.

    Only options of the baseline that differ from their defaults count, and no paths: a newer version of steelray with
    more options, or another machine, continues the same study.
    """
    default = TrainConfig("draem", TrainDataConfig(dataset=DatasetConfig("severstal", "unused")), "unused", "unused")
    kept = {
        name: value
        for name in axis_names()
        if name != "synthesis.texture_uri"
        and (value := option(study.train, name)) != option(default, name)
        and value is not None
    }
    kept |= {name: getattr(study, name) for name in ("steps_per_epoch", "num_probes", "probe_share")}
    return hashlib.sha256(json.dumps([STUDY_VERSION, kept], sort_keys=True).encode()).hexdigest()[:12]
