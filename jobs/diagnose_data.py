"""Compare two datasets before any training: grain, SSIM floor, black, brightness, chroma and direction.

python jobs/diagnose_data.py --config jobs/configs/diagnose_severstal.yaml --second.root path/to/severstal
"""

from typing import Any

from steelray.job import run_job, say
from steelray.research.study.config import DiagnoseConfig


def run(config: DiagnoseConfig) -> dict[str, Any]:
    from steelray.research.study.diagnosis import diagnose

    return diagnose(config, say)


if __name__ == "__main__":
    run_job(DiagnoseConfig, run, __doc__ or "", plan=lambda config: {"tiles": config.max_tiles})
