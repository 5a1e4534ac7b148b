"""Combine several models into an ensemble, scaled and calibrated on nominal strips that all have held out.

python jobs/fuse_models.py --model_uris s3://archive/banks/level2,s3://archive/banks/level3 \\
    --output_uri s3://archive/ensembles/line1
"""

from typing import Any

from steelray.job import run_job, say
from steelray.models.config import FuseModelsConfig


def run(config: FuseModelsConfig) -> dict[str, Any]:
    from steelray.cluster.model_fusion import fuse_models

    return fuse_models(config, say)


if __name__ == "__main__":
    run_job(FuseModelsConfig, run, __doc__ or "")
