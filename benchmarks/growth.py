"""Growth: what an image costs when the archive is 10 or 100 times larger, and what planning a million keys takes."""

import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch

from benchmarks.data import archive, strips
from benchmarks.measuring import REPEATS, SCRATCH, current_memory_bytes, peak_memory_bytes
from steelray.config import ArchiveConfig, CalibrationConfig, DecodeConfig
from steelray.patchcore.config import BuildMemoryBankConfig, CoresetConfig
from steelray.storage.location import Location, StoredObject

TILE_PX = (256, 256)
VECTORS = 2000


def built_bank() -> str:
    """A bank of 256x256 pieces of strips."""
    from benchmarks.pipeline import silent
    from steelray.cluster.bank_builder import build_memory_bank

    uri = str(SCRATCH / "growth-bank")
    if not Location(uri).exists("run.json"):
        config = BuildMemoryBankConfig(
            ArchiveConfig(str(archive("tiles-nominal", 64, strips(64, 0, TILE_PX)))),
            uri,
            coreset=CoresetConfig(ratio=1.0, max_centers=VECTORS),
            calibration=CalibrationConfig(held_out_fraction=0.5, false_alarm_rate=0.1, reject_rate=0.1),
            overwrite=True,
        )
        build_memory_bank(config, silent)
    return uri


def archive_of(count: int) -> dict[str, Any]:
    """A run over so many images: seconds per image, and the driver's memory."""
    from benchmarks.pipeline import ray_job
    from steelray.cluster.connect import connected

    bank_uri = built_bank()
    folder = archive("tiles", count, strips(32, 1, TILE_PX))
    with connected():
        ray_job(archive("tiles", 64, strips(32, 1, TILE_PX)), bank_uri, 64)
        before_bytes = current_memory_bytes()
        runs = [ray_job(folder, bank_uri, count) for _ in range(REPEATS)]
    scoring_s = statistics.median(run.scoring_s for run in runs)
    return {
        "images": count,
        "image_px": list(TILE_PX),
        "scoring_s": scoring_s,
        "whole_job_s": statistics.median(run.whole_s for run in runs),
        "runs_s": [round(run.scoring_s, 3) for run in runs],
        "milliseconds_per_image": 1000 * scoring_s / count,
        "driver_memory_before_bytes": before_bytes,
        "driver_memory_peak_bytes": peak_memory_bytes(),
    }


class ManyObjects(Location):
    """A listing of a million keys as an S3 store gives it, without the store."""

    count = 1_000_000

    def check_access(self, *, create: bool = False) -> None:
        """There is nothing to check."""

    def list(self) -> Iterator[StoredObject]:
        moment = datetime(2026, 1, 1, tzinfo=UTC)
        for index in range(self.count):
            key = f"line{index % 4}/2026/coil-{index // 40:06d}/strip-{index:07d}.jpg"
            yield StoredObject(key, f"{index:032x}", 120_000 + index % 7, moment)


def plan(count: int) -> dict[str, Any]:
    """From the listing to the reading tasks and the stored manifest: seconds and memory."""
    from steelray.cluster.image_source import ImageDatasource, images_per_task
    from steelray.runs.run import Run, run_id_of
    from steelray.storage.listing import ImageSet, list_archive

    ManyObjects.count = count
    before_bytes = current_memory_bytes()
    seconds: list[float] = []
    steps: dict[str, float] = {}
    num_tasks = 0
    for _ in range(REPEATS):
        begin_s = start_s = time.perf_counter()

        def lap(name: str) -> None:
            nonlocal start_s
            steps[name] = round(time.perf_counter() - start_s, 3)
            start_s = time.perf_counter()

        with patch("steelray.storage.listing.Location", ManyObjects):
            manifest = list_archive(ArchiveConfig("s3://archive/night"))
        lap("list_s")
        run = Run(str(SCRATCH / "plan"), run_id_of(manifest, model="benchmark"))
        lap("identify_s")
        run.write_manifest(manifest)
        remaining = run.remaining(manifest)
        lap("store_manifest_s")
        rows = images_per_task(remaining.num_rows, num_scorers=16, batch_size=8)
        tasks = ImageDatasource(ImageSet("s3://archive/night", remaining, DecodeConfig()), rows).get_read_tasks(-1)
        lap("tasks_s")
        seconds.append(time.perf_counter() - begin_s)
        num_tasks = len(tasks)
        del tasks, manifest, remaining
    Location(str(SCRATCH / "plan")).delete_all()
    return {
        "keys": count,
        "seconds": statistics.median(seconds),
        "runs_s": [round(s, 3) for s in seconds],
        "last_run": steps,
        "tasks": num_tasks,
        "memory_bytes": peak_memory_bytes() - before_bytes,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def growing_bank(num_old: int, num_new: int) -> dict[str, Any]:
    """A bank that learns further patches against one that is rebuilt from everything at the same size."""
    import torch

    from benchmarks.coreset import cover_radius
    from benchmarks.data import embeddings
    from benchmarks.measuring import timed
    from steelray.job import num_cores
    from steelray.patchcore.coreset import Coreset, CoresetShard, select

    torch.set_num_threads(num_cores())
    every = torch.from_numpy(embeddings(num_old + num_new, (1, 2)))
    old, new = every[:num_old], every[num_old:]
    start = select([CoresetShard(old)], round(0.01 * num_old))
    centers_KD = old[start.indices_M]
    found: list[Coreset] = []

    def grow() -> None:
        shard = CoresetShard(new)
        found[:] = [select([shard], num_new, centers_KD=centers_KD, cover_radius=start.cover_radius)]

    growing = timed(grow)
    grown_MD = torch.cat([centers_KD, new[found[0].indices_M]])
    rebuilt: list[Coreset] = []

    def rebuild() -> None:
        rebuilt[:] = [select([CoresetShard(every)], len(grown_MD))]

    rebuilding = timed(rebuild)
    radius = cover_radius(every, grown_MD)
    return {
        "old_patches": num_old,
        "new_patches": num_new,
        "vectors_before": len(centers_KD),
        "vectors_added": len(found[0].indices_M),
        "grow_s": growing["seconds"],
        "rebuild_s": rebuilding["seconds"],
        "cover_radius_grown": radius,
        "cover_radius_rebuilt": rebuilt[0].cover_radius,
        "cover_radius_ratio": radius / rebuilt[0].cover_radius,
    }


CASES = {
    "images-100": lambda: archive_of(100),
    "images-1000": lambda: archive_of(1000),
    "images-10000": lambda: archive_of(10_000),
    "plan-1M": lambda: plan(1_000_000),
    "bank-grows": lambda: growing_bank(800_000, 80_000),
}
QUICK_CASES = {
    "images-100": lambda: archive_of(100),
    "images-500": lambda: archive_of(500),
    "plan-1M": lambda: plan(1_000_000),
    "bank-grows": lambda: growing_bank(100_000, 20_000),
}
