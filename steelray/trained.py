"""A model's folder, whatever the method: who it is, what it takes, how it is calibrated, and the way to its `Scorer`.

bank.json or checkpoint.json …       the model (steelray.memory_bank.bank, steelray.checkpoint)
calibrations/000001.json             thresholds; the highest number counts
calibrations/000001.parquet          the score rows they rest on, schema `SCORES`
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from steelray.calibration import Calibration
from steelray.config import ComputeConfig, ConfigError
from steelray.data.storage import Location, ObjectMissing
from steelray.memory_bank.bank import INFO_FILE, BankInfo, read_info, read_profile
from steelray.memory_bank.shard import BankSearch, LocalSearch, load_shard
from steelray.models.portable_embedder import EmbedFunction, PortableEmbedder
from steelray.nominal_profile import NominalProfile
from steelray.patchcore_config import EmbedderConfig, ScoringConfig
from steelray.schema import SCORES
from steelray.scoring import PatchCoreScorer, Scorer
from steelray.stage_timing import Observe, TimedSearch, timed_embed, unobserved

if TYPE_CHECKING:
    from steelray.checkpoint import CheckpointInfo  # brings torch, which actors with an OpenVINO graph do without

CALIBRATIONS = "calibrations"
CHECKPOINT_FILE = "checkpoint.json"


@dataclass(frozen=True)
class Model:
    """What is known of a trained model without loading its weights."""

    uri: str
    method: str
    """patchcore, draem or conv_ae."""
    model_id: str
    """Digest of the weights and of all settings that a score depends on; for PatchCore without the bank's vectors."""
    input_size_px: tuple[int, int] | None
    """Height and width that every image must have; None: any."""
    bank: BankInfo | None
    checkpoint: "CheckpointInfo | None" = None

    @property
    def bank_id(self) -> str | None:
        """Digest of the memory bank, where there is one."""
        return self.bank.bank_id if self.bank is not None else None


def read_weights(uri: str) -> bytes:
    """Fetches a weights file from a path or an s3:// URI. Raises `ConfigError`."""
    folder, _, name = uri.rpartition("/")
    try:
        return Location(folder or ".").read(name)
    except Exception as error:
        raise ConfigError(
            f"weights {uri} cannot be read ({type(error).__name__}): give a file or an s3:// URI"
        ) from None


def open_model(uri: str) -> Model:
    """Reads a model's description.

    Raises:
        ConfigError: nothing there, not a model, or one of another format version.
    """
    location = Location(uri)
    location.check_access()
    if location.exists(CHECKPOINT_FILE):
        from steelray.checkpoint import read_info as read_checkpoint

        trained = read_checkpoint(location.read, uri)
        return Model(uri, trained.kind, trained.model_id, None, None, trained)
    if not location.exists(INFO_FILE):
        raise ConfigError(
            f"{uri}: no model there ({INFO_FILE} or {CHECKPOINT_FILE} is missing): build or train one, or check the URI"
        )
    info = read_info(location.read, uri)
    return Model(uri, "patchcore", info.model_id, info.input_size_px, info)


def nominal_uris(bank_uri: str) -> list[str]:
    """Where the images that a bank learned from were; several if it has grown, none if its run.json does not say."""
    try:
        record = json.loads(Location(bank_uri).read("run.json"))
        uris = record.get("nominal_uris") or [record["config"]["nominal"]["uri"]]
        return [str(uri) for uri in uris]
    except (ObjectMissing, ValueError, KeyError, TypeError, AttributeError):
        return []


def check_agreement(model: Model, embedder: EmbedderConfig | None, scoring: ScoringConfig | None = None) -> None:
    """Raises `ConfigError` if settings that were given differ from those that the bank was built with."""
    for name, given, stored in (
        ("embedder", embedder, model.bank and model.bank.embedder),
        ("scoring", scoring, model.bank and model.bank.scoring),
    ):
        if given is not None and given != stored:
            differing = [key for key in vars(given) if stored is None or getattr(given, key) != getattr(stored, key)]
            raise ConfigError(
                f"{name}.{differing[0]} is {getattr(given, differing[0])!r} but the model at {model.uri} has "
                f"{getattr(stored, differing[0], None)!r}: leave {name} out, or rebuild the bank"
            )


@lru_cache(maxsize=4)
def portable_embedder(
    embedder: EmbedderConfig, weights_digest: str | None, compute: ComputeConfig, use_gpu: bool
) -> PortableEmbedder | None:
    """The embedder made ready once for all CPU actors of this process's jobs; None where actors run it with torch.

    Raises:
        ConfigError: unknown backbone, or weights that cannot be had, do not fit or are not those of the bank.
    """
    from steelray.models.patch_embedder import build_patch_embedder, export_openvino, uses_openvino

    module = build_patch_embedder(embedder, weights_digest, read_weights=read_weights)
    return export_openvino(module) if uses_openvino(compute.backend, use_gpu) else None


