"""Two datasets before any training: grain, SSIM's floor, black, brightness, chroma, direction; table and figures.

python jobs/diagnose_data.py --config jobs/configs/diagnose_severstal.yaml --second.root path/to/severstal
"""

from typing import Any

from steelray.job import run_job, say, show_plan
from steelray.research.study.config import DiagnoseConfig


def run(config: DiagnoseConfig) -> dict[str, Any]:
    if config.dry_run:
        return show_plan(config, {"tiles": config.max_tiles})
    from steelray.research.study.diagnosis import diagnose

    return diagnose(config, say)


if __name__ == "__main__":
    run_job(DiagnoseConfig, run, __doc__ or "")
