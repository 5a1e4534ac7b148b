"""A training run's folder: complete checkpoints, retention, and settings with which a run may continue."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steelray.config import ArchiveConfig, ConfigError
from steelray.reconstruction.config import DraemConfig, InputConfig, OptimizerConfig, TrainConfig, TrainDataConfig
from steelray.reconstruction.run import Failure, TrainRun
from steelray.reconstruction.session import TrainingSession

CONFIG = TrainConfig(
    model="conv_ae",
    data=TrainDataConfig(nominal=ArchiveConfig("unused")),
    output_uri="unused",
    run_name="run",
    input=InputConfig(size_px=(32, 32)),
)
ROWS = [{"step": step, "total": 1.0 / step} for step in range(1, 5)]


@pytest.fixture
def run(tmp_path: Path) -> TrainRun:
    run = TrainRun(str(tmp_path), "run")
    assert run.begin(CONFIG) is None
    return run


@pytest.fixture(scope="module")
def state() -> dict[str, dict[str, torch.Tensor]]:
    return TrainingSession(CONFIG, 10).state_dict()


@contextmanager
def no_file_larger_than(size_bytes: int) -> Iterator[None]:
    """Limit file sizes, which stops a writer as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_retention_keeps_the_newest_and_metrics_end_where_the_run_continues(
    run: TrainRun, state: dict[str, dict[str, torch.Tensor]]
) -> None:
    for step in (1, 2, 3):
        run.save(CONFIG, state, step, ROWS[:step])
    assert run.steps() == [2, 3]
    assert run.begin(CONFIG) == 3
    assert [row["step"] for row in run.metrics(2)] == [1, 2]
    loaded = run.load(3)
    assert all(torch.equal(loaded["weights"][name], value) for name, value in state["weights"].items())


def test_a_full_disk_costs_the_new_checkpoint_only(run: TrainRun, state: dict[str, dict[str, torch.Tensor]]) -> None:
    run.save(CONFIG, state, 1, ROWS[:1])
    with no_file_larger_than(100_000), pytest.raises(OSError, match="too large"):
        run.save(CONFIG, state, 2, ROWS[:2])
    assert run.steps() == [1]
    run.load(1)
    run.save(CONFIG, state, 2, ROWS[:2])
    assert run.steps() == [1, 2]


def test_half_a_checkpoint_is_none(run: TrainRun, state: dict[str, dict[str, torch.Tensor]]) -> None:
    run.save(CONFIG, state, 1, ROWS[:1])
    run.save(CONFIG, state, 2, ROWS[:2])
    run.checkpoint_at(2).delete("checkpoint.json")
    assert run.newest_step() == 1
    for step in (3, 4):
        run.save(CONFIG, state, step, ROWS[:step])
    assert {stored.key.partition("/")[0] for stored in (run.location / "checkpoints").list()} == {
        "00000003",
        "00000004",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": OptimizerConfig(lr=1e-3)}, r"optimizer.lr is 0.001 but run run was started with 0.0001"),
        ({"input": InputConfig(size_px=(48, 32))}, r"input.size_px is \(48, 32\)"),
        ({"model": "draem"}, r"model is 'draem' but run run was started with 'conv_ae'"),
        ({"batch_size": 4}, "batch_size is 4"),
    ],
)
def test_a_run_continues_with_its_own_settings_only(run: TrainRun, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run.begin(replace(CONFIG, **changes))


def test_what_a_result_does_not_depend_on_may_change(run: TrainRun, state: dict[str, dict[str, torch.Tensor]]) -> None:
    run.save(CONFIG, state, 1, ROWS[:1])
    assert run.begin(replace(CONFIG, num_workers=2, checkpoint_every_steps=5, draem=DraemConfig())) == 1


def test_overwrite_starts_afresh(run: TrainRun, state: dict[str, dict[str, torch.Tensor]]) -> None:
    run.save(CONFIG, state, 1, ROWS[:1])
    run.write_failure(Failure(1, "x", rank=0))
    assert run.begin(replace(CONFIG, batch_size=4, overwrite=True)) is None
    assert (run.steps(), run.metrics(), run.failure()) == ([], [], None)
