"""Add nominal images to a memory bank and set its thresholds anew, without building it again.

python jobs/grow_memory_bank.py --nominal.uri s3://archive/nominal --bank_uri s3://archive/banks/line1 \\
    --grown_uri s3://archive/banks/line1-b
"""

from typing import Any

from steelray.job import run_job, say
from steelray.patchcore.config import GrowMemoryBankConfig


def run(config: GrowMemoryBankConfig) -> dict[str, Any]:
    from steelray.cluster.bank_builder import grow_memory_bank

    return grow_memory_bank(config, say)


if __name__ == "__main__":
    run_job(GrowMemoryBankConfig, run, __doc__ or "")
