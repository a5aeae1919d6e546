"""What people do to runs from outside, said plainly.

The law: a function does what the statement of its name in sql/control.sql does.
"""

from __future__ import annotations

from collections import Counter

from ..control import SQL
from .counterparts import Rows, does
from .steps import ready
from .store import Row, Store, of_json


@does(SQL["lock_run"])
def lock_run(store: Store, *, run: str) -> Rows:
    """A run's workflow, state and the step that failed it, and whether it ever began."""
    row = store.get("run", run)
    if row is None:
        return []
    return [
        (
            row["state"],
            row["workflow"],
            (of_json(row["error"]) or {}).get("step"),
            row["started_at"] is not None,
        )
    ]


@does(SQL["undone_by"])
def undone_by(store: Store, *, run: str) -> Rows:
    """The run that compensated this one."""
    return [(row["id"],) for row in store.where("run", origin=run, origin_kind="compensation")[:1]]


@does(SQL["plan_whole"])
def plan_whole(store: Store) -> Rows:
    """Nothing is planned here."""
    return [("on",)]


@does(SQL["reopen_steps"])
def reopen_steps(store: Store, *, run: str, step: str | None, sent: bool) -> Rows:
    """Opens the steps again that were cancelled, or failed and took the run with them."""
    fatal = {row["idx"] for row in store.where("dead_letter", run_id=run)}
    fatal |= {row["idx"] for row in store.where("event", run_id=run, kind="dead.discarded")}
    again: dict[int, Row] = {
        each["idx"]: each
        for each in store.where("step", run_id=run)
        if each["state"] == "cancelled"
        or (each["state"] == "failed" and (each["name"] == step or each["idx"] in fatal))
    }
    need = Counter(~edge if edge < 0 else edge for each in again.values() for edge in each["dependents"])
    opened = [
        store.update(
            "step",
            each,
            state="waiting" if need[idx] else "ready",
            missing=need[idx],
            attempt=0,
            failures=0,
            sent=sent,
            suspect=False,
            due_at=store.clock.now(),
            **dict.fromkeys(_EMPTY),
        )
        for idx, each in again.items()
    ]
    sinks = sum(1 for each in opened if not each["dependents"])
    found: Rows = [(*ready(each)[:5], None, None) for each in opened if each["state"] == "ready"]
    return [*found, (None, None, None, None, None, len(opened), sinks)]


_EMPTY = (
    "lease", "lease_until", "worker", "started_at", "finished_at", "progress", "result", "error", "wait",
)  # fmt: skip


@does(SQL["reopen_run"])
def reopen_run(store: Store, *, run: str, missing: int) -> Rows:
    """The deadline moves on by the time that has passed since the run was accepted."""
    row = store.where("run", id=run)[0]
    now = store.clock.now()
    paused = store.get("pause", "workflow", row["workflow"]) is not None
    deadline = row["deadline_at"]
    store.update(
        "run",
        row,
        state="paused" if paused else "running",
        missing=missing,
        error=None,
        finished_at=None,
        started_at=row["started_at"] or now,
        follow=row["hooks"] is not None,
        deadline_at=None if deadline is None else deadline + (now - row["created_at"]),
    )
    return [("paused" if paused else "running",)]


@does(SQL["bring_back"])
def bring_back(store: Store, *, run: str) -> None:
    """Its dead letters are gone."""
    for row in store.where("dead_letter", run_id=run):
        store.delete("dead_letter", row)


@does(SQL["discard"])
def discard(store: Store, *, run: str, idx: int | None) -> Rows:
    """Removes the dead letters of a run, or of one step."""
    found = [row for row in store.where("dead_letter", run_id=run) if idx is None or row["idx"] == idx]
    for row in found:
        store.delete("dead_letter", row)
    return [(row["idx"], row["step"]) for row in found]
