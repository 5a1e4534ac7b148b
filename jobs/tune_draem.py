"""Study why DRAEM does not converge on steel: transplants, single factors, search and confirmation.

python jobs/tune_draem.py --config jobs/configs/study_small.yaml --train.data.dataset.root path/to/severstal
"""

from typing import Any

from steelray.job import num_cores, run_job, say
from steelray.research.study.config import StudyConfig


def plan(config: StudyConfig) -> dict[str, Any]:
    from steelray.research.study.plan import plan_trials

    return {"trials": [[t.arm, t.condition, t.settings, t.seed] for t in plan_trials(config)]}


def run(config: StudyConfig) -> dict[str, Any]:
    if config.mode == "compare":
        from steelray.research.study.comparison import compare

        return compare(config, say, num_cores())
    from steelray.research.study.plan import plan_trials

    trials = plan_trials(config)
    if config.in_process:
        from steelray.research.study.runner import run_plan

        counts = run_plan(config, trials, say)
    else:
        from steelray.research.study.tune import run_study

        counts = run_study(config, trials, say)
    return {"mode": config.mode, "results_dir": config.results_dir, **counts}


if __name__ == "__main__":
    run_job(StudyConfig, run, __doc__ or "", plan=plan)
