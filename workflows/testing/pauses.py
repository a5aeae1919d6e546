"""Pauses of runs, workflows and queues, said plainly.

The law: a function does what the statement of its name in sql/control.sql does.
"""

from __future__ import annotations

from datetime import datetime

from ..control import SQL
from ..gates import PREFIX, first_line
from .clock import NEVER
from .counterparts import Rows, does
from .steps import OPEN, options_of, patience, ready
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
    """Puts the ready steps of a paused run aside, and those in line; what they waited for and were due at is kept."""
    found = store.where("step", run_id=run, state="ready")
    found += [
        step
        for step in store.where("step", run_id=run, state="parked")
        if step["waits_for"].startswith(PREFIX)
    ]
    for step in found:
        due = None if step["sent"] or step["state"] != "ready" else step["due_at"].isoformat()
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


@does(SQL["give_back"])
def give_back(store: Store, *, run: str) -> Rows:
    """The places of the steps that a pause has put aside are free."""
    aside = {step["idx"] for step in store.where("step", run_id=run, state="parked", waits_for="pause")}
    found = [row for row in store.where("permit", run_id=run) if row["idx"] in aside]
    for row in found:
        store.delete("permit", row)
    return [(row["gate"],) for row in found]


@does(SQL["unpark"])
def unpark(store: Store, *, run: str, sent: bool) -> Rows:
    """The reverse, and those that were announced and refused: whether a step may begin now, and its line."""
    announced = [step for step in store.where("step", run_id=run, state="ready") if step["sent"]]
    now = store.clock.now()
    answer: Rows = []
    for step in store.where("step", run_id=run, state="parked", waits_for="pause"):
        wait = of_json(step["wait"])
        kept = wait.pop("paused")
        note = wait if kept["noted"] else None
        due = now if kept["due"] is None else datetime.fromisoformat(kept["due"])
        line = _line(step, kept["waits_for"])
        if line is None:
            changes = {
                "state": "ready",
                "waits_for": kept["waits_for"],
                "sent": sent and due <= now,
                "due_at": max(due, now),
                "lease_until": patience(step, now),
            }
        elif due > now:  # a retry: first its time, then its line
            note = {**(note or {}), "then": line}
            changes = {"waits_for": "start", "due_at": due}
        else:
            changes = {"waits_for": line}
        step = store.update("step", step, wait=None if note is None else as_json(note), **changes)
        answer.append((*_to_publish(step), step["sent"], line))
    return [*answer, *((*_to_publish(step), sent, None) for step in announced)]


def _line(step: Row, waited: str | None) -> str | None:
    """The line in which a step stands again; None: it has none, or is only going to be skipped."""
    options = options_of(step)
    if step["blocked"] > 0 and "join" not in options:
        return None
    return waited if waited is not None and waited.startswith(PREFIX) else first_line(options)


@does(SQL["paused_itself"])
def paused_itself(store: Store, *, run: str) -> Rows:
    """Whether somebody has paused this very run since it was last resumed."""
    told = [
        row
        for row in sorted(store.where("event", run_id=run), key=lambda row: row["id"])
        if row["kind"] == "run.resumed"
        or (row["kind"] == "run.paused" and "by" not in (of_json(row["detail"]) or {}))
    ]
    return [(row["kind"] == "run.paused",) for row in told[-1:]]


@does(SQL["open_below"])
def open_below(store: Store, *, run: str) -> Rows:
    """The open runs below this one, parents first."""
    found: list[Row] = []
    parents = [run]
    for parent in parents:
        children = [row for row in store.where("run", parent_run=parent) if row["state"] in OPEN]
        found += children
        parents += [row["id"] for row in children]
    found.sort(key=lambda row: str(row["id"]))
    return [(row["id"], row["state"], row["workflow"], row["parent_run"]) for row in found]


@does(SQL["paused_above"])
def paused_above(store: Store, *, run: str) -> Rows:
    """The topmost of the paused runs that this one is a part of."""
    top, row = None, store.get("run", run)
    while row is not None and row["parent_run"] is not None:
        row = store.get("run", row["parent_run"])
        if row is None or row["state"] != "paused":
            break
        top = row["id"]
    return [] if top is None else [(top,)]


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


@does(SQL["sendable"])
def sendable(store: Store, *, queue: str) -> Rows:
    """What time it is, where the queue is not paused."""
    paused = store.get("pause", "queue", queue) is not None
    return [] if paused else [(store.clock.now().timestamp(),)]


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
