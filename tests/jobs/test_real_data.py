"""The figures that the README states, on the real images; minutes each."""

from pathlib import Path

import pytest

from steelray.config import DatasetConfig
from steelray.evaluation.datasets import load_dataset
from steelray.runs.run import Run
from steelray.storage.location import Location
from tests.jobs.test_cli import REPOSITORY, run_job, summary_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_bottle_reaches_its_figures(real_data: Path) -> None:
    config = str(REPOSITORY / "jobs/configs/bottle_patchcore.yaml")
    summary = summary_of(run_job("evaluate", "--config", config, "--data.root", str(real_data / "mvtec/bottle")))
    assert isinstance(summary["image_auroc"], float)
    assert isinstance(summary["pixel_auroc"], float)
    assert summary["image_auroc"] >= 0.998
    assert summary["pixel_auroc"] >= 0.984


def test_the_unlabelled_strips_get_a_row_each_through_the_object_store(real_data: Path, s3_uri: str) -> None:
    nominal, archive = Location(f"{s3_uri}/nominal"), Location(f"{s3_uri}/archive")
    dataset = load_dataset(DatasetConfig("severstal", str(real_data / "severstal"), num_fit=20))
    for sample in [*dataset.fit, *(sample for sample in dataset.test if not sample.is_anomalous)]:
        nominal.write(sample.path.name, sample.path.read_bytes())
    strips = sorted((real_data / "severstal/test_images").glob("*.jpg"))
    for path in strips:
        archive.write(path.name, path.read_bytes())
    bank = ["--nominal.uri", nominal.uri, "--bank_uri", f"{s3_uri}/bank"]
    summary_of(run_job("build_memory_bank", *bank))
    places = ["--archive.uri", archive.uri, "--model_uri", f"{s3_uri}/bank", "--results_uri", f"{s3_uri}/results"]
    done = run_job("score_archive", *places)
    summary = summary_of(done)
    table = Run(f"{s3_uri}/results", str(summary["run_id"])).scores()
    assert table.num_rows == len(strips) == 46
    assert set(table.column("image_key").to_pylist()) == {path.name for path in strips}
    assert set(table.column("status").to_pylist()) == {"ok"}
