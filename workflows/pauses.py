"""Pausing and resuming: a run with its child runs, all runs of a workflow, a queue.

The law: of what is paused nothing begins, and it costs nothing: the steps of a paused run that were ready, or stood
in line before a limit, are parked, and whoever meets another one parks it as well. Bodies that run go on, and their
results count; nothing else of a paused run holds a place in a limit. Nothing is lost by a pause: what a step had noted
before is handed back to it. A run is paused for as long as anything says so: somebody who paused that very run, its
workflow, or the run that it is a step of. A workflow's or queue's pause is a row, which starts, claims and ticks look
at; whoever acts on a row holds it, so that a resume in between cannot leave a run behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from ..tasks.database import Connection, Database
from ..tasks.errors import StateError
from .control import Moved, ask, locked, tell
from .records import Json, Pause, Ready
from .states import RUN_ENDS, RunState

_BATCH = 500  # runs between two looks

T = TypeVar("T")


class Held(NamedTuple):
    """What a pause has done."""

    changed: bool
    lines: frozenset[str] = frozenset()  # limits in which places are free now


class Pauses:
    """The verbs of pausing on one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- a run

    def pause(self, run: str) -> Held:
        """Pause a run and its child runs. Raises NotFound, StateError where it is over."""

        def act(connection: Connection, run: str) -> Held:
            _, state, _ = locked(connection, run)
            if state in RUN_ENDS:
                raise StateError(f"run {run} is over, so it cannot be paused: it {_was(state)}")
            if state is not RunState.PAUSED:
                return Held(True, _pause_tree(connection, run, None))
            if _by_hand(connection, run):
                return Held(False)
            tell(connection, run, "run.paused", None, None)  # from now on for its own sake as well
            return Held(True)

        return self._again(run, act)

    def resume(self, run: str, *, sent: bool) -> list[tuple[str, Moved]]:
        """Resume a run and its child runs, but those that are paused for another reason; none where it is not paused.

        sent: whether the caller publishes the steps that are ready; else the next tick does.

        Raises NotFound, StateError where it is over, or its workflow, or the run that it is a step of, is paused.
        """

        def act(connection: Connection, run: str) -> list[tuple[str, Moved]]:
            workflow, state, _ = locked(connection, run)
            if state in RUN_ENDS:
                raise StateError(f"run {run} is over, so it cannot be resumed: it {_was(state)}")
            if state is not RunState.PAUSED:
                return []
            if ask(connection, "hold_pause", kind="workflow", name=workflow):
                raise StateError(f"workflow {workflow!r} of run {run} is paused: resume the workflow")
            above = ask(connection, "paused_above", run=run)
            if above:
                raise StateError(
                    f"run {run} is a part of run {above[0][0]}, which is paused: resume that one"
                )
            return _resume_tree(connection, run, workflow, sent)

        return self._again(run, act)

    def park(self, run: str) -> int:
        """Park what is ready or in line of a run if it is paused; answers with how many steps that were."""

        def act(connection: Connection, run: str) -> int:
            _, state, _ = locked(connection, run)
            return len(_park(connection, run)[0]) if state is RunState.PAUSED else 0

        return self._again(run, act)

    # --- a workflow, a queue

    def begin(self, kind: str, name: str) -> bool:
        """Note that a workflow or a queue is paused; False where it was."""
        return bool(self._ask("begin_pause", kind=kind, name=name))

    def end(self, kind: str, name: str) -> bool:
        """Note that it is paused no longer; False where it was not."""
        return bool(self._ask("end_pause", kind=kind, name=name))

    def sendable(self, queue: str) -> float | None:
        """The time by Postgres, in seconds since 1970; None where the queue is paused."""
        rows = self._ask("sendable", queue=queue)
        return rows[0][0] if rows else None

    def every(self) -> list[Pause]:
        """The workflows and queues that are paused."""
        return [Pause._make(row) for row in self._ask("pauses")]

    def hold_workflow(self, workflow: str) -> Held:
        """Pause the open runs of a paused workflow, with their child runs."""
        done = [
            self._again(run, _follow_workflow)
            for state in (RunState.PENDING, RunState.RUNNING)
            for run in self._runs(state, workflow)
        ]
        return Held(any(each.changed for each in done), frozenset().union(*(each.lines for each in done)))

    def free_workflow(self, workflow: str, *, sent: bool) -> Iterator[tuple[str, Moved]]:
        """Resume the runs of a workflow that is paused no longer, but those that are paused for another reason."""
        for run in self._runs(RunState.PAUSED, workflow):
            yield from self._again(run, lambda connection, run: _leave_workflow(connection, run, sent))

    def stray(self) -> int:
        """Pause the runs that were started while their workflow was being paused: a chore of the tick."""
        runs = [str(run) for (run,) in self._ask("stray_runs", limit=_BATCH)]
        return sum(self._again(run, _follow_workflow).changed for run in runs)

    def _runs(self, state: RunState, workflow: str) -> Iterator[str]:
        last = "00000000-0000-0000-0000-000000000000"
        while True:
            found = [
                str(run)
                for (run,) in self._ask(
                    "runs_in", workflow=workflow, state=state.value, after=last, limit=_BATCH
                )
            ]
            yield from found
            if len(found) < _BATCH:
                return
            last = found[-1]

    def _again(self, run: str, act: Callable[[Connection, str], T]) -> T:
        def once() -> T:
            with self._database.transaction() as connection:
                return act(connection, run)

        return self._database.again(once)

    def _ask(self, block: str, **arguments: Any) -> list[tuple[Any, ...]]:
        def once() -> list[tuple[Any, ...]]:
            with self._database.connection() as connection:
                return ask(connection, block, **arguments)

        return self._database.again(once)


