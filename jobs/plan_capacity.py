"""Calculate how many machines a scoring run takes and what it costs, from measured costs per strip.

python jobs/plan_capacity.py --strips 100000000
"""

import sys
from pathlib import Path
from typing import Any

from steelray.job import run_job, say
from steelray.research.capacity import PlanCapacityConfig, plan_capacity

MEASURED = Path(__file__).parent / "configs" / "capacity.yaml"
"""Costs and machines, where no other --config names them."""


def run(config: PlanCapacityConfig) -> dict[str, Any]:
    table, summary = plan_capacity(config)
    say(f"{table}\n")
    return summary


if __name__ == "__main__":
    run_job(PlanCapacityConfig, run, __doc__ or "", ["--config", str(MEASURED), *sys.argv[1:]])
