"""How long runs are kept, and their end, said plainly.

The law: a function does what the statement of its name in sql/control.sql does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from ...tasks.settings import Settings
from ..control import SQL
from ..retention import FOREVER
from .control import ENDED
from .counterparts import Rows, does
from .store import Row, Store, of_json

_BELONGS = ("step", "event", "signal", "permit", "dead_letter", "run_tag")


@does(SQL["retains_anything"])
def retains_anything(store: Store) -> Rows:
    """Whether anything is said on how long runs are kept."""
    return [(bool(store.all("retention")),)]


@does(SQL["retain"])
def retain(store: Store, *, workflow: str, runs: timedelta) -> None:
    """So long for this workflow."""
    row = store.get("retention", workflow)
    if row is None:
        store.insert("retention", workflow=workflow, runs=runs)
    else:
        store.update("retention", row, runs=runs)


@does(SQL["retain_default"])
def retain_default(store: Store, *, workflow: str) -> None:
    """As the setting says."""
    for row in store.where("retention", workflow=workflow):
        store.delete("retention", row)


@does(SQL["retain_part"])
def retain_part(store: Store, *, part: str, workflow: str, keep: timedelta) -> None:
    """A part of this workflow's runs for so long."""
    row = store.get("retention_part", part, workflow)
    if row is None:
        store.insert("retention_part", part=part, workflow=workflow, keep=keep)
    else:
        store.update("retention_part", row, keep=keep)


@does(SQL["retain_part_default"])
def retain_part_default(store: Store, *, part: str, workflow: str) -> None:
    """As long as its run."""
    for row in store.where("retention_part", part=part, workflow=workflow):
        store.delete("retention_part", row)


@does(SQL["retentions"])
def retentions(store: Store) -> Rows:
    """What is said for single workflows."""
    said = {row["workflow"]: row["runs"] for row in store.all("retention")}
    parts = {(row["part"], row["workflow"]): row["keep"] for row in store.all("retention_part")}
    return [
        (name, said.get(name), parts.get(("events", name)), parts.get(("artifacts", name)))
        for name in sorted({*said, *(name for _, name in parts)})
    ]


def _outlived(store: Store, part: Row) -> Iterator[tuple[datetime, Row]]:
    """When this part of the runs of a workflow may go."""
    for run in store.where("run", workflow=part["workflow"]):
        over = run["finished_at"]
        if over is not None and (part["until"] is None or over > part["until"]):
            yield over + part["keep"], run


@does(SQL["outlived"])
def outlived(store: Store, *, part: str, limit: int) -> Rows:
    """Runs of which this part has outlived its time, from where the last purge came to; `limit` is for speed."""
    now = store.clock.now()
    found = [
        (run["workflow"], run["id"], run["finished_at"])
        for row in store.where("retention_part", part=part)
        for moment, run in _outlived(store, row)
        if moment < now
    ]
    return sorted(found, key=lambda each: (each[0], each[2], each[1]))


@does(SQL["purged_until"])
def purged_until(store: Store, *, part: str, workflow: str, until: datetime) -> None:
    """How far a purge came."""
    for row in store.where("retention_part", part=part, workflow=workflow):
        store.update("retention_part", row, until=until if row["until"] is None else max(until, row["until"]))


@does(SQL["trim_events"])
def trim_events(store: Store, *, runs: Sequence[object], limit: int) -> Rows:
    """Some events of these runs; one stays in their place."""
    there = [event for run in map(str, runs) for event in store.where("event", run_id=run)]
    told = {event["run_id"] for event in there if event["kind"] == "events.purged"}
    found = [event for event in there if event["kind"] != "events.purged"][:limit]
    for event in found:
        store.delete("event", event)
    for run in dict.fromkeys(event["run_id"] for event in found if event["run_id"] not in told):
        store.insert("event", run_id=run, kind="events.purged")
    return [(len(found),)]


def expiry(store: Store, run: Row, default: timedelta | None) -> datetime | None:
    """When a run that is over may go; None: not as long as something needs it, or is to follow its end."""
    said = store.get("retention", run["workflow"])
    keep = default if said is None else said["runs"]
    over: datetime | None = run["finished_at"]
    if over is None or keep is None or keep >= FOREVER or _needed_by(store, run["id"]):
        return None
    if "waits" in (of_json(run["hooks"]) or {}):
        return None
    return over + keep


def expiries(store: Store, settings: Settings) -> Iterator[datetime]:
    """When runs that are over may go."""
    days = settings.retention_days
    default = None if days is None else timedelta(days=days)
    for part in store.all("retention_part"):
        for moment, _ in _outlived(store, part):
            yield moment + timedelta(milliseconds=1)
    if default is None and not store.all("retention"):
        return
    for run in store.all("run"):
        end = expiry(store, run, default)
        if end is not None:
            yield end + timedelta(milliseconds=1)  # later than that, and not at it


@does(SQL["expired_runs"])
def expired_runs(store: Store, *, default: timedelta | None, limit: int) -> Rows:
    """Runs that are over for longer than they are kept, and that nobody needs."""
    now = store.clock.now()
    late = [(ends, run) for run in store.all("run") if (ends := expiry(store, run, default)) and ends < now]
    late.sort(key=lambda found: (found[1]["workflow"], found[1]["finished_at"]))
    return [(run["id"], run["steps"]) for _, run in late[:limit]]


def _needed_by(store: Store, run: str) -> list[tuple[str, str]]:
    repeats = [(row["id"], "repeats it") for row in store.where("run", origin=run, origin_kind="rerun")]
    row = store.get("run", run)
    parent = None if row is None or row["parent_run"] is None else store.get("run", row["parent_run"])
    return [*repeats, *([] if parent is None else [(parent["id"], "had it as a step")])]


@does(SQL["needed_by"])
def needed_by(store: Store, *, run: str) -> Rows:
    """A run that uses what this one has kept."""
    return [*_needed_by(store, run)][:1]


@does(SQL["take_dead"])
def take_dead(store: Store, *, runs: Sequence[object]) -> Rows:
    """Those of these runs that are over, marked, so that nobody opens them again."""
    found = [store.get("run", str(each)) for each in runs]
    over = [row for row in found if row is not None and row["state"] in ENDED]
    return [(store.update("run", row, missing=-1, follow=False)["id"],) for row in over]


@does(SQL["delete_steps"])
def delete_steps(store: Store, *, run: str, limit: int) -> Rows:
    """Some steps of a run."""
    found = sorted(store.where("step", run_id=run), key=lambda step: int(step["idx"]))[:limit]
    for step in found:
        store.delete("step", step)
    return [(step["idx"],) for step in found]


@does(SQL["delete_events"])
def delete_events(store: Store, *, run: str, limit: int) -> Rows:
    """Some events of a run."""
    found = store.where("event", run_id=run)[:limit]
    for event in found:
        store.delete("event", event)
    return [(event["id"],) for event in found]


@does(SQL["delete_runs"])
def delete_runs(store: Store, *, runs: Sequence[object]) -> Rows:
    """Runs, with all that belongs to them. Their children stay, and have no parent any more."""
    answer: Rows = []
    for run in map(str, runs):
        for table in _BELONGS:
            for row in store.where(table, run_id=run):
                store.delete(table, row)
        for row in store.where("run", id=run):
            store.delete("run", row)
            answer.append((run,))
        for child in store.where("run", parent_run=run):
            store.update("run", child, parent_run=None)
    return answer
