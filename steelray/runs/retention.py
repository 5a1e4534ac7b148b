"""Retention of runs. An old run is retired: its rows, pictures and page are deleted, its manifest and run.json stay.

Incremental runs thus still know what it has scored. A run that published.json names is never touched: the run is first
removed from that file by one conditional write, and its files are deleted after that.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from steelray.runs.quarantine import LIST, SPREADSHEET
from steelray.runs.run import (
    MANIFEST_FILE,
    RECORD_FILE,
    RETIRED_FILE,
    RUNS,
    Published,
    Run,
    move_pointer,
    read_published,
)
from steelray.storage.location import Location, ObjectChanged

KEPT_FILES = (MANIFEST_FILE, LIST, SPREADSHEET, RETIRED_FILE)


@dataclass(frozen=True)
class PrunePlan:
    """Ids of published runs that are kept or retired, and of unpublished or rolled-back runs that are deleted."""

    pointer: Published
    """State of published.json when the plan was made."""
    kept: tuple[str, ...]
    retired: tuple[str, ...]
    deleted: tuple[str, ...]


def plan_prune(results_uri: str, keep: int | None, keep_days: float | None, now: datetime | None = None) -> PrunePlan:
    """Plan what `prune` does.

    Args:
        keep: number of newest published runs to keep, whatever their age.
        keep_days: age in days up to which runs are kept, whatever their number. Runs that were rolled back or never
            finished are deleted if all their files are older.
    """
    now = now or datetime.now(UTC)
    young = now - timedelta(days=keep_days) if keep_days is not None else None
    published = read_published(results_uri)
    kept: list[str] = []
    retired: list[str] = []
    for place, run_id in enumerate(published.run_ids):
        record = Run(results_uri, run_id).record()
        recent = young is not None and record is not None and record.ended_at >= young
        (kept if place < max(keep or 0, 1) or recent else retired).append(run_id)
    deleted = []
    if young is not None:
        known = {*published.run_ids, *published.retired_ids}
        others = [name for name in (Location(results_uri) / RUNS).folders() if name not in known]
        deleted = [name for name in others if _last_change(Run(results_uri, name)) < young]
    return PrunePlan(published, tuple(kept), tuple(retired), tuple(deleted))


def _last_change(run: Run) -> datetime:
    return max((stored.last_modified for stored in run.location.list()), default=datetime.now(UTC))


def prune(results_uri: str, plan: PrunePlan) -> None:
    """Carry out a plan, and finish what an interrupted one has left.

    Raises:
        ObjectChanged: a run was published or rolled back since the plan was made; nothing has been deleted.
    """
    retired_ids = (*plan.retired, *plan.pointer.retired_ids)
    if plan.retired:
        move_pointer(results_uri, plan.pointer, plan.kept, retired_ids)
    elif read_published(results_uri) != plan.pointer:
        raise ObjectChanged("published.json has changed")
    for run_id in retired_ids:
        retire(Run(results_uri, run_id))
    for run_id in plan.deleted:
        Run(results_uri, run_id).location.delete_all()


def retire(run: Run) -> None:
    """Delete a run's rows, pictures and page, and rename its record. published.json must no longer name it."""
    location = run.location
    if run.record() is not None:
        location.write(RETIRED_FILE, location.read(RECORD_FILE))
        location.delete(RECORD_FILE)
    if run.retired_record() is not None:
        for key in [stored.key for stored in location.list() if stored.key not in KEPT_FILES]:
            location.delete(key)
