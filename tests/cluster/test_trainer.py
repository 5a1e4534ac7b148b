"""Training on a cluster: workers agree, runs continue, mistakes are found at once, and the model scores archives."""

import json
import os
import signal
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steelray.cluster import trainer
from steelray.cluster.archive_scorer import score_archive
from steelray.cluster.train_worker import Journal, WorkerSettings
from steelray.cluster.trainer import train_model
from steelray.cluster.training_images import list_nominal
from steelray.config import ArchiveConfig, CalibrationConfig, ConfigError, JobFailed
from steelray.demo.synthetic import encode, make_strip
from steelray.models.calibration import read_calibration
from steelray.models.model import open_model
from steelray.reconstruction.batch import collate
from steelray.reconstruction.config import (
    DraemConfig,
    InputConfig,
    OptimizerConfig,
    SynthesisConfig,
    TrainConfig,
    TrainDataConfig,
)
from steelray.reconstruction.run import TrainRun
from steelray.reconstruction.session import TrainingSession
from steelray.reconstruction.synthesis import SampleMaker, samples_of_step
from steelray.runs.config import ScoreArchiveConfig
from steelray.runs.run import Run
from steelray.storage.location import Location
from tests.cluster.conftest import silent, strip_jpeg


def config_of(output: Path | str, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "model": "conv_ae",
        "data": TrainDataConfig(generated=10),
        "output_uri": str(output),
        "run_name": "run",
        "input": InputConfig(size_px=(32, 32)),
        "draem": DraemConfig(width=1 / 16),
        "optimizer": OptimizerConfig(lr=1e-3),
        "calibration": CalibrationConfig(held_out_fraction=0.2, false_alarm_rate=0.4, reject_rate=0.4),
        "num_steps": 6,
        "batch_size": 4,
        "checkpoint_every_steps": 2,
        **changes,
    }
    return TrainConfig(**settings)


def curve(run: TrainRun) -> dict[int, float]:
    return {int(row["step"]): row["total"] for row in run.metrics()}


def test_two_workers_learn_what_one_learns_and_the_model_scores_an_archive(
    cluster: dict[str, float], s3_uri: str
) -> None:
    """Train on images of two sizes and a broken one; images, checkpoints and model are in S3."""
    nominal, archive = Location(f"{s3_uri}/nominal"), Location(f"{s3_uri}/archive")
    for index in range(9):
        nominal.write(f"{index}.jpg", strip_jpeg(index))
    nominal.write("small.png", _small_png())
    nominal.write("broken.jpg", b"not an image")
    for index in range(3):
        archive.write(f"{index}.jpg", strip_jpeg(index, seed=1))
    archive.write("empty.jpg", b"")
    config = config_of(f"{s3_uri}/models", data=TrainDataConfig(nominal=ArchiveConfig(nominal.uri)))
    one = train_model(config, silent)
    two = train_model(replace(config, run_name="two", num_workers=2), silent)
    first, second = TrainRun(config.output_uri, "run"), TrainRun(config.output_uri, "two")
    assert list(curve(first)) == list(range(1, 7))
    assert curve(second) == pytest.approx(curve(first), rel=1e-4)
    assert first.steps() == [4, 6]
    row = first.metrics()[-1]
    for name in ("l2", "grad_norm", "learning_rate", "images_per_s", "peak_memory_bytes"):
        assert row[name] > 0
    assert one["skipped"].get("unreadable", 0) + one["held_out"] + one["images"] in (10, 11)
    names = {stored.key for stored in first.location.list()}
    assert {"run.json", "loss_curves.png", "metrics.parquet", "checkpoint.json", "model.safetensors"} <= names
    assert any(name.startswith("tensorboard/events") for name in names)
    assert not any(name.startswith("ray/") for name in names)

    model = open_model(one["model_uri"])
    assert (model.method, model.model_id) == ("conv_ae", one["model_id"])
    scored = _score(archive, one["model_uri"], s3_uri)
    assert scored.column("status").to_pylist() == ["ok", "ok", "ok", "empty"]
    assert scored.column("threshold").to_pylist()[:3] == pytest.approx([one["threshold"]] * 3)
    assert scored.column("model_id").to_pylist()[0] == one["model_id"]
    assert {"normal", "review", "reject"} >= set(scored.column("verdict").to_pylist()[:3])
    assert two["images"] == one["images"]


def _small_png() -> bytes:
    return encode(make_strip(5, 5, size_px=(40, 56)).pixels_HW, "PNG")


def _score(archive: Location, model_uri: str, root: str) -> Any:
    results = f"{root}/results"
    config = ScoreArchiveConfig(ArchiveConfig(archive.uri), model_uri, results, max_quarantine_share=None)
    summary = score_archive(config, silent)
    return Run(results, summary["run_id"]).scores()


