"""Scoring whole strips: the Ray job, bare loops, and anomalib's Engine.predict; same images, backbone weights and bank.

Start-up is taken out of all of them by two runs of different length; the Ray job's whole duration is given as well.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import archive, strips
from benchmarks.measuring import REPEATS, SCRATCH, ask_reference
from steelray.config import ArchiveConfig, CalibrationConfig, ComputeConfig, CoresetConfig
from steelray.data.decode import decode
from steelray.data.storage import Location
from steelray.job import num_cores
from steelray.job_config import BuildMemoryBankConfig, ScoreArchiveConfig
from steelray.trained import load_scorer, open_model

KINDS = 32
"""Different strips; the archive repeats them under other keys."""
NOMINAL = 24


def silent(line: str) -> None:
    """Takes no notice."""


def built_bank(vectors: int) -> str:
    """A bank of generated strips in a local folder; kept between runs."""
    from steelray.distributed.bank_builder import build_memory_bank

    uri = str(SCRATCH / f"pipeline-bank-{vectors}")
    if not Location(uri).exists("run.json"):
        nominal = archive("nominal", NOMINAL, strips(NOMINAL, seed=0))
        config = BuildMemoryBankConfig(
            ArchiveConfig(str(nominal)),
            uri,
            coreset=CoresetConfig(ratio=1.0, max_centers=vectors),
            calibration=CalibrationConfig(held_out_fraction=0.5, false_alarm_rate=0.1, reject_rate=0.1),
            overwrite=True,
        )
        build_memory_bank(config, silent)
    return uri


def ray_job(folder: Path, bank_uri: str, limit: int, compute: ComputeConfig | None = None) -> tuple[float, float]:
    """Seconds from the start of the actors to the last row written, and of the whole job in this process."""
    from steelray.distributed.archive_scorer import score_archive

    results_uri = SCRATCH / f"results-{time.time_ns()}"
    config = ScoreArchiveConfig(
        ArchiveConfig(str(folder), limit=limit), bank_uri, str(results_uri), compute=compute or ComputeConfig()
    )
    start_s = time.perf_counter()
    summary = score_archive(config, silent)
    whole_s = time.perf_counter() - start_s
    if summary["counts"]["ok"] != limit:
        raise RuntimeError(f"not every image was scored: {summary['counts']}")
    Location(str(results_uri)).delete_all()
    return float(summary["scoring_s"]), whole_s


def bare_loop(paths: Sequence[Path], score: Callable[[list[np.ndarray]], Any], batch_size: int = 8) -> float:
    """Seconds of reading, decoding and scoring in this process."""
    start_s = time.perf_counter()
    for start in range(0, len(paths), batch_size):
        score([decode(path.read_bytes()) for path in paths[start : start + batch_size]])
    return time.perf_counter() - start_s


def per_image(run: Callable[[int], float], short: int, long: int) -> dict[str, Any]:
    """Seconds per image between a short run and a long one, three times."""
    seconds = [(run(long) - run(short)) / (long - short) for _ in range(REPEATS)]
    middle = statistics.median(seconds)
    return {"seconds_per_strip": middle, "strips_per_s": 1 / middle, "runs_s": [round(s, 5) for s in seconds]}


def pipeline(vectors: int, many: int, few: int, slow: int) -> dict[str, Any]:
    """Strips per second of every way to score.

    Args:
        vectors: of the bank.
        many, few: strips of the Ray job's long and short run.
        slow: strips of the loops without an optimised backbone.
    """
    from steelray.distributed.cluster import connected

    bank_uri = built_bank(vectors)
    folder = archive("strips", many, strips(KINDS, seed=1))
    paths = sorted(folder.rglob("*.jpg"))
    row: dict[str, Any] = {"strip_px": [256, 1600], "vectors": vectors, "strips": many}
    with connected():
        ray_job(folder, bank_uri, few)
        whole: list[float] = []

        def job(limit: int) -> float:
            scoring_s, whole_s = ray_job(folder, bank_uri, limit)
            whole.append(whole_s if limit == many else 0.0)
            return scoring_s

        row["ray_job"] = per_image(job, few, many)
        row["ray_job"]["whole_job_s"] = statistics.median(s for s in whole if s)
        row["ray_job"]["whole_job_strips_per_s"] = many / row["ray_job"]["whole_job_s"]
    model = open_model(bank_uri)
    for name, backend, count in (("bare_loop_same_backend", "auto", many // 4), ("bare_loop_eager", "eager", slow)):
        compute = ComputeConfig(cpus_per_scorer=num_cores(), backend=backend)  # type: ignore[arg-type]
        scorer = load_scorer(model, compute, num_threads=num_cores())
        bare_loop(paths[:2], scorer.score)
        row[name] = per_image(lambda number, scorer=scorer: bare_loop(paths[:number], scorer.score), 2, count)  # type: ignore[misc]
    row["anomalib_predict"] = _anomalib(bank_uri, paths, slow)
    fastest = row["ray_job"]["strips_per_s"]
    for name in ("bare_loop_same_backend", "bare_loop_eager", "anomalib_predict"):
        row[name]["ray_job_is_faster_by"] = fastest / row[name]["strips_per_s"]
    return row


def _anomalib(bank_uri: str, paths: Sequence[Path], count: int) -> dict[str, Any]:
    """anomalib with our weights and our bank; its scores are compared with ours."""
    import safetensors.torch

    from steelray.memory_bank.bank import read_info, read_vectors
    from steelray.models.patch_embedder import build_patch_embedder

    location = Location(bank_uri)
    info = read_info(location.read, bank_uri)
    weights, vectors = SCRATCH / "backbone.safetensors", SCRATCH / "vectors.npy"
    backbone = build_patch_embedder(info.embedder).backbone
    safetensors.torch.save_file({k: v.contiguous() for k, v in backbone.state_dict().items()}, weights)
    np.save(vectors, read_vectors(location.read, info))
    folder = archive("anomalib", count, strips(KINDS, seed=1))
    answer = ask_reference("predict", weights, vectors, folder, count)
    scorer = load_scorer(open_model(bank_uri), ComputeConfig(), num_threads=num_cores())
    ours = [scorer.score([decode(path.read_bytes())])[1][0] for path in sorted(folder.rglob("*.jpg"))[:count]]
    differences = np.abs(np.sort(ours) - np.sort(answer.pop("scores")))
    seconds = answer.pop("seconds_per_image")
    return {
        "seconds_per_strip": seconds,
        "strips_per_s": 1 / seconds,
        **answer,
        "largest_score_difference": float(differences.max()),
    }


CASES = {
    "strips-1728": lambda: pipeline(1728, 480, 96, 32),
    "strips-8560": lambda: pipeline(8560, 240, 64, 24),
}
QUICK_CASES = {"strips-1728": lambda: pipeline(1728, 160, 48, 16)}
