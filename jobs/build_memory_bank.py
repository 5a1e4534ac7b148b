"""Build a PatchCore memory bank from nominal images and set its thresholds.

python jobs/build_memory_bank.py --nominal.uri s3://archive/nominal --bank_uri s3://archive/banks/line1
"""

from typing import Any

from steelray.job import run_job, say
from steelray.patchcore.config import BuildMemoryBankConfig


def run(config: BuildMemoryBankConfig) -> dict[str, Any]:
    from steelray.cluster.bank_builder import build_memory_bank

    return build_memory_bank(config, say)


if __name__ == "__main__":
    run_job(BuildMemoryBankConfig, run, __doc__ or "")
