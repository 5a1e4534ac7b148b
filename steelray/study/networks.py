"""The networks that trials of the claim end with, kept so that how their maps are read can change without training."""

import io
from typing import Any

import torch

from steelray.data.storage import Location
from steelray.training import TrainingSession

FOLDER = "networks"


def keep_network(results_dir: str, trial_id: str, session: TrainingSession) -> None:
    """Stores the weights that scoring needs."""
    body = io.BytesIO()
    torch.save(session.state_dict()["weights"], body)
    Location(results_dir).write(_key(trial_id), body.getvalue())


def read_network(results_dir: str, trial_id: str) -> dict[str, Any]:
    """Raises `ObjectMissing` where none is kept."""
    weights: dict[str, Any] = torch.load(io.BytesIO(Location(results_dir).read(_key(trial_id))), weights_only=True)
    return weights


def _key(trial_id: str) -> str:
    return f"{FOLDER}/{trial_id}.pt"
