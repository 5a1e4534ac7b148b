"""One trial: a training run under a condition, judged on the frozen probe. Plain torch, no Ray."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from steelray.reconstruction.batch import Batch, collate
from steelray.reconstruction.config import TrainConfig
from steelray.reconstruction.draem import Draem
from steelray.reconstruction.session import NonFiniteLoss, TrainingSession
from steelray.reconstruction.sources import AnomalySource
from steelray.reconstruction.synthesis import SampleMaker, samples_of_step
from steelray.research.study import criteria
from steelray.research.study.config import StudyConfig
from steelray.research.study.plan import Trial
from steelray.research.study.probe import (
    NUM_TILES,
    Probe,
    ambiguous_share,
    desaturated_ap,
    make_probe,
    measure,
    turned_loss,
    untrained_aps,
)

Pixels = NDArray[np.uint8]
OnProbe = Callable[[dict[str, float]], None]
STEP_NAMES = ("l2", "ssim", "focal", "total", "grad_norm", "grad_norm_reconstructive", "grad_norm_discriminative")
NUM_GRADIENT_REPORTS = 3


@dataclass(frozen=True)
class TrialImages:
    """Images of a trial, pixels_HWC each, with the condition's changes made.

    Attributes:
        fit: to train on. held_out: to cut the probe from. unseen: clean strips in neither of the two; may be empty.
    """

    fit: Sequence[Pixels]
    held_out: Sequence[Pixels]
    unseen: Sequence[Pixels] = ()


@dataclass
class _Log:
    """Records of one training run.

    Attributes:
        steps, probes, gradients: one row per step, per look at the probe, and per report on gradients.
        tile_losses_N: 1 - SSIM of every probe tile at the last look, float32; NaN before the first.
        failure: step and term of a loss that was not finite.
    """

    tile_losses_N: NDArray[np.float32]
    steps: list[dict[str, float]] = field(default_factory=list)
    probes: list[dict[str, float]] = field(default_factory=list)
    gradients: list[dict[str, float]] = field(default_factory=list)
    failure: dict[str, Any] | None = None

    def column(self, name: str) -> list[float]:
        return [row[name] for row in self.steps]


def run_trial(
    trial: Trial,
    study: StudyConfig,
    images: TrialImages,
    textures: AnomalySource | None,
    *,
    device: torch.device | str = "cpu",
    on_probe: OnProbe | None = None,
    on_end: Callable[[TrainingSession], None] | None = None,
) -> dict[str, Any]:
    """Train and judge one trial.

    Args:
        on_probe: receives the probe's figures with `step` as they come; it may raise to stop the trial.
        on_end: receives the trained session, unless a loss was not finite.

    Returns:
        One row for trials.jsonl: settings, `status` (`ok`, or `nan` with the step), `figures`, `criteria`, `curves`.
    """
    start_s = time.perf_counter()
    config = trial.config(study)
    assert config.num_steps is not None
    fit = images.fit[: _num_strips(config, len(images.fit))]
    probe = make_probe(images.held_out, study.train, textures)
    session = TrainingSession(config, config.num_steps, device)
    log = _train(session, _batches(config, fit, textures), probe, study.num_probes, on_probe)
    row: dict[str, Any] = {
        "trial_id": trial.trial_id, "arm": trial.arm, "hypothesis": trial.hypothesis, "condition": trial.condition,
        "settings": trial.settings, "seed": trial.seed, "status": "nan" if log.failure else "ok",
        "failure": log.failure, "num_steps": config.num_steps, "batch_size": config.batch_size,
    }  # fmt: skip
    if log.failure is None:
        network = _network(session)
        row["figures"] = {
            **log.probes[-1],
            **_mode_losses(session, probe),
            **_spread(log.column("total"), study.steps_per_epoch),
            **ambiguous_share(fit, config, textures),
            **_on_unseen_strips(network, images.unseen, study, textures, session.device),
            "pixel_ap_desaturated": desaturated_ap(network, probe, session.device),
            "turned_over_unturned": turned_loss(network, probe, session.device),
            "floor_rank_correlation": _rank_correlation(probe.floors_N.numpy(), log.tile_losses_N),
        }
        if on_end is not None:
            on_end(session)
    row["probe"] = {"floor_loss": probe.floor_loss, "constant_focal": probe.constant_focal, **untrained_aps(probe)}
    row["criteria"] = judge(row, log.probes, log.column("total"), log.column("grad_norm"), study.steps_per_epoch)
    row["curves"] = {
        "train": _block_means(log.steps, study.steps_per_epoch), "probe": log.probes, "gradients": log.gradients,
        "tile_floor": _rounded(probe.floors_N.tolist()), "tile_ssim_loss": _rounded(log.tile_losses_N.tolist()),
    }  # fmt: skip
    row["duration_s"] = round(time.perf_counter() - start_s, 2)
    return row


def _train(
    session: TrainingSession, batches: Iterable[Batch], probe: Probe, num_probes: int, on_probe: OnProbe | None
) -> _Log:
    """Train until the batches or the finite losses end."""
    network = _network(session)
    log = _Log(np.full(len(probe), np.nan, dtype=np.float32))
    probe_steps = _evenly(session.num_steps, num_probes)
    gradient_steps = {1, *_evenly(session.num_steps, NUM_GRADIENT_REPORTS)}
    try:
        for step, batch in enumerate(batches, start=1):
            if step in gradient_steps:
                log.gradients.append({"step": step, **session.gradient_report(batch)})
            metrics = session.train_step(batch)
            log.steps.append({name: metrics[name] for name in STEP_NAMES})
            if step in probe_steps:
                figures, log.tile_losses_N = measure(network, probe, session.device)
                log.probes.append({"step": step, **figures})
                if on_probe is not None:
                    on_probe({**log.probes[-1], "floor_loss": probe.floor_loss})
    except NonFiniteLoss as error:
        log.failure = {"step": error.step, "term": error.term}
    return log


def _rank_correlation(first_N: NDArray[Any], second_N: NDArray[Any]) -> float:
    """Return Spearman's coefficient over the pairs in which both values are finite."""
    return float(spearmanr(first_N, second_N, nan_policy="omit").statistic)


