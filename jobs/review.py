"""Judge a run's alarms by an operator's verdicts: precision, and recall where it can be known.

python jobs/review.py --results_uri s3://results/line1 --verdicts verdicts-7c1e09ab52d4f310.csv
"""

from dataclasses import asdict
from typing import Any

from steelray.job import run_job, say
from steelray.runs.config import ReviewConfig


def run(config: ReviewConfig) -> dict[str, Any]:
    from steelray.runs.review import review

    summary = review(config)
    if summary.not_in_run:
        say(f"warning: {summary.not_in_run} of {summary.verdicts} verdicts are on strips not in run {summary.run_id}")
    for name, levels in {"all strips": summary.levels, **summary.groups}.items():
        for threshold, level in levels.items():
            say(f"{name}, {threshold}: {level.in_words()}")
    return asdict(summary)


if __name__ == "__main__":
    run_job(ReviewConfig, run, __doc__ or "")
