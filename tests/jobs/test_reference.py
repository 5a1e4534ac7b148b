"""Figures that must not change: reference/*.json holds them, with the commit and the machine that made them.

On a CPU of the same model they are equal to the last bit; elsewhere BLAS and OpenVINO take other kernels, and scores
agree to a few digits.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.coreset import cover_radius
from benchmarks.data import embeddings
from steelray.config import DatasetConfig
from steelray.evaluation.datasets import load_dataset
from steelray.patchcore.coreset import greedy_coreset
from steelray.provenance import hardware
from steelray.runs.run import Run
from steelray.storage.location import Location
from tests.jobs.test_cli import REPOSITORY, run_job, summary_of

TOLERANCE = 1e-4
"""Relative, on another CPU."""


def reference(name: str) -> tuple[dict[str, Any], float]:
    """Return stored figures and the relative tolerance to compare with."""
    stored = json.loads(Path(__file__).parent.joinpath("reference", f"{name}.json").read_text())
    made, here = stored.pop("made"), {**hardware(), "cpu_flags": cpu_flags()}
    same = all(made[name] == here[name] for name in ("cpu", "cores", "cpu_flags"))
    return stored, 0.0 if same else TOLERANCE


def cpu_flags() -> str:
    """Return a digest of the CPU's instruction sets: one model name covers several."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:16]


def assert_rows(rows: list[dict[str, Any]], expected: dict[str, list[Any]], threshold: float, tolerance: float) -> None:
    """Compare scores and verdicts by key; a verdict may differ only within the tolerance of its threshold."""
    assert {row["image_key"] for row in rows} == set(expected)
    for row in rows:
        score, verdict = expected[row["image_key"]]
        if score is None:
            assert row["anomaly_score"] is None, row["image_key"]
            continue
        assert row["anomaly_score"] == pytest.approx(score, rel=tolerance, abs=0), row["image_key"]
        if not tolerance or abs(score - threshold) > tolerance * threshold:
            assert row["verdict"] == verdict, row["image_key"]


def test_the_demo(tmp_path: Path) -> None:
    expected, tolerance = reference("demo")
    summary = summary_of(run_job("demo", "--work_dir", str(tmp_path)))
    for name in ("threshold", "image_auroc", "pixel_auroc"):
        assert summary[name] == pytest.approx(expected[name], rel=tolerance, abs=0)
    if not tolerance:
        assert summary["counts"] == expected["counts"]
    rows = pq.read_table(str(summary["scores_file"])).to_pylist()
    assert_rows(rows, expected["rows"], expected["threshold"], tolerance)


def test_the_coreset() -> None:
    expected, tolerance = reference("coreset")
    torch.set_num_threads(hardware()["cores"])
    points_ND = torch.from_numpy(embeddings(50_000, (1, 2, 3)))
    picks = greedy_coreset(points_ND, 500)
    assert cover_radius(points_ND, points_ND[picks]) == pytest.approx(expected["cover_radius"], rel=tolerance, abs=0)
    if not tolerance:
        assert hashlib.sha256(np.ascontiguousarray(picks.numpy()).tobytes()).hexdigest() == expected["picks_sha256"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_bottle(real_data: Path) -> None:
    expected, tolerance = reference("bottle")
    config = str(REPOSITORY / "jobs/configs/bottle_patchcore.yaml")
    summary = summary_of(run_job("evaluate", "--config", config, "--data.root", str(real_data / "mvtec/bottle")))
    for name, value in expected.items():
        assert summary[name] == pytest.approx(value, rel=tolerance, abs=0), name


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_severstal_strips_without_labels(real_data: Path, s3_uri: str) -> None:
    expected, tolerance = reference("severstal")
    nominal, archive = Location(f"{s3_uri}/nominal"), Location(f"{s3_uri}/archive")
    dataset = load_dataset(DatasetConfig("severstal", str(real_data / "severstal"), num_fit=20))
    for sample in [*dataset.fit, *(sample for sample in dataset.test if not sample.is_anomalous)]:
        nominal.write(sample.path.name, sample.path.read_bytes())
    for path in sorted((real_data / "severstal/test_images").glob("*.jpg")):
        archive.write(path.name, path.read_bytes())
    bank = summary_of(run_job("build_memory_bank", "--nominal.uri", nominal.uri, "--bank_uri", f"{s3_uri}/bank"))
    for name in ("vectors", "cover_radius", "threshold", "reject_threshold"):
        assert bank[name] == pytest.approx(expected["bank"][name], rel=tolerance, abs=0), name
    if not tolerance:
        assert bank["bank_id"] == expected["bank"]["bank_id"]
    places = ["--archive.uri", archive.uri, "--model_uri", f"{s3_uri}/bank", "--results_uri", f"{s3_uri}/results"]
    summary = summary_of(run_job("score_archive", *places))
    rows = Run(f"{s3_uri}/results", str(summary["run_id"])).scores().to_pylist()
    assert_rows(rows, expected["rows"], expected["bank"]["threshold"], tolerance)
