"""Every JSON file that steelray reads: whole and older ones open, all others are refused in one line."""

import json
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steelray.config import ArchiveConfig, CalibrationConfig, ConfigError
from steelray.description import dump, parse
from steelray.models.calibration import Calibration, CalibrationFile, calibrate, read_calibration, write_calibration
from steelray.models.ensemble import EnsembleInfo, EnsembleMember, NominalScale, make_ensemble
from steelray.models.ensemble import read_info as read_ensemble
from steelray.models.model import ModelRecord, nominal_uris
from steelray.patchcore.bank import BankInfo, bank_files
from steelray.patchcore.bank import read_info as read_bank
from steelray.patchcore.config import EmbedderConfig
from steelray.provenance import run_record
from steelray.reconstruction.build import build_model
from steelray.reconstruction.checkpoint import CheckpointInfo, checkpoint_files
from steelray.reconstruction.checkpoint import read_info as read_checkpoint
from steelray.reconstruction.config import (
    ConvAutoencoderConfig,
    DraemConfig,
    InputConfig,
    NetworkConfig,
    TrainConfig,
    TrainDataConfig,
)
from steelray.reconstruction.run import Failure, TrainRecord, TrainRun
from steelray.runs.record import RunRecord
from steelray.runs.run import Pointer, Run, read_published
from steelray.schema import SCORES
from steelray.storage.location import Location
from tests.patchcore.samples import bank_of
from tests.plant import some_record

TRAINING = TrainConfig("conv_ae", TrainDataConfig(generated=4), "unused", "run")
FOREIGN = {"from": ["another", {"tool": 1}]}


@dataclass(frozen=True)
class File:
    """A kind of file.

    Attributes:
        name: of the file, below a test's folder.
        kinds: the dataclasses that it is read into; what they have no default for is required.
        write: writes a good one into a folder.
        read: reads the one in a folder.
        number, section: paths to a float, and to an object with fields of its own; None if there is none.
    """

    name: str
    kinds: tuple[type, ...]
    write: Callable[[str], object]
    read: Callable[[str], object]
    number: tuple[str | int, ...] | None = None
    section: tuple[str | int, ...] | None = None


def store(folder: str, files: Any) -> None:
    for name, body in files:
        Location(folder).write(name, body)


def write_bank(folder: str) -> None:
    embedder = EmbedderConfig(resize_px=(64, 128))
    bank = bank_of(np.eye(4, dtype=np.float32), embedder=embedder, input_size_px=(256, 1600))
    store(folder, bank_files(bank))


def write_checkpoint(network: NetworkConfig) -> Callable[[str], None]:
    def write(folder: str) -> None:
        weights = build_model(network).state_dict()
        store(folder, checkpoint_files(network, InputConfig(), weights, training={"step": 3}))

    return write


def write_ensemble(folder: str) -> None:
    members = [EnsembleMember(uri, uri, None, 1.0, NominalScale(0.1, 0.7, 1.3, 0.2)) for uri in ("a", "b")]
    Location(folder).write("ensemble.json", make_ensemble(members, 9).to_json())


def some_calibration() -> Calibration:
    scores_N = np.linspace(0, 1, 200)
    keys = [f"line{number % 2}/{number}" for number in range(200)]
    return calibrate(keys, scores_N, scores_N, scores_N, CalibrationConfig(group_pattern=r"^(line\d+)/"))


def write_model_record(folder: str) -> None:
    record = run_record(TRAINING, datetime.now(UTC), nominal_uris=["there"])
    Location(folder).write("run.json", record)


