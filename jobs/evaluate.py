"""Evaluate a model or a PatchCore recipe on a labelled dataset: AUROC, AP, AUPRO and accuracy.

python jobs/evaluate.py --config jobs/configs/bottle_patchcore.yaml --data.root path/to/mvtec/bottle
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steelray.evaluation.config import EvaluateConfig
from steelray.job import num_cores, run_job, say


def run(config: EvaluateConfig) -> dict[str, Any]:
    from steelray.evaluation.evaluate import evaluate, to_markdown
    from steelray.provenance import run_record

    started_at = datetime.now(UTC)
    result = evaluate(config, num_cores(), say)
    say(to_markdown(result))
    if config.output_dir is not None:
        folder = Path(config.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.json").write_bytes(run_record(config, started_at, result=result))
        (folder / "evaluation.md").write_text(to_markdown(result))
    return result


if __name__ == "__main__":
    run_job(EvaluateConfig, run, __doc__ or "", plan=lambda config: {"threads": num_cores()})
