"""Run everything on this machine: an S3 server, a generated archive, a memory bank, a scored archive.

python jobs/demo.py
"""

import time
from pathlib import Path
from typing import Any

from steelray.demo.config import DemoConfig
from steelray.job import run_job, say
from steelray.patchcore.config import DEFAULT_RECIPE, BuildMemoryBankConfig
from steelray.patchcore.recipe import with_recipe
from steelray.runs.config import ScoreArchiveConfig


def run(config: DemoConfig) -> dict[str, Any]:
    from steelray.cluster.archive_scorer import score_archive
    from steelray.cluster.bank_builder import build_memory_bank
    from steelray.cluster.connect import connected
    from steelray.config import ArchiveConfig, CalibrationConfig, ReportConfig
    from steelray.demo.archive import broken_files, figures, plan_archive, plan_nominal, upload, worst_strips
    from steelray.demo.object_store import running_object_store
    from steelray.models.calibration import read_calibration
    from steelray.report.bank_page import BANK_PAGE
    from steelray.runs.run import REPORT_FILE, Run
    from steelray.storage.location import Location

    folder = Path(config.work_dir).absolute()
    strips = plan_archive(config.num_strips, config.seed)
    root = f"s3://archive/demo-{config.num_strips}-{config.num_nominal}-{config.seed}"
    archive, masks = Location(f"{root}/archive"), Location(f"{root}/truth")
    with running_object_store(folder / "store"), connected():
        if not archive.exists("complete"):
            say(f"generating {config.num_nominal} nominal strips and an archive of {config.num_strips} in {root}")
            upload(plan_nominal(config.num_nominal, config.seed), Location(f"{root}/nominal"), masks)
            upload(strips, archive, masks)
            for key, body in broken_files().items():
                archive.write(key, body)
            archive.write("complete", b"")
        start_s = time.perf_counter()
        bank_uri = f"{root}/bank"
        build = BuildMemoryBankConfig(
            nominal=ArchiveConfig(f"{root}/nominal"),
            bank_uri=bank_uri,
            calibration=CalibrationConfig(group_pattern=r"^(line\d+)/"),
            overwrite=True,
        )
        bank = build_memory_bank(with_recipe(build, DEFAULT_RECIPE), say)
        say(f"memory bank built in {time.perf_counter() - start_s:.0f} s")
        results = Location(f"{root}/results-{bank['bank_id']}-{int(time.time())}")
        score = ScoreArchiveConfig(
            archive=ArchiveConfig(archive.uri, glob="line*"),
            model_uri=bank_uri,
            results_uri=results.uri,
            save_anomaly_maps=True,
            report=ReportConfig(object_url=""),  # the demo's store ends with it
        )
        summary = score_archive(score, say)
        scored = Run(results.uri, summary["run_id"])
        table = scored.scores()
        seen = figures(strips, table, scored.location, masks)
        levels = read_calibration(bank_uri)[0]
        lower, upper = levels.map_mean, 2 * levels.groups[""].pixel.value - levels.map_mean
        picture, scores_file = folder / "worst_strips.png", folder / "scores.parquet"
        picture.write_bytes(worst_strips(table, archive, scored.location, lower, upper))
        scored.write_table(scores_file)
        page, bank_page = folder / REPORT_FILE, folder / BANK_PAGE
        page.write_bytes(scored.location.read(REPORT_FILE))
        bank_page.write_bytes(Location(bank_uri).read(BANK_PAGE))
    _show(summary, seen, scores_file, picture, bank_page, page)
    files = {"scores_file": scores_file, "picture": picture, "bank_page": bank_page, "report": page}
    return {**summary, **seen, **{name: str(path) for name, path in files.items()}}


def _show(summary: dict[str, Any], seen: dict[str, Any], *paths: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="The scored archive")
    table.add_column("what")
    table.add_column("value", justify="right")
    rows = {**summary["counts"], **seen, "strips/s": summary["images_per_s"]}
    for name, value in rows.items():
        table.add_row(name.replace("_", " "), str(value))
    console = Console(stderr=True)
    console.print(table)
    for path in paths:
        console.print(str(path), soft_wrap=True)


if __name__ == "__main__":
    run_job(DemoConfig, run, __doc__ or "")