FILES = {
    "bank": File(
        "bank.json",
        (BankInfo,),
        write_bank,
        lambda folder: read_bank(Location(folder).read, folder),
        ("scoring", "sigma_px"),
        ("embedder",),
    ),
    "draem": File(
        "checkpoint.json",
        (CheckpointInfo,),
        write_checkpoint(DraemConfig(width=1 / 16, norm="gn")),
        lambda folder: read_checkpoint(Location(folder).read, folder),
        ("network", "width"),
        ("network",),
    ),
    "conv_ae": File(
        "checkpoint.json",
        (CheckpointInfo,),
        write_checkpoint(ConvAutoencoderConfig("sigmoid")),
        lambda folder: read_checkpoint(Location(folder).read, folder),
        ("input", "scoring_scale"),
        ("input",),
    ),
    "ensemble": File(
        "ensemble.json",
        (EnsembleInfo,),
        write_ensemble,
        lambda folder: read_ensemble(Location(folder).read, folder),
        ("members", 1, "scale", "map_scale"),
        ("members", 0),
    ),
    "calibration": File(
        "calibrations/000001.json",
        (CalibrationFile, Calibration),
        lambda folder: write_calibration(folder, some_calibration(), SCORES.empty_table(), "test"),
        lambda folder: read_calibration(folder)[0],
        ("groups", "line1", "review", "value"),
        ("groups", "", "pixel"),
    ),
    "scoring run": File(
        "runs/a/run.json",
        (RunRecord,),
        lambda folder: Run(folder, "a").finish(dump(some_record("a"))),
        lambda folder: Run(folder, "a").record(),
        ("summary", "threshold"),
        ("night", "groups", 0),
    ),
    "retired run": File(
        "runs/a/retired.json",
        (RunRecord,),
        lambda folder: Location(folder).write("runs/a/retired.json", dump(some_record("a"))),
        lambda folder: Run(folder, "a").retired_record(),
        ("night", "groups", 0, "medians", "score"),
        ("config", "decode"),
    ),
    "pointer": File(
        "published.json",
        (Pointer,),
        lambda folder: Location(folder).write("published.json", dump(Pointer("b", ("b", "a")))),
        lambda folder: read_published(folder).run_ids,
    ),
    "training settings": File(
        "run/settings.json",
        (TrainConfig,),
        lambda folder: TrainRun(folder, "run").begin(TRAINING),
        lambda folder: TrainRun(folder, "run").begin(TRAINING),
        ("optimizer", "lr"),
        ("synthesis",),
    ),
    "training failure": File(
        "run/failure.json",
        (Failure,),
        lambda folder: TrainRun(folder, "run").write_failure(Failure(1, "x", 0, "l2", ("a", "b"))),
        lambda folder: TrainRun(folder, "run").failure(),
    ),
    "training run": File(
        "run/run.json",
        (TrainRecord,),
        lambda folder: Location(folder).write("run/run.json", run_record(TRAINING, datetime.now(UTC), summary={})),
        lambda folder: TrainRun(folder, "run").record(),
    ),
    "model": File("run.json", (ModelRecord,), write_model_record, nominal_uris, None, ("config",)),
}
VERSIONED = [
    name for name, file in FILES.items() if any(f.name == "format_version" for kind in file.kinds for f in fields(kind))
]


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest) -> File:
    return FILES[request.param]


def written(file: File, folder: Path) -> Any:
    """A good file in a folder; its content."""
    file.write(str(folder))
    return json.loads((folder / file.name).read_text())