def load_embed(
    embedder: EmbedderConfig,
    weights_digest: str,
    compute: ComputeConfig,
    num_threads: int,
    portable: PortableEmbedder | None,
) -> tuple[EmbedFunction, int]:
    """The embedder as a function in this process, and its stride in pixels."""
    if portable is not None:
        return portable.compile(num_threads), portable.stride_px
    from steelray.models.patch_embedder import build_patch_embedder, compile_embedder

    module = build_patch_embedder(embedder, weights_digest, read_weights=read_weights)
    return compile_embedder(module, backend=compute.backend, num_threads=num_threads), module.stride_px


def load_profile(model: Model) -> NominalProfile | None:
    """What held-out nominal strips show of distances to a model's bank; None where scores are not normalised.

    Raises:
        ConfigError: it was never measured, is missing, is damaged, or is of another bank.
    """
    info = model.bank
    if info is None or info.scoring.normalization == "none":
        return None
    if info.profile is None:
        raise ConfigError(
            f"{model.uri}: scoring.normalization is {info.scoring.normalization!r} but {INFO_FILE} names no profile of "
            "held-out strips: its build was interrupted, build the bank anew"
        )
    body = read_profile(Location(model.uri).read, info)
    return NominalProfile.from_bytes(body, info.scoring.normalization, info.num_vectors)


def load_scorer(
    model: Model,
    compute: ComputeConfig,
    *,
    num_threads: int,
    search: BankSearch | None = None,
    portable: PortableEmbedder | None = None,
    use_gpu: bool = False,
    observe: Observe = unobserved,
) -> Scorer:
    """The model, ready to score in this process.

    Args:
        search: where its memory bank is searched; None loads the whole bank here.
        portable: from `portable_embedder`; None builds the embedder here.
        observe: told the seconds of every call of the embedder and of the search.

    Raises:
        ConfigError: weights that cannot be had, or a damaged file.
    """
    if model.checkpoint is not None:
        return _load_network(model.uri, model.checkpoint, num_threads, use_gpu)
    assert model.bank is not None
    location, info = Location(model.uri), model.bank
    embed, stride_px = load_embed(info.embedder, info.weights_digest, compute, num_threads, portable)
    if search is None:
        search = LocalSearch([load_shard(location.read, info, num_threads=num_threads, use_gpu=use_gpu)])
    if observe is not unobserved:
        embed, search = timed_embed(embed, observe), TimedSearch(search, observe)
    return PatchCoreScorer(embed, search, info.embedder, info.scoring, stride_px, load_profile(model))


def _load_network(uri: str, info: "CheckpointInfo", num_threads: int, use_gpu: bool) -> Scorer:
    import torch

    from steelray.checkpoint import load_network
    from steelray.reconstruction_scoring import reconstruction_scorer

    torch.set_num_threads(num_threads)
    network = load_network(Location(uri).read, info, uri)
    return reconstruction_scorer(network, info.input, "cuda" if use_gpu else "cpu")


def _versions(location: Location) -> list[int]:
    names = [stored.key for stored in (location / CALIBRATIONS).list()]
    return sorted(int(name.removesuffix(".json")) for name in names if name.endswith(".json"))


def read_calibration(uri: str, version: int | None = None) -> tuple[Calibration, int]:
    """A model's calibration (None: the newest) and its version.

    Raises:
        ConfigError: there is none.
    """
    location = Location(uri)
    versions = _versions(location)
    if not versions or (version is not None and version not in versions):
        raise ConfigError(f"{uri}: no calibration {version or ''} (there are {versions}): run jobs/calibrate.py")
    version = versions[-1] if version is None else version
    return Calibration.from_dict(json.loads(location.read(f"{CALIBRATIONS}/{version:06d}.json"))), version


def read_calibration_rows(uri: str, version: int) -> pa.Table:
    """The score rows that a calibration rests on; an empty table if they were not kept."""
    try:
        body = Location(uri).read(f"{CALIBRATIONS}/{version:06d}.parquet")
    except ObjectMissing:
        return SCORES.empty_table()
    return pq.read_table(pa.BufferReader(body))


def write_calibration(uri: str, calibration: Calibration, rows: pa.Table, source: str) -> int:
    """Adds a calibration as the newest version; earlier ones stay. Raises `ObjectChanged` if two are added at once.

    Args:
        rows: score rows (schema `SCORES`) of the nominal strips that it rests on.
        source: where these came from, in words.
    """
    location = Location(uri)
    version = (_versions(location) or [0])[-1] + 1
    groups = [calibration.group_of(key) for key in rows.column("image_key").to_pylist()]
    rows = rows.set_column(rows.schema.get_field_index("group"), SCORES.field("group"), pa.array(groups, pa.string()))
    body = pa.BufferOutputStream()
    pq.write_table(rows, body)
    record: dict[str, Any] = {
        "version": version,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": source,
        "num_strips": rows.num_rows,
        **calibration.to_dict(),
    }
    location.write(f"{CALIBRATIONS}/{version:06d}.parquet", body.getvalue().to_pybytes())
    location.write_if(f"{CALIBRATIONS}/{version:06d}.json", json.dumps(record, indent=2).encode(), None)
    return version