def _network(session: TrainingSession) -> Draem:
    network = session.eval_model
    assert isinstance(network, Draem)
    return network


def judge(
    row: dict[str, Any],
    probes: Sequence[dict[str, float]],
    totals: Sequence[float],
    norms: Sequence[float],
    steps_per_epoch: int,
) -> dict[str, Any]:
    """Check C1 to C5 and the thesis's criterion on a trial's row and logs; none holds for a trial that ended in NaN."""
    if row["status"] != "ok":
        return {"c1": False, "c2": False, "c3": False, "c4": False, "c5": "never", "converged": False, "thesis": False}
    steps = [int(probed["step"]) for probed in probes]
    losses = [probed["reconstruction_loss"] for probed in probes]
    figures, floor = row["figures"], row["probe"]["floor_loss"]
    steadiness = criteria.stability(totals, norms, steps_per_epoch)
    verdicts = {
        "c1": criteria.reconstruction_converged(losses, steps, floor),
        "c2": criteria.segmentation_converged(figures["focal"], row["probe"]["constant_focal"], figures["pixel_ap"]),
        "c3": steadiness.holds,
        "c4": criteria.gap_closed(figures["train_eval_gap"]),
    }
    return {
        **verdicts,
        "converged": all(verdicts.values()),
        "c5": criteria.speed(criteria.first_step_below(losses, steps, floor) if verdicts["c1"] else None),
        "thesis": criteria.thesis_converged(totals, steps_per_epoch),
        "cv": steadiness.cv,
        "max_over_median": steadiness.max_over_median,
        "norm_p99_over_p50": steadiness.norm_p99_over_p50,
    }


def _batches(config: TrainConfig, fit: Sequence[Pixels], textures: AnomalySource | None) -> Iterator[Batch]:
    maker = SampleMaker(config, textures=textures, others=fit)
    assert config.num_steps is not None
    for step in range(config.num_steps):
        places = samples_of_step(step, config.batch_size, len(fit), config.seed)
        yield collate([maker.sample(fit[i], f"strip-{i}", epoch=epoch, index=i) for epoch, i in places])


def _num_strips(config: TrainConfig, available: int) -> int:
    wanted = config.data.dataset.num_fit if config.data.dataset is not None else None
    return min(wanted or available, available)


def _mode_losses(session: TrainingSession, probe: Probe) -> dict[str, float]:
    batches = probe.batches()
    train = session.evaluate(batches, batch_statistics=True)["total"]
    evaluation = session.evaluate(batches)["total"]
    return {"train_mode_loss": train, "eval_mode_loss": evaluation, "train_eval_gap": criteria.gap(train, evaluation)}


def _spread(totals: Sequence[float], steps_per_epoch: int) -> dict[str, float]:
    """Return the raw total's level and its spread before and after the rate is first lowered (at 0.8 of the run)."""
    split = round((1 - criteria.LAST) * len(totals))
    before, after = np.asarray(totals[round(0.6 * len(totals)) : split]), np.asarray(totals[split:])
    return {
        "late_total": float(after.mean()),
        "sd_before_drop": float(before.std()),
        "sd_after_drop": float(after.std()),
    }


def _on_unseen_strips(
    network: Draem, unseen: Sequence[Pixels], study: StudyConfig, textures: AnomalySource | None, device: torch.device
) -> dict[str, float]:
    """Judge a network on a probe from unseen strips: how much it owes to knowing the others (H9)."""
    if not unseen:
        return {}
    figures, _ = measure(network, make_probe(unseen, study.train, textures, NUM_TILES), device)
    return {f"unseen_{name}": figures[name] for name in ("reconstruction_loss", "focal", "pixel_ap")}


def _evenly(num_steps: int, count: int) -> list[int]:
    return sorted({max(1, round(num_steps * (number + 1) / count)) for number in range(count)})


def _block_means(rows: Sequence[dict[str, float]], size: int) -> dict[str, list[float]]:
    blocks = [rows[start : start + size] for start in range(0, len(rows), size)]
    return {name: _rounded([float(np.mean([r[name] for r in block])) for block in blocks]) for name in STEP_NAMES}


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