def _park(connection: Connection, run: str) -> tuple[list[int], frozenset[str]]:
    parked = [idx for (idx,) in ask(connection, "park_ready", run=run)]
    return parked, frozenset(gate for (gate,) in ask(connection, "give_back", run=run))


def _pause_tree(connection: Connection, run: str, why: Json) -> frozenset[str]:
    """Pause a run that is locked, and all that is open below it; answers with the limits that have free places now."""
    ask(connection, "pause_run", run=run)
    _, lines = _park(connection, run)
    tell(connection, run, "run.paused", None, why)
    for child, state, _, parent in _below(connection, run):
        if state is not RunState.PAUSED:
            ask(connection, "pause_run", run=child)
            lines |= _park(connection, child)[1]
            tell(connection, child, "run.paused", None, {"by": "run", "run": parent})
    return lines


def _below(connection: Connection, run: str) -> list[tuple[str, RunState, str, str]]:
    """The open runs below a run, parents first: id, state, workflow, parent."""
    known: set[str] = set()
    while True:  # until none was opened while these were being locked: locked, they open no others
        rows = [
            (str(child), RunState(state), workflow, str(parent))
            for child, state, workflow, parent in ask(connection, "open_below", run=run)
        ]
        if known.issuperset(child for child, *_ in rows):
            return [row for row in rows if row[1] not in RUN_ENDS]
        known.update(child for child, *_ in rows)


def _resume_tree(connection: Connection, run: str, workflow: str, sent: bool) -> list[tuple[str, Moved]]:
    """Resume a run that is locked, and what is paused below it because of it."""
    moved = [(run, _resume(connection, run, workflow, sent))]
    going = {run}
    for child, state, name, parent in _below(connection, run):
        if parent not in going:
            continue
        if state is RunState.PAUSED:
            if _by_hand(connection, child) or ask(connection, "hold_pause", kind="workflow", name=name):
                continue
            moved.append((child, _resume(connection, child, name, sent)))
        going.add(child)
    return moved


def _resume(connection: Connection, run: str, workflow: str, sent: bool) -> Moved:
    [(state,)] = ask(connection, "resume_run", run=run)
    rows = ask(connection, "unpark", run=run, sent=sent)
    tell(connection, run, "run.resumed", None, None)
    ready = [Ready._make((*row[:7], row[7] > row[8], 0.0)) for row in rows if row[9]]
    lines = frozenset(row[10] for row in rows if row[10] is not None)
    return Moved(workflow, RunState(state), len(rows), ready, lines)


def _by_hand(connection: Connection, run: str) -> bool:
    """Whether somebody has paused this very run."""
    found = ask(connection, "paused_itself", run=run)
    return bool(found) and bool(found[0][0])


def _follow_workflow(connection: Connection, run: str) -> Held:
    workflow, state, _ = locked(connection, run)
    if state in (RunState.PENDING, RunState.RUNNING) and ask(
        connection, "hold_pause", kind="workflow", name=workflow
    ):
        return Held(True, _pause_tree(connection, run, {"by": "workflow"}))
    return Held(False)


def _leave_workflow(connection: Connection, run: str, sent: bool) -> list[tuple[str, Moved]]:
    workflow, state, _ = locked(connection, run)
    if state is not RunState.PAUSED or ask(connection, "hold_pause", kind="workflow", name=workflow):
        return []
    if _by_hand(connection, run) or ask(connection, "paused_above", run=run):
        return []
    return _resume_tree(connection, run, workflow, sent)


def _was(state: RunState) -> str:
    return "was cancelled" if state is RunState.CANCELLED else state.value
