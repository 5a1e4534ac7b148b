"""Networks of the claim's trials: storing them, and scoring strips with them.

Strips are scored as in the paper ("plain"), and at the scale and map smoothing that suit each arm best on the strips
kept for choosing ("chosen"). The test strips take no part in that choice.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from statistics import fmean
from typing import Any

import safetensors.torch

from steelray.evaluation.datasets import Sample
from steelray.imaging.scorer import Scorer
from steelray.reconstruction.draem import Draem
from steelray.reconstruction.scorer import reconstruction_scorer
from steelray.reconstruction.session import TrainingSession
from steelray.research.study.config import StudyConfig
from steelray.research.study.detection import score_strips
from steelray.research.study.plan import Trial
from steelray.storage.location import Location, ObjectMissing

FOLDER = "networks"
Row = dict[str, Any]


def keep_network(results_dir: str, trial_id: str, session: TrainingSession) -> None:
    """Store the weights that scoring needs, beside the trials' results."""
    Location(results_dir).write(_key(trial_id), safetensors.torch.save(session.state_dict()["weights"]))


def read_network(study: StudyConfig, trial: Trial) -> Draem:
    """Read the network of a finished trial. Raises `ObjectMissing` if none was kept."""
    body = Location(study.results_dir).read(_key(trial.trial_id))
    model = Draem(replace(trial.config(study).draem, map_sigma_px=0.0))
    model.load_state_dict(safetensors.torch.load(body))
    return model.eval()


def score_networks(
    study: StudyConfig,
    trials: Sequence[Trial],
    validation: Sequence[Sample],
    test: Sequence[Sample],
    report: Callable[[str], None],
) -> dict[str, Row]:
    """Choose scale and smoothing for each arm and score the test strips with its networks.

    Returns:
        For each arm with kept networks: `validation`, the mean pixel AUROC per scale and sigma; `scoring_scale` and
        `map_sigma_px`, the best pair; `plain` and `chosen`, the figures of each seed.
    """
    found: dict[str, Row] = {}
    for arm in dict.fromkeys(trial.arm for trial in trials):
        networks = list(_networks(study, [trial for trial in trials if trial.arm == arm]))
        if not networks:
            continue
        means = _choosing_means(study, networks, validation)
        scale, sigma_px = max(means, key=lambda reading: means[reading])
        plain, chosen = {}, {}
        for trial, model in networks:
            strips = {at: score_strips(_scorer(study, trial, model, at), test) for at in {1.0, scale}}
            plain[str(trial.seed)] = strips[1.0].figures()
            chosen[str(trial.seed)] = strips[scale].smoothed(sigma_px).figures()
        validated: dict[str, dict[str, float]] = {}
        for (at, by_px), mean in means.items():
            validated.setdefault(f"{at:g}", {})[f"{by_px:g}"] = round(mean, 4)
        found[arm] = {"validation": validated, "scoring_scale": scale, "map_sigma_px": sigma_px,
                      "plain": plain, "chosen": chosen}  # fmt: skip
        report(f"{arm}: {len(networks)} networks, strips scaled to {scale:g}, maps smoothed by {sigma_px:g} px")
    return found


def _networks(study: StudyConfig, trials: Sequence[Trial]) -> Iterator[tuple[Trial, Draem]]:
    for trial in trials:
        with suppress(ObjectMissing):
            yield trial, read_network(study, trial)


def _choosing_means(
    study: StudyConfig, networks: Sequence[tuple[Trial, Draem]], validation: Sequence[Sample]
) -> dict[tuple[float, float], float]:
    """Return the networks' mean pixel AUROC on the strips kept for choosing, for every scale and sigma."""
    found: dict[tuple[float, float], list[float]] = {}
    for trial, model in networks:
        for scale in study.scoring_scales:
            strips = score_strips(_scorer(study, trial, model, scale), validation)
            for sigma_px in study.map_sigmas_px:
                found.setdefault((scale, sigma_px), []).append(strips.smoothed(sigma_px).pixel_auroc())
    return {reading: fmean(values) for reading, values in found.items()}


def _scorer(study: StudyConfig, trial: Trial, model: Draem, scale: float) -> Scorer:
    """Make a scorer with tiles as large as the network was trained on."""
    return reconstruction_scorer(model, replace(trial.config(study).input, scoring_scale=scale))


def _key(trial_id: str) -> str:
    return f"{FOLDER}/{trial_id}.safetensors"
