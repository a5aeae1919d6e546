"""Runs that begin later, and runs of which there is only one, said plainly.

The law: a function does what the statement of its name in sql/beginnings.sql does.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from ..beginnings import SQL
from .clock import NEVER
from .counterparts import Rows, does
from .steps import OPEN, seconds_from
from .store import Store, as_json, jsonb, of_json


@does(SQL["defer"])
def defer(store: Store, *, run: str, at: datetime | None, delay: float | None) -> None:
    """The first steps of a new run get their time; behind it comes the limit in front of one, if there is any."""
    moment = at if at is not None else seconds_from(store, delay or 0.0)
    for row in store.where("run", id=run):
        if row["deadline_at"] is not None:
            later = max(timedelta(), moment - store.clock.now())
            store.update("run", row, deadline_at=row["deadline_at"] + later)
    for step in store.where("step", run_id=run):
        if step["state"] == "ready":
            store.update("step", step, due_at=moment, sent=False)
        elif step["state"] == "parked":
            line = as_json({"then": step["waits_for"]})
            store.update("step", step, due_at=moment, sent=False, wait=line, waits_for="start")


@does(SQL["begin"])
def begin(store: Store, *, limit: int) -> Rows:
    """Steps whose run begins now, and that have a limit in front of them."""
    now = store.clock.now()
    due = [step for step in store.where("step", state="parked", waits_for="start") if step["due_at"] <= now]
    lines = []
    for step in sorted(due, key=lambda step: step["due_at"])[:limit]:
        note = of_json(step["wait"])
        line = note.pop("then")
        store.update("step", step, waits_for=line, wait=as_json(note) if note else None, due_at=NEVER)
        lines.append((line,))
    return lines


@does(SQL["turn"])
def turn(store: Store, *, workflow: str, single: str) -> Rows:
    """Nobody else is here."""
    return [("",)]


@does(SQL["standing"])
def standing(store: Store, *, workflow: str, single: str) -> Rows:
    """The open run of that name."""
    found = store.where("run", workflow=workflow, single=single)
    return [
        (row["id"], row["started_at"] is not None, row["created_at"]) for row in found if row["state"] in OPEN
    ]


@does(SQL["recent"])
def recent(store: Store, *, workflow: str, single: str, window: float) -> Rows:
    """The newest run of that name within the window, over or not."""
    since = store.clock.now() - timedelta(seconds=window)
    found = [row for row in store.where("run", workflow=workflow, single=single) if row["created_at"] > since]
    return [(row["id"],) for row in sorted(found, key=lambda row: row["created_at"], reverse=True)[:1]]


@does(SQL["give_up"])
def give_up(store: Store, *, run: str) -> None:
    """A run that has begun gives its name to the next one."""
    for row in store.where("run", id=run):
        store.update("run", row, single=None)


@does(SQL["clear"])
def clear(store: Store, *, run: str) -> None:
    """A run that has not begun gets other steps."""
    for step in store.where("step", run_id=run):
        store.delete("step", step)


@does(SQL["replace"])
def replace(
    store: Store, *, run: str, params: str, correlation: str, hooks: str | None, **columns: object
) -> None:
    """And what comes with them."""
    for row in store.where("run", id=run):
        kept = None if hooks is None else jsonb(hooks)
        store.update("run", row, params=jsonb(params), correlation_id=correlation, hooks=kept, **columns)


@does(SQL["tell"])
def tell(store: Store, *, run: str) -> None:
    """An event."""
    store.insert("event", run_id=run, kind="run.debounced")


@does(SQL["now"])
def now(store: Store) -> Rows:
    """The time."""
    return [(store.clock.now(),)]
