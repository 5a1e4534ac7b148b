"""Compare options of PatchCore on a labelled dataset, over several splits, in a table. A rerun continues.

python jobs/ablate.py --config jobs/configs/ablate_severstal.yaml --data.root path/to/severstal
"""

from pathlib import Path
from typing import Any

from steelray.job import num_cores, run_job, say
from steelray.research.ablation.settings import AblationConfig


def plan(config: AblationConfig) -> dict[str, Any]:
    from steelray.research.ablation.results import rows_to_do

    return {"rows_to_do": [f"{setting.name}, seed {seed}" for setting, seed in rows_to_do(config)]}


def run(config: AblationConfig) -> dict[str, Any]:
    from steelray.cluster.connect import connected
    from steelray.research.ablation.pictures import draw_gallery, draw_summaries, worst_parts
    from steelray.research.ablation.remote import remote_rows
    from steelray.research.ablation.results import best_setting, run_ablation, to_markdown

    with connected():
        summaries = run_ablation(config, lambda rows: remote_rows(config, rows), say)
    say(to_markdown(summaries))
    folder = Path(config.output_dir)
    draw_summaries(summaries, folder / "ablation.svg")
    if config.gallery_of is not None:
        from steelray.research.ablation.rows import predict_split

        setting = next(setting for setting in config.settings if setting.name == config.gallery_of)
        samples, predictions, threshold = predict_split(config, setting, config.seeds[0], num_cores())
        misses, false_alarms = worst_parts(samples, predictions, config.parts)
        draw_gallery(misses, threshold, folder / "worst_misses.jpg")
        draw_gallery(false_alarms, threshold, folder / "worst_false_alarms.jpg")
    best = best_setting(summaries)
    chosen = [summary for summary in summaries if summary["setting"] == best]
    return {"best_on_validation": best, "figures": chosen[0]["mean"] if chosen else {}, "output_dir": str(folder)}


if __name__ == "__main__":
    run_job(AblationConfig, run, __doc__ or "", plan=plan)
