"""Compensation: what the finished steps of a failed or cancelled run did is undone, in reverse order (a saga).

The law: it is a run of its own, linked to the one it undoes, and so as durable as any: its steps are a chain, are
retried, and end as dead letters where nothing helps. It was planned when the run was accepted, and needs neither
the definition nor the code of that time. A run has at most one, and it begins after the last body of that run, and of
the runs below it, has ended: what a body does after it was undone would stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from ..tasks.database import Connection
from . import launch, lingering
from .control import ask
from .journal import Journal
from .plan import PlannedStep
from .records import Ended, Json, Ready
from .states import RunState, StepState

KIND = "compensation"  # of the link to the run that is undone
WAITS: Literal["waits"] = "waits"  # stands in a run's hooks while its compensation has to wait
_SUFFIX = {RunState.FAILED: "on_failure", RunState.CANCELLED: "on_cancel"}

Row = Mapping[str, Any]
Finished = Mapping[int, tuple[StepState, datetime | None]]


def insert(
    journal: Journal, connection: Connection, ended: Ended, rows: Mapping[str, list[Row]], *, sent: bool
) -> tuple[str, str, list[Ready]] | Literal["waits"] | None:
    """Insert the run that undoes another one: id, workflow, ready steps. None where there is nothing to undo."""
    planned = rows.get(ended.state.value)
    if not planned or ask(connection, "undone_by", run=ended.run):
        return None
    undone = [row["of"] for row in planned if row["of"] is not None]
    found = ask(connection, "outcomes", run=ended.run, idx=undone)
    chosen = in_order(planned, {idx: (StepState(state), at) for idx, state, at, _ in found})
    if not chosen:
        return None
    if lingering.last(connection, ended.run) is not None:
        return WAITS
    needed = sorted({ref for row in chosen for ref in row["refs"]})
    steps = chain(chosen, {ref: place for place, ref in enumerate(needed)})
    run, workflow = launch.new_id(), f"{ended.workflow}.{_SUFFIX[ended.state]}"
    ask(
        connection,
        "open_linked",
        run=run,
        workflow=workflow,
        steps=len(needed) + len(steps),
        missing=1,
        origin=ended.run,
        kind=KIND,
    )
    dependents = [step.idx for step in steps]
    places = list(range(len(needed)))
    ask(connection, "stand_ins", run=run, origin=ended.run, idx=needed, place=places, dependents=dependents)
    journal.add(connection, run, steps, sent=sent)
    return run, workflow, [steps[0].ready]


def waits(connection: Connection, run: str) -> bool:
    """Whether the compensation of a run that is over waits for bodies that may still be at work."""
    rows = ask(connection, "read_origin", run=run)
    return bool(rows) and WAITS in (rows[0][3] or {})


def in_order(planned: Sequence[Row], finished: Finished) -> list[Row]:
    """The steps that are to run: those whose step succeeded, the latest first; then those that undo none. Pure."""
    undo = [row for row in planned if row["of"] is not None and _succeeded(finished, row["of"])]
    # Of those that were recorded together, in one commit, the later one of the definition comes first.
    undo.sort(key=lambda row: (finished[row["of"]][1], row["of"]), reverse=True)
    return [*undo, *(row for row in planned if row["of"] is None)]


def _succeeded(finished: Finished, idx: int) -> bool:
    return idx in finished and finished[idx][0] is StepState.SUCCEEDED


def chain(rows: Sequence[Row], places: Mapping[int, int]) -> list[PlannedStep]:
    """The rows as steps, each behind the one before; the results they use are looked up in their new places. Pure."""
    first = len(places)
    return [
        PlannedStep(
            first + turn,
            row["name"],
            row["action"],
            row["queue"],
            row["priority"],
            1 if turn else 0,
            (first + turn + 1,) if turn + 1 < len(rows) else (),
            row["inputs"],
            _moved(row["bindings"], places),
            tuple(places[ref] for ref in row["refs"]),
            row["options"],
        )
        for turn, row in enumerate(rows)
    ]


def _moved(bindings: list[list[Json]] | None, places: Mapping[int, int]) -> list[list[Json]] | None:
    if not bindings:
        return None
    found: list[list[Json]] = []
    for at, parent, rest in bindings:
        if parent == "text":
            parts = [part if isinstance(part, str) else [places[part[0]], part[1]] for part in rest]
            found.append([at, parent, parts])
        else:
            found.append([at, places[parent], rest])
    return found
