"""Write the page of a study: verdict, evidence and figures per hypothesis.

python jobs/report_study.py --results_dir results/study_small
"""

from typing import Any

from steelray.job import run_job
from steelray.research.study.config import ReportStudyConfig


def plan(config: ReportStudyConfig) -> dict[str, Any]:
    return {"writes": f"{config.output_dir or config.results_dir}/study.md"}


def run(config: ReportStudyConfig) -> dict[str, Any]:
    output_dir = config.output_dir or config.results_dir
    from steelray.research.study.report import write_report

    return {"report": f"{output_dir}/study.md", **write_report(config.results_dir, output_dir)}


if __name__ == "__main__":
    run_job(ReportStudyConfig, run, __doc__ or "", plan=plan)
