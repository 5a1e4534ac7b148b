"""File format of a trained network, without pickle. The caller decides where the files are stored.

    model.safetensors    weights used for scoring
    resume.safetensors   the rest of the training state; only in checkpoints from which a run can continue
    checkpoint.json      description of the model; written last, so a checkpoint without it does not count

`model_id` is a digest of weights, network and input. Calibrations lie beside these files, as in a memory bank.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError

from steelray.config import ConfigError, Facts
from steelray.description import Read, dump, fetch, parse
from steelray.reconstruction.build import Network, build_model
from steelray.reconstruction.config import (
    ConvAutoencoderConfig,
    DraemConfig,
    InputConfig,
    ModelKind,
    NetworkConfig,
    kind_of,
)

FORMAT_VERSION: Final = 1
INFO_FILE = "checkpoint.json"
WEIGHTS_FILE = "model.safetensors"
RESUME_FILE = "resume.safetensors"

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class CheckpointInfo:
    """Contents of checkpoint.json."""

    kind: ModelKind
    network: NetworkConfig
    input: InputConfig
    weights_sha256: str
    """Digest of model.safetensors, checked when the file is read."""
    resume_sha256: str | None
    """Digest of resume.safetensors; None without that file."""
    training: Facts
    """Provenance of the weights: run, step, data, settings, metrics, versions."""
    created_at: str
    format_version: Literal[1]

    @property
    def model_id(self) -> str:
        """Digest of everything that determines a score."""
        settings = {"kind": self.kind, "network": asdict(self.network), "input": asdict(self.input)}
        text = json.dumps({**settings, "weights": self.weights_sha256}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def checkpoint_files(
    network: NetworkConfig,
    input_config: InputConfig,
    weights: Tensors,
    *,
    resume: Tensors | None = None,
    training: Facts | None = None,
) -> Iterator[tuple[str, bytes]]:
    """Yield the name and body of each file of a checkpoint, in the order in which they must be written.

    Args:
        weights, resume: contiguous CPU tensors by name, as `TrainingSession.state_dict` returns them.
        training: provenance, stored unchanged; must be JSON-able.
    """
    body = safetensors.torch.save(weights)
    weights_sha256, resume_sha256 = _sha256(body), None
    yield WEIGHTS_FILE, body
    if resume is not None:
        body = safetensors.torch.save(resume)
        resume_sha256 = _sha256(body)
        yield RESUME_FILE, body
    info = CheckpointInfo(
        kind=kind_of(network),
        network=network,
        input=input_config,
        weights_sha256=weights_sha256,
        resume_sha256=resume_sha256,
        training=training or {},
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        format_version=FORMAT_VERSION,
    )
    yield INFO_FILE, dump(info, model_id=info.model_id)


@dataclass(frozen=True)
class _Stored:
    model_id: str
    kind: ModelKind
    format_version: Literal[1]


@dataclass(frozen=True)
class _DraemCheckpoint(CheckpointInfo):
    network: DraemConfig


@dataclass(frozen=True)
class _ConvAutoencoderCheckpoint(CheckpointInfo):
    network: ConvAutoencoderConfig


CHECKPOINTS: dict[ModelKind, type[CheckpointInfo]] = {"draem": _DraemCheckpoint, "conv_ae": _ConvAutoencoderCheckpoint}


def read_info(read: Read, where: str) -> CheckpointInfo:
    """Read and check checkpoint.json.

    Args:
        where: the checkpoint's URI, for messages.

    Raises:
        ConfigError: the file is missing, damaged, edited, or of another format version.
    """
    body, file = fetch(read, INFO_FILE, where, "checkpoint"), f"{where}/{INFO_FILE}"
    stored = parse(_Stored, body, file, "train again")
    info = parse(CHECKPOINTS[stored.kind], body, file, "train again")
    if info.model_id != stored.model_id:
        raise ConfigError(
            f"{file}: its settings do not match model_id {stored.model_id}: the file was edited; train again"
        )
    return info


def read_weights(read: Read, info: CheckpointInfo, where: str) -> Tensors:
    """Read the weights for scoring. Raise `ConfigError` if the file is missing or its digest differs."""
    return _verified(read, WEIGHTS_FILE, info.weights_sha256, where)


def read_resume(read: Read, info: CheckpointInfo, where: str) -> dict[str, Tensors]:
    """Read the state that `TrainingSession.load_state_dict` takes.

    Raises:
        ConfigError: the checkpoint is for scoring only, or a file is missing or damaged.
    """
    if info.resume_sha256 is None:
        raise ConfigError(
            f"{where}: this checkpoint is for scoring only, no run can continue from it: give another run_name"
        )
    resume = _verified(read, RESUME_FILE, info.resume_sha256, where)
    return {"weights": read_weights(read, info, where), "resume": resume}


def load_network(read: Read, info: CheckpointInfo, where: str) -> Network:
    """Load the network with its weights, in evaluation mode.

    Raises:
        ConfigError: the weights cannot be read or do not fit this network.
    """
    model = build_model(info.network)
    try:
        model.load_state_dict(read_weights(read, info, where))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ConfigError(f"{where}/{WEIGHTS_FILE}: does not fit this {info.kind} network ({reason})") from None
    return model.eval()


def check_agreement(info: CheckpointInfo, network: NetworkConfig, input_config: InputConfig, where: str) -> None:
    """Raise `ConfigError` unless the checkpoint was made with this network config and this input config."""
    if info.kind != kind_of(network):
        raise ConfigError(
            f"{where}: this is a checkpoint of {info.kind}, not of {kind_of(network)}: set model to {info.kind}, "
            "or give another run_name"
        )
    for section, given, stored in ((info.kind, network, info.network), ("input", input_config, info.input)):
        differing = [name for name in vars(given) if getattr(given, name) != getattr(stored, name)]
        if differing:
            name = differing[0]
            raise ConfigError(
                f"{section}.{name} is {getattr(given, name)} but the checkpoint at {where} has "
                f"{getattr(stored, name)}: use that, or give another run_name"
            )


def _verified(read: Read, name: str, sha256: str, where: str) -> Tensors:
    try:
        body = read(name)
    except LookupError:
        raise ConfigError(f"{where}/{name} is missing: the checkpoint is incomplete, use an earlier one") from None
    if _sha256(body) != sha256:
        raise ConfigError(f"{where}/{name}: digest differs from {INFO_FILE}'s; it is damaged, use an earlier one")
    try:
        return safetensors.torch.load(body)
    except SafetensorError as error:
        raise ConfigError(f"{where}/{name}: not a safetensors file ({error}); use an earlier checkpoint") from None


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
