"""Open a stored model of any kind and load its scorer.

A model's location holds
    bank.json …         a memory bank (steelray.patchcore.bank), or
    checkpoint.json …   a network (steelray.reconstruction.checkpoint), or
    ensemble.json       references to other models that are fused (steelray.models.ensemble), and
    calibrations/       its thresholds (steelray.models.calibration)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from steelray.config import ComputeConfig, ConfigError
from steelray.description import parse
from steelray.imaging.scorer import Scorer
from steelray.models.ensemble import INFO_FILE as ENSEMBLE_FILE
from steelray.models.ensemble import EnsembleInfo, FusedScorer, check_identity
from steelray.models.ensemble import read_info as read_ensemble
from steelray.patchcore.bank import INFO_FILE, BankInfo, read_info, read_origins
from steelray.patchcore.config import EmbedderConfig
from steelray.patchcore.index import BankSearch, LocalSearch, load_shard
from steelray.patchcore.leave_out import own_vectors
from steelray.patchcore.portable_embedder import Embedder, PortableEmbedder
from steelray.patchcore.scorer import PatchCoreScorer
from steelray.patchcore.tiles import tiled_embedding
from steelray.patchcore.timing import Observe, TimedSearch, timed_embed, unobserved
from steelray.storage.location import Location, ObjectMissing

if TYPE_CHECKING:
    from steelray.reconstruction.checkpoint import (
        CheckpointInfo,  # brings torch, which actors with an OpenVINO graph do without
    )

CHECKPOINT_FILE = "checkpoint.json"


@dataclass(frozen=True)
class Model:
    """A stored model, described without loading its weights."""

    uri: str
    method: str
    """patchcore, draem, conv_ae or ensemble."""
    model_id: str
    """Digest of the weights and of all settings that a score depends on; PatchCore's leaves out the bank's vectors."""
    input_size_px: tuple[int, int] | None
    """Height and width of the nominal strips, from which images may differ a little; None: any."""
    bank: BankInfo | None
    checkpoint: "CheckpointInfo | None" = None
    ensemble: EnsembleInfo | None = None

    @property
    def bank_id(self) -> str | None:
        """Digest of the memory bank; None if there is none."""
        return self.bank.bank_id if self.bank is not None else None


def open_model(uri: str) -> Model:
    """Read a model's description, and that of every member if it is an ensemble.

    Raises:
        ConfigError: there is no model, it has another format version, or an ensemble's member has changed.
    """
    location = Location(uri)
    location.check_access()
    if location.exists(ENSEMBLE_FILE):
        info = read_ensemble(location.read, uri)
        return Model(uri, "ensemble", info.model_id, common_input_size(open_members(info, uri)), None, ensemble=info)
    return _open_single(uri)


def open_members(info: EnsembleInfo, where: str) -> list[Model]:
    """Open the members of an ensemble.

    Args:
        where: the ensemble's URI, for messages.

    Raises:
        ConfigError: a member cannot be read, or is no longer the model that was fused.
    """
    models = []
    for member in info.members:
        try:
            model = _open_single(member.uri)
        except ConfigError as error:
            raise ConfigError(f"ensemble {where}: a member cannot be used: {error}") from None
        check_identity(member, model.model_id, model.bank_id, where)
        models.append(model)
    return models


def common_input_size(models: Sequence[Model]) -> tuple[int, int] | None:
    """Return the height and width that images must have for all of these models; None: any.

    Raises:
        ConfigError: two models need different ones.
    """
    wanted = {model.input_size_px: model for model in models if model.input_size_px is not None}
    if len(wanted) > 1:
        one, other = list(wanted.values())[:2]
        raise ConfigError(
            f"{one.uri} takes strips of {one.input_size_px} px (height, width), {other.uri} of {other.input_size_px}: "
            "fuse models that take strips of one size"
        )
    return next(iter(wanted), None)


def _open_single(uri: str) -> Model:
    location = Location(uri)
    location.check_access()
    if location.exists(ENSEMBLE_FILE):
        raise ConfigError(f"{uri} is an ensemble, and an ensemble takes single models only: name its members instead")
    if location.exists(CHECKPOINT_FILE):
        from steelray.reconstruction.checkpoint import read_info as read_checkpoint

        trained = read_checkpoint(location.read, uri)
        return Model(uri, trained.kind, trained.model_id, None, None, trained)
    if not location.exists(INFO_FILE):
        raise ConfigError(
            f"{uri}: no model there ({INFO_FILE} or {CHECKPOINT_FILE} is missing): build or train one, or check the URI"
        )
    info = read_info(location.read, uri)
    return Model(uri, "patchcore", info.model_id, info.input_size_px, info)


@dataclass(frozen=True)
class NominalPlace:
    """The archive of nominal images in a job's settings."""

    uri: str


@dataclass(frozen=True)
class NominalData:
    """The section `data` of training."""

    nominal: NominalPlace | None = None


