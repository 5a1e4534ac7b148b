"""Scoring whole strips: the Ray job, bare loops, and anomalib's Engine.predict; same images, backbone weights and bank.

Start-up is not in the rates: of the Ray job they are taken between a tenth and nine tenths of the rows, of the others
from two runs of different length. They take turns, three times, and ratios are taken within a turn.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import archive, strips
from benchmarks.measuring import REPEATS, SCRATCH, ask_reference
from steelray.config import ArchiveConfig, CalibrationConfig, ComputeConfig
from steelray.imaging.decode import decode
from steelray.job import num_cores
from steelray.models.model import load_scorer, open_model
from steelray.patchcore.config import BuildMemoryBankConfig, CoresetConfig
from steelray.runs.config import ScoreArchiveConfig
from steelray.runs.run import Run
from steelray.storage.location import Location

KINDS = 32
"""Different strips; the archive repeats them under other keys."""
NOMINAL = 24
WEIGHTS, VECTORS, SCORES = (SCRATCH / name for name in ("backbone.safetensors", "vectors.npy", "scores.json"))


def silent(line: str) -> None:
    """Takes no notice."""


def built_bank(vectors: int) -> str:
    """A bank of generated strips in a local folder; kept between runs."""
    from steelray.cluster.bank_builder import build_memory_bank

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


@dataclass(frozen=True)
class JobTimes:
    """Seconds of one Ray job."""

    scoring_s: float
    """From the start of the actors to the last row written."""
    whole_s: float
    """From listing to publishing."""
    per_image_s: float
    """Once it was under way."""


def ray_job(folder: Path, bank_uri: str, limit: int, compute: ComputeConfig | None = None) -> JobTimes:
    """Runs jobs/score_archive.py's function over so many images of a folder."""
    from steelray.cluster.archive_scorer import score_archive

    results_uri = SCRATCH / f"results-{time.time_ns()}"
    config = ScoreArchiveConfig(
        ArchiveConfig(str(folder), limit=limit), bank_uri, str(results_uri), compute=compute or ComputeConfig()
    )
    start_s = time.perf_counter()
    summary = score_archive(config, silent)
    whole_s = time.perf_counter() - start_s
    if summary["counts"]["ok"] != limit:
        raise RuntimeError(f"not every image was scored: {summary['counts']}")
    scored_at = Run(str(results_uri), summary["run_id"]).scores(["image_key", "scored_at"]).column("scored_at")
    moments_N = np.sort(scored_at.to_numpy()).astype("datetime64[us]").astype(float) / 1e6
    Location(str(results_uri)).delete_all()
    first, last = limit // 10, limit - 1 - limit // 10
    per_image_s = float(moments_N[last] - moments_N[first]) / (last - first)
    return JobTimes(float(summary["scoring_s"]), whole_s, per_image_s)


def bare_loop(paths: Sequence[Path], score: Callable[[list[np.ndarray]], Any], batch_size: int = 8) -> float:
    """Seconds of reading, decoding and scoring in this process."""
    start_s = time.perf_counter()
    for start in range(0, len(paths), batch_size):
        score([decode(path.read_bytes()) for path in paths[start : start + batch_size]])
    return time.perf_counter() - start_s


def per_image(run: Callable[[int], float], short: int, long: int) -> float:
    """Seconds per image between a short run and a long one: what every run costs to start is not in it."""
    short_s = run(short)
    return (run(long) - short_s) / (long - short)


def compared(ways: dict[str, Callable[[], float]], repeats: int = REPEATS) -> dict[str, dict[str, Any]]:
    """Seconds per strip of several ways to score, run in turn, so that what else the machine does meets all of them.

    `ray_job_is_faster_by` is the median over the turns of each one's time by that of `ray_job` in the same turn.
    """
    turns = [{name: way() for name, way in ways.items()} for _ in range(repeats)]
    rows = {}
    for name in ways:
        seconds = [turn[name] for turn in turns]
        rows[name] = {"strips_per_s": 1 / statistics.median(seconds), "runs_s": [round(s, 5) for s in seconds]}
        rows[name]["ray_job_is_faster_by"] = statistics.median(turn[name] / turn["ray_job"] for turn in turns)
    return rows