def at(content: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        content = content[part]
    return content


def refusal(file: File, folder: Path, body: bytes | Any) -> str:
    """The message about a file with another body, which must be one line that begins with the file."""
    (folder / file.name).write_bytes(body if isinstance(body, bytes) else json.dumps(body).encode())
    with pytest.raises(ConfigError) as caught:
        file.read(str(folder))
    message = str(caught.value)
    assert message.startswith(f"{folder}/{file.name}: "), message
    assert "\n" not in message
    assert not message.endswith(": "), "it says what to do"
    return message.removeprefix(f"{folder}/{file.name}: ")


def test_a_file_that_is_cut_off_is_refused(file: File, tmp_path: Path) -> None:
    written(file, tmp_path)
    body = (tmp_path / file.name).read_bytes()
    for length in (0, 1, len(body) // 3, len(body) // 2, len(body) - 1):
        assert refusal(file, tmp_path, body[:length]).startswith("Invalid JSON: ")


@pytest.mark.parametrize("body", [b"[]", b"3", b"null", b'"text"', b"\xff\xfe", b"PK\x03\x04"])
def test_what_is_no_object_is_refused(file: File, tmp_path: Path, body: bytes) -> None:
    written(file, tmp_path)
    assert refusal(file, tmp_path, body).startswith(("Input should be an object", "Invalid JSON"))


@pytest.mark.parametrize("version", [0, 2, "1", None])
@pytest.mark.parametrize("file", VERSIONED, indirect=True)
def test_another_version_is_named_whatever_else_differs(file: File, tmp_path: Path, version: object) -> None:
    required = [f.name for f in fields(file.kinds[0]) if f.name != "format_version"]
    content = written(file, tmp_path)
    for changed in (content, {name: value for name, value in content.items() if name not in required}):
        message = refusal(file, tmp_path, changed | {"format_version": version})
        assert message.startswith(f"format_version: this version of steelray reads 1, not {version!r}: ")


def test_a_missing_or_wrong_field_is_named(file: File, tmp_path: Path) -> None:
    content = written(file, tmp_path)
    for kind in file.kinds:
        for f in fields(kind):
            if f.default is MISSING and f.default_factory is MISSING:
                without = {name: value for name, value in content.items() if name != f.name}
                assert refusal(file, tmp_path, without).startswith(f"{f.name}: Field required: ")
            assert refusal(file, tmp_path, {**content, f.name: [[]]}).startswith(f.name)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", True, None])
@pytest.mark.parametrize("name", [name for name, file in FILES.items() if file.number])
def test_a_number_must_be_a_finite_number(name: str, tmp_path: Path, value: object) -> None:
    file = FILES[name]
    assert file.number is not None
    content = written(file, tmp_path)
    at(content, file.number[:-1])[file.number[-1]] = value
    message = refusal(file, tmp_path, content)
    assert message.startswith(".".join(map(str, file.number)))
    assert f", not {value!r}: " in message


def test_foreign_fields_are_ignored(file: File, tmp_path: Path) -> None:
    content = written(file, tmp_path)
    before = file.read(str(tmp_path))
    for path in {(), file.section or ()}:
        at(content, path)["foreign"] = FOREIGN
    (tmp_path / file.name).write_text(json.dumps(content))
    assert file.read(str(tmp_path)) == before


@pytest.mark.parametrize("name", ["calibration", "scoring run", "pointer", "training run", "model"])
def test_a_file_from_before_it_had_a_version_opens(name: str, tmp_path: Path) -> None:
    file = FILES[name]
    content = written(file, tmp_path)
    before = file.read(str(tmp_path))
    del content["format_version"]
    (tmp_path / file.name).write_text(json.dumps(content))
    assert file.read(str(tmp_path)) == before


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("bank", ("embedder", "levels"), [], "embedder: levels is empty"),
        ("bank", ("scoring", "num_neighbors"), 1.5, "scoring.num_neighbors: Input should be a valid integer, not 1.5"),
        ("bank", ("images",), None, "images: Input should be an object"),
        ("draem", ("kind",), "unet", "kind: Input should be 'draem' or 'conv_ae', not 'unet'"),
        ("draem", ("kind",), "conv_ae", "its settings do not match model_id"),
        ("draem", ("network", "width"), 0.3, "network: width must be a positive multiple of 1/16, not 0.3"),
        ("draem", ("network", "norm"), "bn", "its settings do not match model_id"),
        ("conv_ae", ("input", "size_px"), [32], "input.size_px.1: Field required"),
        ("ensemble", ("model_id",), "0123", "its members are not those of ensemble 0123: it was changed by hand"),
        ("ensemble", ("members", 0, "weight"), "2", "members.0.weight: Input should be a valid number, not '2'"),
        ("calibration", ("group_pattern",), "(", "group_pattern '(' is no regular expression"),
        ("calibration", ("groups",), {}, "groups has no thresholds of all strips"),
        ("scoring run", ("ended_at",), "2026-01-01T00:00:00", "ended_at has no time zone"),
        ("scoring run", ("ended_at",), "yesterday", "ended_at: Input should be a valid datetime"),
        ("scoring run", ("night", "groups"), [], "night: groups is empty"),
        ("pointer", ("run_ids",), [], "run_id is not the first of run_ids"),
        ("training settings", ("batch_size",), 0, "batch_size must be > 0, not 0"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused(
    name: str, path: tuple[str | int, ...], value: object, message: str, tmp_path: Path
) -> None:
    content = written(FILES[name], tmp_path)
    at(content, path[:-1])[path[-1]] = value
    assert refusal(FILES[name], tmp_path, content).startswith(message)


@pytest.mark.parametrize("section", ["embedder", "scoring", "index"])
def test_no_default_stands_in_for_an_option_of_a_bank(section: str, tmp_path: Path) -> None:
    content = written(FILES["bank"], tmp_path)
    later = {"scale", "whole_cells", "tile_px", "tile_overlap_px", "reweight_neighbors"}
    for option in set(content[section]) - later:
        without = {name: value for name, value in content[section].items() if name != option}
        message = refusal(FILES["bank"], tmp_path, {**content, section: without})
        assert message == f"{section}.{option}: Field required: rebuild the bank"


def test_what_is_written_is_what_is_read() -> None:
    calibration = some_calibration()
    assert parse(Calibration, dump(calibration), "x", "") == calibration
    record = some_record("a", ended_at=datetime(2026, 1, 2, 3, 4, 5, 6, timezone(timedelta(hours=2))))
    assert parse(RunRecord, dump(record), "x", "") == record
    archive = ArchiveConfig("a", "*.jpg", datetime(2026, 1, 1), datetime(2026, 1, 2, tzinfo=UTC), 3)
    assert parse(ArchiveConfig, dump(archive), "x", "") == archive


def test_further_fields_come_first() -> None:
    assert list(json.loads(dump(NominalScale(1.0, 1.0, 1.0, 1.0), model_id="a")))[:2] == ["model_id", "map_offset"]
