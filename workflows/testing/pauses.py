"""Pauses of runs, workflows and queues, said plainly.

The law: a function does what the statement of its name in sql/control.sql does.
"""

from __future__ import annotations

from datetime import datetime

from ..control import SQL
from .clock import NEVER
from .counterparts import Rows, does
from .steps import patience, ready
from .store import Row, Store, as_json, of_json


@does(SQL["pause_run"])
def pause_run(store: Store, *, run: str) -> Rows:
    """Nothing of the run begins any more."""
    row = store.get("run", run)
    if row is None or row["state"] not in ("pending", "running"):
        return []
    store.update("run", row, state="paused")
    return [(run,)]


@does(SQL["resume_run"])
def resume_run(store: Store, *, run: str) -> Rows:
    """The run goes on where it stood."""
    row = store.get("run", run)
    if row is None or row["state"] != "paused":
        return []
    return [(store.update("run", row, state="pending" if row["started_at"] is None else "running")["state"],)]


@does(SQL["park_ready"])
def park_ready(store: Store, *, run: str) -> Rows:
    """Puts the ready steps of a paused run aside; what they waited for and were due at is kept under `paused`."""
    found = store.where("step", run_id=run, state="ready")
    for step in found:
        due = None if step["sent"] else step["due_at"].isoformat()
        kept = {"waits_for": step["waits_for"], "due": due, "noted": step["wait"] is not None}
        wait = as_json({**(of_json(step["wait"]) or {}), "paused": kept})
        store.update(
            "step",
            step,
            state="parked",
            sent=False,
            waits_for="pause",
            due_at=NEVER,
            lease_until=None,
            wait=wait,
        )
    return [(step["idx"],) for step in found]


@does(SQL["unpark"])
def unpark(store: Store, *, run: str, sent: bool) -> Rows:
    """The reverse, and those that were announced and refused. The last column says whether a step may begin now."""
    announced = [step for step in store.where("step", run_id=run, state="ready") if step["sent"]]
    now = store.clock.now()
    answer: Rows = []
    for step in store.where("step", run_id=run, state="parked", waits_for="pause"):
        wait = of_json(step["wait"])
        kept = wait.pop("paused")
        due = now if kept["due"] is None else datetime.fromisoformat(kept["due"])
        step = store.update(
            "step",
            step,
            state="ready",
            waits_for=kept["waits_for"],
            wait=as_json(wait) if kept["noted"] else None,
            sent=sent and due <= now,
            due_at=max(due, now),
            lease_until=patience(step, now),
        )
        answer.append((*_to_publish(step), step["sent"]))
    return [*answer, *((*_to_publish(step), sent) for step in announced)]


def _to_publish(step: Row) -> tuple[object, ...]:
    idx, name, action, queue, priority, attempt, failures, rank, expect = ready(step)
    return (idx, name, action, queue, priority, rank, expect, attempt, failures)


@does(SQL["begin_pause"])
def begin_pause(store: Store, *, kind: str, name: str) -> Rows:
    """A workflow or a queue is paused."""
    row = store.insert("pause", kind=kind, name=name)
    return [] if row is None else [(name,)]


@does(SQL["end_pause"])
def end_pause(store: Store, *, kind: str, name: str) -> Rows:
    """And no more."""
    row = store.get("pause", kind, name)
    if row is None:
        return []
    store.delete("pause", row)
    return [(name,)]


@does(SQL["pauses"])
def pauses(store: Store) -> Rows:
    """What is paused."""
    found = sorted(store.all("pause"), key=lambda row: (row["kind"], row["name"]))
    return [(row["kind"], row["name"], row["at"]) for row in found]


@does(SQL["hold_pause"])
def hold_pause(store: Store, *, kind: str, name: str) -> Rows:
    """Whether it is paused; nobody else is here to end it."""
    return [] if store.get("pause", kind, name) is None else [(name,)]


@does(SQL["runs_in"])
def runs_in(store: Store, *, workflow: str, state: str, after: str, limit: int) -> Rows:
    """Runs of a workflow in one state, by id."""
    found = sorted(row["id"] for row in store.where("run", workflow=workflow, state=state))
    return [(each,) for each in found if each > after][:limit]


@does(SQL["stray_runs"])
def stray_runs(store: Store, *, limit: int) -> Rows:
    """Open runs of paused workflows."""
    paused = [row["name"] for row in store.where("pause", kind="workflow")]
    found = [row for name in paused for row in store.where("run", workflow=name)]
    return [(row["id"],) for row in found if row["state"] in ("pending", "running")][:limit]
