"""Reproduce the two result tables of the thesis: three methods on MVTec bottle and on Severstal.

python jobs/reproduce_thesis.py --config jobs/configs/thesis_small.yaml
"""

from typing import Any

from steelray.job import num_cores, run_job, say
from steelray.research.thesis.config import CELLS, ThesisConfig


def plan(config: ThesisConfig) -> dict[str, Any]:
    return {"cells": config.only or CELLS, "threads": num_cores()}


def run(config: ThesisConfig) -> dict[str, Any]:
    from steelray.cluster.trainer import train_model
    from steelray.research.thesis.reproduce import reproduce

    return reproduce(config, num_cores(), lambda training: train_model(training, say), say)


if __name__ == "__main__":
    run_job(ThesisConfig, run, __doc__ or "", plan=plan)
