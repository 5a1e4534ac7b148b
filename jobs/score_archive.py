"""Score an archive of images: a score table, heatmaps of flagged strips and a report page.

python jobs/score_archive.py --archive.uri s3://archive/strips --model_uri s3://archive/banks/line1 \\
    --results_uri s3://results/line1
"""

from typing import Any

from steelray.job import run_job, say
from steelray.runs.config import ScoreArchiveConfig


def run(config: ScoreArchiveConfig) -> dict[str, Any]:
    from steelray.cluster.archive_scorer import score_archive

    return score_archive(config, say)


if __name__ == "__main__":
    run_job(ScoreArchiveConfig, run, __doc__ or "")
