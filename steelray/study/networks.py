"""The networks that the claim's trials end with: kept, and their maps read with and without smoothing.

How far to smooth is chosen for each arm by the strips kept for choosing; the test strips are only judged.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch

from steelray.data.datasets import Sample
from steelray.data.storage import Location, ObjectMissing
from steelray.models.draem import Draem
from steelray.reconstruction_scoring import reconstruction_scorer
from steelray.study.config import StudyConfig
from steelray.study.detection import ScoredStrips, score_strips
from steelray.study.plan import Trial
from steelray.training import TrainingSession

FOLDER = "networks"
Row = dict[str, Any]


def keep_network(results_dir: str, trial_id: str, session: TrainingSession) -> None:
    """Stores the weights that scoring needs, beside the trials' results."""
    body = io.BytesIO()
    torch.save(session.state_dict()["weights"], body)
    Location(results_dir).write(_key(trial_id), body.getvalue())


def read_network(study: StudyConfig, trial: Trial) -> Draem:
    """The network that a trial ended with. Raises `ObjectMissing` where none is kept."""
    body = Location(study.results_dir).read(_key(trial.trial_id))
    model = Draem(replace(trial.config(study).draem, map_sigma_px=0.0))
    model.load_state_dict(torch.load(io.BytesIO(body), weights_only=True))
    return model.eval()


def score_networks(
    study: StudyConfig,
    trials: Sequence[Trial],
    validation: Sequence[Sample],
    test: Sequence[Sample],
    report: Callable[[str], None],
) -> dict[str, Row]:
    """Per arm, how far its maps are to be smoothed, and its networks' figures on the test strips with and without.

    Returns:
        For each arm of which networks are kept: `validation`, the mean pixel AUROC per sigma; `map_sigma_px`, the best;
        `plain` and `smoothed`, the figures of each seed.
    """
    found: dict[str, Row] = {}
    for arm in dict.fromkeys(trial.arm for trial in trials):
        scored = []
        for trial in (trial for trial in trials if trial.arm == arm):
            try:
                model = read_network(study, trial)
            except ObjectMissing:
                continue
            scorer = reconstruction_scorer(model, trial.config(study).input)  # in tiles as large as it was trained on
            choosing = score_strips(scorer, validation)
            by_sigma = {sigma: _smoothed(choosing, sigma).pixel_auroc() for sigma in study.map_sigmas_px}
            scored.append((trial, by_sigma, score_strips(scorer, test)))
        if not scored:
            continue
        means = {sigma: fmean(by_sigma[sigma] for _, by_sigma, _ in scored) for sigma in study.map_sigmas_px}
        best = max(means, key=lambda sigma: means[sigma])
        found[arm] = {
            "validation": {f"{sigma:g}": round(mean, 4) for sigma, mean in means.items()},
            "map_sigma_px": best,
            "plain": {str(trial.seed): strips.figures() for trial, _, strips in scored},
            "smoothed": {str(trial.seed): _smoothed(strips, best).figures() for trial, _, strips in scored},
        }
        report(f"{arm}: {len(scored)} networks, maps smoothed by {best:g} px")
    return found


def _smoothed(strips: ScoredStrips, sigma_px: float) -> ScoredStrips:
    return strips.smoothed(sigma_px) if sigma_px > 0 else strips


def _key(trial_id: str) -> str:
    return f"{FOLDER}/{trial_id}.pt"