def pipeline(vectors: int, many: int, slow: int) -> dict[str, Any]:
    """Strips per second of every way to score.

    Args:
        vectors: of the bank.
        many: strips of the Ray job.
        slow: strips of the loops without an optimised backbone.
    """
    from steelray.cluster.connect import connected

    bank_uri = built_bank(vectors)
    folder = archive("strips", many, strips(KINDS, seed=1))
    paths = sorted(folder.rglob("*.jpg"))
    model = open_model(bank_uri)
    whole: list[float] = []

    def job(limit: int) -> float:
        times = ray_job(folder, bank_uri, limit)
        whole.append(times.whole_s)
        return times.per_image_s

    def loop(backend: str) -> Callable[[int], float]:
        compute = ComputeConfig(cpus_per_scorer=num_cores(), backend=backend)  # type: ignore[arg-type]
        scorer = load_scorer(model, compute, num_threads=num_cores())
        bare_loop(paths[:2], scorer.score)
        return lambda count: bare_loop(paths[:count], scorer.score)

    same, channels_last, plain = loop("auto"), loop("eager"), _plain_loop(bank_uri, paths)
    ways = {
        "ray_job": lambda: job(many),
        "bare_loop_same_backend": lambda: per_image(same, 2, many // 4),
        "bare_loop_eager_channels_last": lambda: per_image(channels_last, 2, slow),
        "bare_loop_eager": lambda: per_image(plain, 2, slow),
        "anomalib_predict": _anomalib(bank_uri, slow),
    }
    with connected():
        ray_job(folder, bank_uri, many // 8)
        row: dict[str, Any] = {"strip_px": [256, 1600], "vectors": vectors, "strips": many, **compared(ways)}
    row["ray_job"]["whole_job_s"] = statistics.median(whole)
    row["ray_job"]["whole_job_strips_per_s"] = many / row["ray_job"]["whole_job_s"]
    row["anomalib_predict"]["largest_score_difference"] = _difference_from_anomalib(bank_uri, slow)
    return row


def _plain_loop(bank_uri: str, paths: Sequence[Path]) -> Callable[[int], float]:
    """PyTorch as it comes (contiguous NCHW, inference mode) and one flat FAISS index: seconds of so many strips."""
    import torch

    from steelray.patchcore.bank import read_info, read_vectors
    from steelray.patchcore.embedder import build_patch_embedder
    from steelray.patchcore.index import IndexShard, LocalSearch
    from steelray.patchcore.portable_embedder import Embedder
    from steelray.patchcore.scorer import PatchCoreScorer

    location = Location(bank_uri)
    info = read_info(location.read, bank_uri)
    embedder = build_patch_embedder(info.embedder)
    search = LocalSearch([IndexShard(read_vectors(location.read, info), num_threads=num_cores())])

    def embed(images_BHWC: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            embeddings: np.ndarray = embedder(torch.tensor(images_BHWC).permute(0, 3, 1, 2).contiguous()).numpy()
        return embeddings

    scorer = PatchCoreScorer(
        Embedder(info.embedder, embed, embedder.stride_px, embedder.weights_digest), search, info.scoring
    )
    torch.set_num_threads(num_cores())
    bare_loop(paths[:2], scorer.score)
    return lambda count: bare_loop(paths[:count], scorer.score)


def _anomalib(bank_uri: str, count: int) -> Callable[[], float]:
    """Engine.predict with our weights and our bank: seconds per strip of one turn."""
    import safetensors.torch

    from steelray.patchcore.bank import read_info, read_vectors
    from steelray.patchcore.embedder import build_patch_embedder

    location = Location(bank_uri)
    info = read_info(location.read, bank_uri)
    backbone = build_patch_embedder(info.embedder).backbone
    safetensors.torch.save_file({name: value.contiguous() for name, value in backbone.state_dict().items()}, WEIGHTS)
    np.save(VECTORS, read_vectors(location.read, info))
    folder = archive("anomalib", count, strips(KINDS, seed=1))
    return lambda: float(ask_reference("predict", WEIGHTS, VECTORS, folder, count, SCORES)["seconds_per_image"])


def _difference_from_anomalib(bank_uri: str, count: int) -> float:
    """The largest difference of a score from anomalib's last answer for the same image."""
    scorer = load_scorer(open_model(bank_uri), ComputeConfig(), num_threads=num_cores())
    theirs = json.loads(SCORES.read_text())
    ours = {path: scorer.score([decode(Path(path).read_bytes())])[1][0] for path in theirs}
    if len(ours) != count:
        raise RuntimeError(f"anomalib scored {len(ours)} of {count} images")
    return max(abs(float(ours[path]) - theirs[path]) for path in theirs)


CASES = {"strips-1728": lambda: pipeline(1728, 320, 16)}
QUICK_CASES = {"strips-1728": lambda: pipeline(1728, 96, 8)}
