"""Runs in the journal, said plainly: they are opened, read, grown and ended.

The law: a function does what the statement of its name in sql/journal.sql does.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.dialects.postgresql import JSONB

from .. import queries
from ..journal import SQL
from .counterparts import Rows, does
from .steps import OPEN
from .store import Row, Store, as_json, jsonb, of_json


@does(SQL["define"])
def define(store: Store, *, digest: str, name: str, spec: str) -> None:
    """Keeps a definition, once."""
    store.insert("definition", digest=digest, name=name, spec=jsonb(spec))


@does(SQL["open_run"])
def open_run(
    store: Store,
    *,
    run: str,
    correlation: str,
    deadline: float | None = None,
    hooks: str | None = None,
    params: str,
    **columns: Any,
) -> Rows:
    """Inserts a run, unless its id, its key or its place as the only one is taken."""
    workflow, key, single = columns["workflow"], columns["key"], columns["single"]
    if key is not None and store.where("run", workflow=workflow, key=key):
        return []
    if single is not None and any(
        other["state"] in OPEN for other in store.where("run", workflow=workflow, single=single)
    ):
        return []
    begun = store.clock.now()
    ends = None if deadline is None else begun + timedelta(seconds=deadline)
    parent = None if columns["parent_run"] is None else store.get("run", columns["parent_run"])
    if parent is not None and parent["state"] == "paused":
        columns["state"] = "paused"
    if parent is not None:  # a child has no more time than its parent
        ends = min((each for each in (ends, parent["deadline_at"]) if each is not None), default=None)
    if store.get("pause", "workflow", workflow) is not None:
        columns["state"] = "paused"
    row = store.insert(
        "run",
        id=run,
        correlation_id=correlation,
        params=jsonb(params),
        hooks=None if hooks is None else jsonb(hooks),
        created_at=begun,
        deadline_at=ends,
        **columns,
    )
    if row is None:
        return []
    for tag in row["tags"]:
        store.insert("run_tag", tag=tag, run_id=run)
    return [(run,)]


@does(SQL["read_run"])
def read_run(store: Store, *, run: str, workflow: str, key: str | None) -> Rows:
    """The run that was just opened, or the one that has its key."""
    found = store.where("run", id=run) if key is None else store.where("run", workflow=workflow, key=key)
    return [_shown(row) for row in found]


def _shown(row: Row) -> tuple[Any, ...]:
    columns = [(column.key, isinstance(column.type, JSONB)) for column in queries.RUN]
    return tuple(of_json(row[name]) if is_json else row[name] for name, is_json in columns)


@does(SQL["end_run"])
def end_run(store: Store, *, run: str, state: str, error: str | None) -> Rows:
    """Ends a run before its time."""
    row = store.get("run", run)
    if row is None or row["state"] not in OPEN:
        return []
    kept = None if error is None else jsonb(error)
    store.update("run", row, state=state, error=kept, finished_at=store.clock.now())
    store.insert("event", run_id=run, kind=f"run.{state}", detail=kept)
    return [(run, bool(store.where("run", parent_run=run)), row["gates"])]


@does(SQL["leave_all"])
def leave_all(store: Store, *, run: str) -> None:
    """The places that a run and its steps held in limits."""
    for row in store.where("permit", run_id=run):
        store.delete("permit", row)


@does(SQL["open_children"])
def open_children(store: Store, *, run: str) -> Rows:
    """The child runs that are not over."""
    found = store.where("run", parent_run=run)
    return [(row["id"],) for row in sorted(found, key=lambda row: row["id"]) if row["state"] in OPEN]


@does(SQL["stop_steps"])
def stop_steps(store: Store, *, run: str) -> None:
    """Ends every open step of a run; what ran keeps a trace of its lease."""
    now = store.clock.now()
    for step in store.where("step", run_id=run):
        if step["state"] in ("waiting", "ready", "running", "parked"):
            ran = step["state"] == "running"
            store.update(
                "step",
                step,
                state="cancelled",
                lease=str(UUID(step["lease"][::-1])) if ran else None,
                lease_until=step["lease_until"] if ran else None,
                finished_at=now,
            )


@does(SQL["tell"])
def tell(store: Store, *, run: str, kind: str, idx: int | None, detail: str) -> None:
    """Writes an event."""
    store.insert("event", run_id=run, kind=kind, idx=idx, detail=jsonb(detail))


@does(SQL["notify"])
def notify(store: Store, *, run: str) -> Rows:
    """Who waits for the run here is told when its turn has come; whose child the run is."""
    store.ended.append(run)
    row = store.get("run", run)
    return [] if row is None else [(row["parent_run"], row["parent_idx"], row["follow"], "")]


@does(SQL["ending"])
def ending(store: Store, *, run: str, limit: int) -> Rows:
    """How a run ended, with the results of its last steps where those are not too large."""
    row = store.get("run", run)
    if row is None:
        return []
    last = {
        step["name"].removesuffix("[]"): step["result"]
        for step in store.where("step", run_id=run)
        if not step["dependents"] and step["state"] in ("succeeded", "failed")
    }
    size = sum(len(name.encode()) + len(text.encode()) + 5 for name, text in last.items() if text is not None)
    results = None
    if row["state"] == "succeeded" and size <= limit:
        results = as_json({name: of_json(text) for name, text in last.items()})
    return [(row["state"], of_json(row["error"]), size, results)]


@does(SQL["bury"])
def bury(store: Store, *, run: str, idx: Sequence[int]) -> None:
    """The steps that failed a run become dead letters."""
    workflow = store.where("run", id=run)[0]["workflow"]
    for each in idx:
        step = store.get("step", run, each)
        if step is None:
            continue
        letter = store.get("dead_letter", run, each)
        if letter is not None:
            store.delete("dead_letter", letter)
        error, name, action = step["error"], step["name"], step["action"]
        store.insert(
            "dead_letter", run_id=run, idx=each, workflow=workflow, step=name, action=action, error=error
        )
