"""Steps that wait for the outside world, said plainly: parked, told, woken.

The law: a function does what the statement of its name in sql/journal.sql does.
"""

from __future__ import annotations

import json
from datetime import datetime

from ..journal import SQL
from .clock import NEVER
from .counterparts import Rows, does
from .steps import patience, ready, seconds_from
from .store import TRIGGERS, Row, Store, as_json, of_json


@does(SQL["park"])
def park(
    store: Store,
    *,
    run: str,
    idx: int,
    lease: str,
    waits_for: str,
    wait: str,
    delay: float | None,
    until: str | None,
) -> Rows:
    """Puts a running step aside; its attempt does not count."""
    step = store.get("step", run, idx)
    if step is None or step["lease"] != lease:
        return []
    due = NEVER if delay is None else seconds_from(store, delay)
    due = due if until is None else datetime.fromisoformat(until)
    note = json.loads(wait) if due == NEVER else {**json.loads(wait), "until": due.isoformat()}
    store.update(
        "step",
        step,
        state="parked",
        attempt=step["attempt"] - 1,
        lease=None,
        lease_until=None,
        sent=False,
        finished_at=None,
        waits_for=waits_for,
        wait=as_json(note),
        due_at=due,
    )
    return [(idx,)]


def rouse(store: Store, step: Row, by: str, *, sent: bool = True) -> Row:
    """A parked step, ready again, with a note of what woke it."""
    wait = as_json({**(of_json(step["wait"]) or {}), "woken": by})
    now = store.clock.now()
    return store.update(
        "step", step, state="ready", sent=sent, due_at=now, lease_until=patience(step, now), wait=wait
    )


@does(SQL["wake"])
def wake(store: Store, *, run: str, waits_for: str, by: str, sent: bool) -> Rows:
    """Wakes the steps of a run that wait for something."""
    found = store.where("step", run_id=run, state="parked", waits_for=waits_for)
    return [ready(rouse(store, step, by, sent=sent)) for step in found]


def wake_parent(store: Store, before: Row, run: Row) -> None:
    """The end of a child run wakes the step that waits for it (a trigger)."""
    if run["parent_run"] is None or run["state"] not in ("succeeded", "failed", "cancelled"):
        return
    step = store.get("step", run["parent_run"], run["parent_idx"])
    if step is not None and step["state"] == "parked" and step["waits_for"] == f"run:{run['id']}":
        rouse(store, step, "run", sent=False)


TRIGGERS["run"].append(wake_parent)


@does(SQL["take_woken"])
def take_woken(store: Store, *, run: str, idx: int) -> Rows:
    """The step that the end of a child run has woken."""
    step = store.get("step", run, idx)
    if step is None or step["state"] != "ready" or step["sent"]:
        return []
    return [announced(store, store.update("step", step, sent=True))]


@does(SQL["take_due"])
def take_due(store: Store, *, limit: int) -> Rows:
    """Wakes the parked steps whose time has come."""
    now = store.clock.now()
    due = [
        step
        for step in store.where("step", state="parked")
        if step["wait"] is not None and step["due_at"] <= now and step["waits_for"] != "start"
    ]
    due.sort(key=lambda step: step["due_at"])
    return [announced(store, rouse(store, step, "time")) for step in due[:limit]]


@does(SQL["take_resumed"])
def take_resumed(store: Store, *, limit: int) -> Rows:
    """Wakes the steps whose task goes to a queue that is paused no longer."""
    paused = {f"queue:{row['name']}" for row in store.where("pause", kind="queue")}
    free = [
        step
        for step in store.where("step", state="parked")
        if step["waits_for"].startswith("queue:") and step["waits_for"] not in paused
    ]
    return [announced(store, rouse(store, step, "queue")) for step in free[:limit]]


def announced(store: Store, step: Row, *, paused: bool = True) -> tuple[object, ...]:
    """A step to publish, with its run and workflow (or without that, where the run is paused)."""
    run = store.get("run", step["run_id"])
    workflow = None if run is None or (run["state"] == "paused" and not paused) else run["workflow"]
    return (step["run_id"], workflow, *ready(step))


@does(SQL["cancelled_tasks"])
def cancelled_tasks(store: Store, *, run: str) -> Rows:
    """The foreign tasks that steps waited for."""
    return [
        (of_json(step["wait"])["task"],)
        for step in store.where("step", run_id=run)
        if step["state"] == "cancelled" and str(step["waits_for"]).startswith("task:")
    ]


@does(SQL["lock_run"])
def lock_run(store: Store, *, run: str) -> Rows:
    """Whose turn it is: nobody else is here."""
    row = store.get("run", run)
    return [] if row is None else [(row["state"], row["workflow"])]


@does(SQL["send_signal"])
def send_signal(store: Store, *, run: str, name: str, key: str, payload: str) -> Rows:
    """Keeps a signal, once a key."""
    if store.where("signal", run_id=run, name=name, key=key):
        return []
    kept = as_json(of_json(payload)) or "null"
    row = store.insert("signal", run_id=run, name=name, key=key, payload=kept)
    return [] if row is None else [(row["id"],)]


@does(SQL["take_signal"])
def take_signal(store: Store, *, run: str, name: str, idx: int) -> Rows:
    """The oldest signal of a name that no other step has taken; the same one for the same step."""
    open_or_ours = [
        row for row in store.where("signal", run_id=run, name=name) if row["taken_by"] in (None, idx)
    ]
    open_or_ours.sort(key=lambda row: (row["taken_by"] is None, row["id"]))
    return [_told(store.update("signal", row, taken_by=idx)) for row in open_or_ours[:1]]


@does(SQL["read_signals"])
def read_signals(store: Store, *, run: str, name: str) -> Rows:
    """All signals of a name, the oldest first."""
    return [_told(row) for row in store.where("signal", run_id=run, name=name)]


def _told(row: Row) -> tuple[object, ...]:
    return (row["id"], row["key"], of_json(row["payload"]), row["at"])
