"""Measures what a strip costs by stage, predicts a run of another size and bank from it, and compares.

.venv/bin/python benchmarks/stage_costs.py              the figures for jobs/configs/capacity.yaml, and the comparison
.venv/bin/python benchmarks/stage_costs.py --quick      fewer strips, for a look

CPU seconds of single stages are taken in one process with one thread; what Ray adds, and its start, from two runs of
different length. The prediction is for a third run, with a bank of four times the vectors. Nothing else should run.
"""

import argparse
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steelray.config import ArchiveConfig, CalibrationConfig, ComputeConfig
from steelray.demo.object_store import running_object_store
from steelray.demo.synthetic import make_strip
from steelray.imaging.decode import decode
from steelray.job import num_cores
from steelray.patchcore.config import BuildMemoryBankConfig, CoresetConfig
from steelray.research.capacity import InstanceType, StageCosts, Workload, predict
from steelray.runs.config import ScoreArchiveConfig
from steelray.storage.location import Location

KINDS = 16
"""Different strips; the archive repeats them under other keys."""
BANK_VECTORS = (2_500, 10_000)
REPEATS = 3
ONE_THREAD = ComputeConfig(cpus_per_scorer=1)


@contextmanager
def cpu_seconds(into: dict[str, float], stage: str, count: int) -> Iterator[None]:
    """CPU seconds of this process per strip, all threads together."""
    start_s = time.process_time()
    yield
    into[stage] = min(into.get(stage, 1e9), (time.process_time() - start_s) / count)


def measure_stages(archive: Location, bank_uri: str) -> dict[str, float]:
    """CPU seconds per strip of read, decode, embed, search, and of a whole call of the scorer less these two."""
    import pyarrow as pa

    from steelray.cluster.image_source import read_image
    from steelray.config import DecodeConfig
    from steelray.models.calibration import read_calibration
    from steelray.models.model import load_scorer, open_model
    from steelray.runs.batch import BatchScorer, RunStamp
    from steelray.schema import DECODED
    from steelray.storage.listing import ImageSet, list_archive

    seconds: dict[str, float] = {}
    images = ImageSet(archive.uri, list_archive(ArchiveConfig(archive.uri, limit=KINDS)), DecodeConfig())
    manifest = images.manifest.to_pylist()
    model = open_model(bank_uri)
    inside: dict[str, float] = {}

    def observe(stage: str, spent_s: float) -> None:
        inside[stage] = inside.get(stage, 0.0) + spent_s

    scorer = load_scorer(model, ONE_THREAD, num_threads=1, observe=observe)
    stamp = RunStamp("benchmark", model.model_id, model.bank_id, model.input_size_px)
    score_batch = BatchScorer(scorer, stamp, read_calibration(bank_uri)[0], pictures=Location(f"{bank_uri}-pictures"))
    decoded = pa.Table.from_pylist([read_image(images, archive, row) for row in manifest], schema=DECODED)
    score_batch(decoded)
    for _ in range(REPEATS):
        with cpu_seconds(seconds, "read", KINDS):
            bodies = [archive.read_listed(row["image_key"], row["etag"], row["size_bytes"]) for row in manifest]
        with cpu_seconds(seconds, "decode", KINDS):
            for body in bodies:
                decode(body)
        inside.clear()
        with cpu_seconds(seconds, "whole", KINDS):
            for start in range(0, KINDS, 8):
                score_batch(decoded.slice(start, 8))
        for stage in ("embed", "search"):
            seconds[stage] = min(seconds.get(stage, 1e9), inside[stage] / KINDS)
    seconds["finish"] = seconds.pop("whole") - seconds["embed"] - seconds["search"]
    return seconds


def fill(archive: Location, count: int, bodies: list[bytes]) -> None:
    for index in range(count):
        archive.write(f"{index:05d}.jpg", bodies[index % KINDS])