@dataclass(frozen=True)
class NominalSettings:
    """Settings of a job that made a model; building a bank has `nominal`, training has `data`."""

    nominal: NominalPlace | None = None
    data: NominalData = NominalData()


@dataclass(frozen=True)
class ModelRecord:
    """A model's run.json, as far as it is read; `nominal_uris` is of banks that have grown, and of ensembles."""

    config: NominalSettings
    nominal_uris: tuple[str, ...] = ()
    format_version: Literal[1] = 1


def nominal_uris(model_uri: str) -> list[str]:
    """Return the places of the images that a model learned from: several if it has grown, none if it is not recorded.

    Raises:
        ConfigError: its run.json is damaged.
    """
    location = Location(model_uri)
    try:
        body = location.read("run.json")
    except ObjectMissing:
        return []
    record = parse(ModelRecord, body, f"{location}/run.json", "restore or delete the file")
    place = record.config.nominal or record.config.data.nominal
    return list(record.nominal_uris) or ([place.uri] if place else [])


@lru_cache(maxsize=4)
def portable_embedder(
    embedder: EmbedderConfig, weights_digest: str | None, compute: ComputeConfig, use_gpu: bool
) -> PortableEmbedder | None:
    """Export an embedder once for all CPU actors of this process's jobs; None if they run it with torch.

    Raises:
        ConfigError: the backbone is unknown, or its weights are missing, do not fit or are not those of the bank.
    """
    from steelray.patchcore.embedder import build_patch_embedder, export_openvino, uses_openvino

    module = build_patch_embedder(embedder, weights_digest)
    return export_openvino(module) if uses_openvino(embedder.backbone, compute.backend, use_gpu) else None


def load_embedder(
    config: EmbedderConfig,
    weights_digest: str,
    compute: ComputeConfig,
    num_threads: int,
    portable: PortableEmbedder | None = None,
) -> Embedder:
    """Make the embedder of a stored bank ready to run in this process.

    Args:
        portable: from `portable_embedder`; None: the embedder is built with torch.
    """
    if portable is not None:
        embed = tiled_embedding(portable.compile(num_threads), config, portable.stride_px)
        return Embedder(config, embed, portable.stride_px, weights_digest)
    from steelray.patchcore.embedder import build_patch_embedder, compile_embedder

    module = build_patch_embedder(config, weights_digest)
    embed = compile_embedder(module, backend=compute.backend, num_threads=num_threads)
    return Embedder(config, embed, module.stride_px, weights_digest)


def load_scorer(
    model: Model,
    compute: ComputeConfig,
    *,
    num_threads: int,
    search: BankSearch | None = None,
    portable: PortableEmbedder | None = None,
    use_gpu: bool = False,
    observe: Observe = unobserved,
    nominal: bool = False,
) -> Scorer:
    """Load a model to score with in this process. An ensemble loads all of its members whole.

    Args:
        search: searches the memory bank; None: the whole bank is loaded here.
        portable: from `portable_embedder`; None: the embedder is built here.
        observe: called with the seconds of every call of the embedder and of the search.
        nominal: also load which vectors came from which nominal strip, to score those strips without their own.

    Raises:
        ConfigError: weights are missing, a file is damaged, or an ensemble's member has changed.
    """
    if model.ensemble is not None:
        scorers = [
            load_scorer(member, compute, num_threads=num_threads, use_gpu=use_gpu, observe=observe, nominal=nominal)
            for member in open_members(model.ensemble, model.uri)
        ]
        scales, weights = zip(*((member.scale, member.weight) for member in model.ensemble.members), strict=True)
        return FusedScorer(scorers, scales, weights)
    if model.checkpoint is not None:
        return _load_network(model.uri, model.checkpoint, num_threads, use_gpu)
    assert model.bank is not None
    location, info = Location(model.uri), model.bank
    embedder = load_embedder(info.embedder, info.weights_digest, compute, num_threads, portable)
    embedder = replace(embedder, nominal_px=info.input_size_px)
    if search is None:
        search = LocalSearch([load_shard(location.read, info, num_threads=num_threads, use_gpu=use_gpu)])
    if observe is not unobserved:
        embedder = replace(embedder, embed=timed_embed(embedder.embed, observe))
        search = TimedSearch(search, observe)
    own = own_vectors(*read_origins(location.read, info), info.scoring.num_searched) if nominal else None
    return PatchCoreScorer(embedder, search, info.scoring, own)


def _load_network(uri: str, info: "CheckpointInfo", num_threads: int, use_gpu: bool) -> Scorer:
    import torch

    from steelray.reconstruction.checkpoint import load_network
    from steelray.reconstruction.scorer import reconstruction_scorer

    torch.set_num_threads(num_threads)
    network = load_network(Location(uri).read, info, uri)
    return reconstruction_scorer(network, info.input, "cuda" if use_gpu else "cpu")
