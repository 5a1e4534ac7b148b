"""Judge a run's alarms by an operator's verdicts: precision, and recall where it can be known.

python jobs/review.py --results_uri s3://results/line1 --verdicts verdicts-7c1e09ab52d4f310.csv
"""

from typing import Any

from steelray.job import run_job, say
from steelray.runs.config import ReviewConfig


def run(config: ReviewConfig) -> dict[str, Any]:
    from steelray.runs.review import review

    summary = review(config)
    for name, levels in {"all strips": summary["levels"], **summary["groups"]}.items():
        for threshold, level in levels.items():
            say(f"{name}, {threshold}: {_in_words(level)}")
    return summary


def _in_words(level: dict[str, Any]) -> str:
    counted = f"{level['judged']} of {level['flagged']} alarms judged"
    if level["precision"] is None:
        return counted
    interval = f"{level['precision_low']:.1%} to {level['precision_high']:.1%}"
    recall = (
        "not known: no strip below the threshold was judged" if level["recall"] is None else f"{level['recall']:.1%}"
    )
    return f"{counted}, precision {level['precision']:.1%} ({interval}), recall {recall}"


if __name__ == "__main__":
    run_job(ReviewConfig, run, __doc__ or "")
