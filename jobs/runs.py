"""List the published runs of a place, go back to the previous one, or remove old ones.

python jobs/runs.py --results_uri s3://results/line1
python jobs/runs.py --results_uri s3://results/line1 --action rollback
python jobs/runs.py --results_uri s3://results/line1 --action prune --keep 30
"""

from typing import Any

from steelray.config import JobFailed
from steelray.job import run_job, say, show_plan
from steelray.runs.config import RunsConfig


def run(config: RunsConfig) -> dict[str, Any]:
    from steelray.storage.location import Location, ObjectChanged

    Location(config.results_uri).check_access()
    try:
        return {"list": show, "rollback": go_back, "prune": clear}[config.action](config)
    except ObjectChanged:
        raise JobFailed(
            f"{config.results_uri}: a run was published at this moment: run the same command again"
        ) from None


def show(config: RunsConfig) -> dict[str, Any]:
    """List the published runs, newest first."""
    from steelray.runs.run import published_runs

    runs = []
    for entry, record in published_runs(config.results_uri):
        ended_at, counts = record.ended_at.isoformat(timespec="milliseconds"), record.summary.counts
        runs.append({"run_id": entry.run_id, "ended_at": ended_at, "counts": counts})
        shown = ", ".join(f"{count} {name}" for name, count in counts.items())
        say(f"{'*' if len(runs) == 1 else ' '} {entry.run_id}  {ended_at}  {shown}")
    return {"current": runs[0]["run_id"] if runs else None, "runs": runs}


def go_back(config: RunsConfig) -> dict[str, Any]:
    """Publish the previous run again."""
    from steelray.report.finish import write_index
    from steelray.runs.run import read_published, roll_back

    before = read_published(config.results_uri)
    if config.dry_run:
        return show_plan(config, {"from": before.current, "to": (*before.run_ids, None, None)[1]})
    current = roll_back(config.results_uri)
    say(f"run {current} counts again, no more {before.current}")
    return {"current": current, "rolled_back": before.current, "index_uri": write_index(config.results_uri)}


def clear(config: RunsConfig) -> dict[str, Any]:
    """Remove runs that are older than the settings say."""
    from steelray.report.finish import write_index
    from steelray.runs.retention import plan_prune, prune

    plan = plan_prune(config.results_uri, config.keep, config.keep_days)
    summary = {"kept": plan.kept, "retired": plan.retired, "deleted": plan.deleted}
    if config.dry_run:
        return show_plan(config, summary)
    prune(config.results_uri, plan)
    say(f"{len(plan.kept)} published runs stay, {len(plan.retired)} were retired, {len(plan.deleted)} others deleted")
    return {**summary, "index_uri": write_index(config.results_uri)}


if __name__ == "__main__":
    run_job(RunsConfig, run, __doc__ or "")
