"""The checkpoint format: every bit is restored in new objects, and what does not fit is refused in one line."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from steelray.config import ConfigError
from steelray.reconstruction.build import build_model
from steelray.reconstruction.checkpoint import (
    INFO_FILE,
    RESUME_FILE,
    WEIGHTS_FILE,
    check_agreement,
    checkpoint_files,
    load_network,
    read_info,
    read_resume,
    read_weights,
)
from steelray.reconstruction.config import (
    ConvAutoencoderConfig,
    DraemConfig,
    InputConfig,
    NetworkConfig,
    OptimizerConfig,
)
from steelray.reconstruction.session import TrainingSession
from steelray.storage.location import Location
from tests.reconstruction.test_session import CONFIG, run

NETWORKS: list[NetworkConfig] = [DraemConfig(width=1 / 16), DraemConfig(1 / 16, "gn"), ConvAutoencoderConfig("sigmoid")]
INPUT = InputConfig(size_px=(32, 64), tiling="crop", brightness_norm="strip")
WHERE = "s3://plant/model"


def files_of(network: NetworkConfig = NETWORKS[0], seed: int = 0, **options: Any) -> dict[str, bytes]:
    weights = {name: value.clone() for name, value in build_model(network, seed).state_dict().items()}
    return dict(checkpoint_files(network, INPUT, weights, **options))


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_comes_back_bit_for_bit(network: NetworkConfig) -> None:
    model = build_model(network, seed=5)
    for buffer in model.buffers():  # running statistics that are not the initial ones
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    files = dict(checkpoint_files(network, INPUT, model.state_dict(), training={"step": 3}))
    info = read_info(files.__getitem__, WHERE)
    assert (info.network, info.input, info.training) == (network, INPUT, {"step": 3})
    again = load_network(files.__getitem__, info, WHERE)
    assert not again.training
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    images_BCHW = torch.rand(2, 3, 32, 64)
    first, second = model.eval()(images_BCHW), again(images_BCHW)
    pairs = zip(first, second, strict=True) if isinstance(first, tuple) else [(first, second)]
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_description_is_written_last() -> None:
    assert list(files_of(resume={"step": torch.tensor(1)})) == [WEIGHTS_FILE, RESUME_FILE, INFO_FILE]
    assert list(files_of()) == [WEIGHTS_FILE, INFO_FILE]


def test_a_run_continues_from_a_bucket_and_its_averaged_network_scores(s3_uri: str) -> None:
    config = replace(CONFIG, optimizer=OptimizerConfig(lr=1e-3, ema=0.9))
    whole, first, second = (TrainingSession(config, 4) for _ in range(3))
    expected = run(whole, range(4))
    run(first, range(2))
    location = Location(s3_uri)
    for name, body in checkpoint_files(config.network, config.input, **first.state_dict()):
        location.write(name, body)
    info = read_info(location.read, s3_uri)
    check_agreement(info, config.network, config.input, s3_uri)
    second.load_state_dict(read_resume(location.read, info, s3_uri))
    assert run(second, range(2, 4)) == expected[2:]
    finished, again = whole.state_dict()["weights"], second.state_dict()["weights"]
    assert all(torch.equal(value, again[name]) for name, value in finished.items())
    scoring, name = load_network(location.read, info, s3_uri), "reconstructive.head.weight"
    assert torch.equal(scoring.state_dict()[name], first.eval_model.state_dict()[name])
    assert not torch.equal(scoring.state_dict()[name], first.model.state_dict()[name])


def test_the_model_id_follows_from_weights_and_settings_alone() -> None:
    def model_id(files: dict[str, bytes]) -> str:
        return read_info(files.__getitem__, WHERE).model_id

    first = files_of()
    assert model_id(first) == model_id(files_of(training={"run": "other"}, resume={"step": torch.tensor(1)}))
    assert model_id(first) == json.loads(first[INFO_FILE])["model_id"]
    assert len({model_id(first), model_id(files_of(seed=1)), model_id(files_of(NETWORKS[1]))}) == 3


def flipped(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    body = files[name]
    return {**files, name: body[:-1] + bytes([body[-1] ^ 1])}


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda f: {}, r"no checkpoint there \(checkpoint.json is missing\)"),
        (lambda f: {k: v for k, v in f.items() if k != WEIGHTS_FILE}, f"{WEIGHTS_FILE} is missing"),
        (lambda f: flipped(f, WEIGHTS_FILE), f"{WEIGHTS_FILE}: digest differs"),
    ],
)
def test_damage_is_named(damage: Any, complaint: str) -> None:
    files = damage(files_of())
    with pytest.raises(ConfigError, match=complaint):
        load_network(files.__getitem__, read_info(files.__getitem__, WHERE), WHERE)


def test_a_damaged_resume_file_does_not_keep_a_checkpoint_from_scoring() -> None:
    files = flipped(files_of(resume={"step": torch.tensor(1)}), RESUME_FILE)
    info = read_info(files.__getitem__, WHERE)
    assert load_network(files.__getitem__, info, WHERE)
    with pytest.raises(ConfigError, match=f"{RESUME_FILE}: digest differs"):
        read_resume(files.__getitem__, info, WHERE)
    files = files_of()
    with pytest.raises(ConfigError, match="for scoring only"):
        read_resume(files.__getitem__, read_info(files.__getitem__, WHERE), WHERE)


def test_weights_of_another_width_are_refused() -> None:
    other = build_model(DraemConfig(width=1 / 8)).state_dict()
    files = dict(checkpoint_files(NETWORKS[0], INPUT, other))
    with pytest.raises(ConfigError, match="does not fit this draem network"):
        load_network(files.__getitem__, read_info(files.__getitem__, WHERE), WHERE)
    assert read_weights(files.__getitem__, read_info(files.__getitem__, WHERE), WHERE)


@pytest.mark.parametrize(
    ("network", "input_config", "complaint"),
    [
        (ConvAutoencoderConfig(), INPUT, "a checkpoint of draem, not of conv_ae"),
        (DraemConfig(width=0.5), INPUT, "draem.width is 0.5 but the checkpoint at .* has 0.0625"),
        (DraemConfig(1 / 16, "gn"), INPUT, "draem.norm is gn"),
        (NETWORKS[0], InputConfig(), r"input.size_px is \(256, 256\)"),
    ],
)
def test_a_run_with_other_settings_is_refused(
    network: NetworkConfig, input_config: InputConfig, complaint: str
) -> None:
    info = read_info(files_of().__getitem__, WHERE)
    with pytest.raises(ConfigError, match=complaint):
        check_agreement(info, network, input_config, WHERE)
    check_agreement(info, NETWORKS[0], INPUT, WHERE)


def test_nothing_is_pickled() -> None:
    for name, body in files_of(resume={"step": torch.tensor(1)}).items():
        header = body[8 : 8 + int.from_bytes(body[:8], "little")] if name.endswith(".safetensors") else body
        assert json.loads(header)
