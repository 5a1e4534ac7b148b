"""Set a model's thresholds anew from stored scores: for other rates, other groups, or after drift.

python jobs/calibrate.py --model_uri s3://archive/banks/line1 --false_alarm_rate 0.01
python jobs/calibrate.py --model_uri s3://archive/banks/line1 --results_uri s3://results/line1 --verdicts verdicts.csv
python jobs/calibrate.py --model_uri s3://archive/banks/line1 --exclude odd.txt
"""

from typing import Any

from steelray.config import JobFailed
from steelray.job import num_cores, run_job, say
from steelray.models.config import CalibrateConfig


def run(config: CalibrateConfig) -> dict[str, Any]:
    from steelray.runs.recalibration import recalibrate
    from steelray.storage.location import ObjectChanged

    try:
        summary = recalibrate(config)
    except ObjectChanged:
        raise JobFailed("another calibration was stored at this moment: run the same command again") from None
    plan = summary.get("plan", summary)
    for warning in plan["warnings"]:
        say(f"warning: {warning}")
    for name, group in plan["groups"].items():
        review = group["review"]
        say(
            f"{name or 'all strips'}: review above {review['value']:.4g} (before {group['review_before']:.4g}), on "
            f"{group['num_strips']} strips{', extrapolated' if review['extrapolated'] else ''}; false alarms "
            f"{review['rate_low']:.2%} to {review['rate_high']:.2%}"
        )
    if "version" in summary:
        from steelray.report.bank_page import renew_bank_page

        pictures, excluded = config.results_uri is None, summary["excluded"]
        summary["page_uri"] = renew_bank_page(
            config.model_uri, num_threads=num_cores(), pictures=pictures, num_excluded=excluded
        )
    return summary


if __name__ == "__main__":
    run_job(CalibrateConfig, run, __doc__ or "")
