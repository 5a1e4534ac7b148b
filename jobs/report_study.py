"""The page of a study: verdicts per hypothesis, evidence and figures, as Markdown.

python jobs/report_study.py --results_dir results/study_small
"""

from typing import Any

from steelray.job import run_job, show_plan
from steelray.research.study.config import ReportStudyConfig


def run(config: ReportStudyConfig) -> dict[str, Any]:
    output_dir = config.output_dir or config.results_dir
    if config.dry_run:
        return show_plan(config, {"writes": f"{output_dir}/study.md"})
    from steelray.research.study.report import write_report

    return {"report": f"{output_dir}/study.md", **write_report(config.results_dir, output_dir)}


if __name__ == "__main__":
    run_job(ReportStudyConfig, run, __doc__ or "")