def run(archive: str, bank_uri: str, root: str, say: Callable[[str], None]) -> tuple[float, int]:
    """Seconds of the scoring part of a job, and the strips in it."""
    from steelray.cluster.archive_scorer import score_archive

    results_uri = f"{root}/results-{time.time_ns()}"
    summary = score_archive(ScoreArchiveConfig(ArchiveConfig(archive), bank_uri, results_uri), say)
    return float(summary["scoring_s"]), int(summary["counts"]["listed"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    sizes = (64, 192, 128) if parser.parse_args().quick else (200, 800, 500)
    with tempfile.TemporaryDirectory() as folder, running_object_store(Path(folder)):
        print(json.dumps(measure(sizes), indent=2))


def measure(sizes: tuple[int, int, int]) -> dict[str, Any]:
    """Costs, the prediction for the third size with the larger bank, and what was measured for it."""
    from steelray.cluster.bank_builder import build_memory_bank

    def quiet(line: str) -> None:
        """Takes no notice."""

    root = "s3://archive/costs"
    bodies = [make_strip(1, index).jpeg() for index in range(KINDS)]
    nominal = Location(f"{root}/nominal")
    for index in range(24):
        nominal.write(f"{index:02d}.jpg", make_strip(0, index).jpeg())
    banks = []
    for vectors in BANK_VECTORS:
        banks.append(f"{root}/bank-{vectors}")
        coreset = CoresetConfig(ratio=1.0, max_centers=vectors)
        calibration = CalibrationConfig(held_out_fraction=0.5, false_alarm_rate=0.1, reject_rate=0.1)
        build = BuildMemoryBankConfig(ArchiveConfig(nominal.uri), banks[-1], coreset=coreset, calibration=calibration)
        build_memory_bank(build, quiet)
    archives = []
    for size in sizes:
        archives.append(f"{root}/archive-{size}")
        fill(Location(archives[-1]), size, bodies)
    stages = measure_stages(Location(archives[0]), banks[0])
    cores = num_cores()
    short_s, few = min(run(archives[0], banks[0], root, quiet) for _ in range(2))
    long_s, many = min(run(archives[1], banks[0], root, quiet) for _ in range(2))
    per_strip_s = (long_s - short_s) / (many - few)
    costs = StageCosts(
        measured_on=_where(),
        read_cpu_s=stages["read"],
        decode_cpu_s=stages["decode"],
        embed_cpu_s=stages["embed"],
        search_cpu_s=stages["search"],
        search_vectors=BANK_VECTORS[0],
        finish_cpu_s=stages["finish"],
        overhead_cpu_s=max(0.0, per_strip_s * cores - sum(stages.values())),
        startup_s=max(0.0, short_s - few * per_strip_s),
        image_bytes=sum(map(len, bodies)) / KINDS,
        result_bytes=1500,
        queries=6400,
        dim=152,
        embed_gpu_s=0.0006,
        search_gpu_s=0.0033 * BANK_VECTORS[0] / 20_000,
    )
    here = InstanceType("here", cores, 0, 10, 0, "this machine")
    night = Workload(sizes[2], bank_vectors=BANK_VECTORS[1])
    predicted_s = predict(costs, here, 1, night).hours * 3600
    measured_s = min(run(archives[2], banks[1], root, quiet)[0] for _ in range(2))
    return {
        "costs": {name: round(value, 6) if isinstance(value, float) else value for name, value in vars(costs).items()},
        "strips": sizes[2],
        "predicted_s": round(predicted_s, 2),
        "measured_s": round(measured_s, 2),
        "error": round(predicted_s / measured_s - 1, 4),
        "strips_per_s": {"predicted": round(sizes[2] / predicted_s, 2), "measured": round(sizes[2] / measured_s, 2)},
    }


def _where() -> str:
    cpu = next(
        (line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607
    return f"{num_cores()} cores of {cpu}, {datetime.now(UTC):%Y-%m-%d}, {commit.stdout.strip()}"


if __name__ == "__main__":
    main()