def test_a_full_disk_leaves_the_earlier_checkpoint_and_the_run_continues_from_it(
    cluster: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train DRAEM into a relative folder with a worker on both CPUs.

    A folder in place of the weights' file fails the write as a full disk would.
    """
    monkeypatch.chdir(tmp_path)
    config = config_of(Path(), model="draem", cpus_per_worker=2)
    obstacle = tmp_path / "run/checkpoints/00000004/model.safetensors/in the way"
    obstacle.mkdir(parents=True)
    with pytest.raises(JobFailed, match=r"stopped at step 4: the checkpoint could not be stored.*is of step 2"):
        train_model(config, silent)
    run = TrainRun(config.output_uri, "run")
    assert run.steps() == [2]
    assert not run.location.exists("checkpoint.json")
    obstacle.rmdir()
    obstacle.parent.rmdir()
    said: list[str] = []
    summary = train_model(config, said.append)
    assert any("step 2 of 6" in line for line in said)
    assert list(curve(run)) == list(range(1, 7))
    assert open_model(summary["model_uri"]).method == "draem"
    assert run.steps() == [4, 6]
    assert read_calibration(summary["model_uri"])[0].groups[""].num_strips == 2
    assert train_model(config, silent)["already_complete"] is True
    with pytest.raises(ConfigError, match=r"draem.width is 0.125 but run run was started with 0.0625"):
        train_model(config_of(tmp_path, model="draem", draem=DraemConfig(width=1 / 8)), silent)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(cluster: dict[str, float], tmp_path: Path) -> None:
    config = config_of(tmp_path, optimizer=OptimizerConfig(lr=1e30))
    with pytest.raises(
        JobFailed, match=r"stopped at step 1: step 1: l2 is not finite; images of the batch: generated-"
    ):
        train_model(config, silent)
    failure = json.loads((tmp_path / "run/failure.json").read_text())
    assert (failure["step"], failure["term"], len(failure["keys"])) == (1, "l2", 4)


def raise_on_a_worker(settings: WorkerSettings) -> None:
    raise RuntimeError("the device is lost\nand cannot be reset")


def test_a_worker_that_raises_ends_the_job_with_one_line(
    cluster: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "train", raise_on_a_worker)
    monkeypatch.setattr(trainer, "MAX_FAILURES", 0)
    line = r"^run run stopped: .*and cannot be reset; run the same command to continue from step 0$"
    with pytest.raises(JobFailed, match=line):
        train_model(config_of(tmp_path), silent)


@pytest.mark.faults
def test_a_killed_worker_continues_from_the_last_checkpoint(cluster: dict[str, float], tmp_path: Path) -> None:
    config = config_of(tmp_path, num_steps=60, checkpoint_every_steps=5)
    run = TrainRun(config.output_uri, "run")
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 300
        while not killed and time.monotonic() < deadline:
            if (run.newest_step() or 0) >= 10:
                for pid in _training_workers():
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    train_model(config, silent)
    killer.join()
    assert killed
    assert list(curve(run)) == list(range(1, 61))
    assert curve(run) == pytest.approx(_without_ray(config), rel=1e-5)


def _without_ray(config: TrainConfig) -> dict[int, float]:
    """Return the loss of every step, computed in this process."""
    numbers = list_nominal(config).fit.manifest.column("image_index").to_pylist()
    images = [make_strip(config.seed, i, size_px=(256, 256)).pixels_HW[:, :, None] for i in numbers]
    session, maker = TrainingSession(config, config.total_steps(len(images))), SampleMaker(config)
    losses = {}
    for step in range(session.num_steps):
        places = samples_of_step(step, config.batch_size, len(images), config.seed)
        batch = collate([maker.sample(images[i], str(i), epoch=epoch, index=i) for epoch, i in places])
        losses[step + 1] = session.train_step(batch)["total"]
    return losses


def _training_workers() -> list[int]:
    """Return the training processes below this one: other clusters may run on the same machine."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat, name = (entry / "stat").read_text(), (entry / "cmdline").read_bytes()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
            names[int(entry.name)] = name
    found = []
    for pid, name in names.items():
        above = pid
        while above not in (0, 1, os.getpid()):
            above = parents.get(above, 0)
        if above == os.getpid() and name.startswith(b"ray::RayTrainWorker"):
            found.append(pid)
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_workers": 4}, r"4 training workers of 1 CPUs do not fit on the nodes \(.*2 CPUs\), 2 would"),
        ({"gpus_per_worker": 1}, r"1 training workers of 1 CPUs and 1 GPUs do not fit .* 0 would"),
        ({"model": "draem", "synthesis": SynthesisConfig(texture_uri="EMPTY")}, "no images found to make anomalies"),
        ({"data": TrainDataConfig(nominal=ArchiveConfig("EMPTY"))}, "the archive is empty"),
        (
            {"calibration": CalibrationConfig(held_out_fraction=0.2, group_pattern="^cam")},
            r"'\^cam' matches none of 2 nominal keys, such as generated-",
        ),
    ],
)
def test_mistakes_are_found_before_training(
    cluster: dict[str, float], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    if "synthesis" in changes:
        changes = {**changes, "synthesis": SynthesisConfig(texture_uri=str(tmp_path / "empty"))}
    if "data" in changes:
        changes = {**changes, "data": TrainDataConfig(nominal=ArchiveConfig(str(tmp_path / "empty")))}
    with pytest.raises(ConfigError, match=message):
        train_model(config_of(tmp_path / "out", **changes), silent)


def test_tensorboard_s_local_folder_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "local").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "local"))
    journal = Journal(TrainRun(str(tmp_path / "out"), "run"), config_of(tmp_path / "out"), 0, 1)
    journal.add({"step": 1, "epoch": 1, "total": 0.5, "learning_rate": 1e-3, "images_per_s": 2.0})
    journal.store()
    journal.close()
    assert list((tmp_path / "local").iterdir()) == []
    assert len(list((tmp_path / "out").rglob("events.*"))) == 1
