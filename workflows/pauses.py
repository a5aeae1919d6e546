"""Pausing and resuming: a run, all runs of a workflow, a queue.

The law: of what is paused nothing begins, and it costs nothing: the steps of a paused run that were ready are parked,
and a tick that meets another one parks it as well. Bodies that run go on, and their results count. Nothing is lost by a
pause: what a step had noted before is handed back to it. A workflow's or queue's pause is a row, which starts, claims
and ticks look at; whoever acts on a row holds it, so that a resume in between cannot leave a run behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ..tasks.database import Connection, Database
from ..tasks.errors import StateError
from .control import Moved, ask, locked, tell
from .records import Pause, Ready
from .states import RUN_ENDS, RunState

_BATCH = 500  # runs between two looks

T = TypeVar("T")


class Pauses:
    """The verbs of pausing on one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- a run

    def pause(self, run: str) -> bool:
        """Pause a run; False where it is paused already. Raises NotFound, StateError where it is over."""

        def once() -> bool:
            with self._database.transaction() as connection:
                _, state, _ = locked(connection, run)
                if state in RUN_ENDS:
                    raise StateError(f"run {run} is over, so it cannot be paused: it {_was(state)}")
                return state is not RunState.PAUSED and _pause(connection, run)

        return self._database.again(once)

    def resume(self, run: str, *, sent: bool) -> Moved | None:
        """Resume a run; None where it is not paused.

        sent: whether the caller publishes the steps that are ready; else the next tick does.

        Raises NotFound, StateError where it is over, or its workflow is paused.
        """

        def once() -> Moved | None:
            with self._database.transaction() as connection:
                workflow, state, _ = locked(connection, run)
                if state in RUN_ENDS:
                    raise StateError(f"run {run} is over, so it cannot be resumed: it {_was(state)}")
                if state is RunState.PAUSED and ask(connection, "hold_pause", kind="workflow", name=workflow):
                    raise StateError(f"workflow {workflow!r} of run {run} is paused: resume the workflow")
                return _resume(connection, run, workflow, sent) if state is RunState.PAUSED else None

        return self._database.again(once)

    def park(self, run: str) -> int:
        """Park the ready steps of a run if it is paused; answers with how many there were."""

        def once() -> int:
            with self._database.transaction() as connection:
                _, state, _ = locked(connection, run)
                return len(ask(connection, "park_ready", run=run)) if state is RunState.PAUSED else 0

        return self._database.again(once)

    # --- a workflow, a queue

    def begin(self, kind: str, name: str) -> bool:
        """Note that a workflow or a queue is paused; False where it was."""
        return bool(self._ask("begin_pause", kind=kind, name=name))

    def end(self, kind: str, name: str) -> bool:
        """Note that it is paused no longer; False where it was not."""
        return bool(self._ask("end_pause", kind=kind, name=name))

    def every(self) -> list[Pause]:
        """The workflows and queues that are paused."""
        return [Pause._make(row) for row in self._ask("pauses")]

    def hold_workflow(self, workflow: str) -> int:
        """Pause the open runs of a paused workflow; answers with how many that were."""
        return sum(
            1
            for state in (RunState.PENDING, RunState.RUNNING)
            for run in self._runs(state, workflow)
            if self._again(run, _follow_workflow)
        )

    def free_workflow(self, workflow: str, *, sent: bool) -> Iterator[tuple[str, Moved]]:
        """Resume the paused runs of a workflow that is paused no longer, one after the other."""
        for run in self._runs(RunState.PAUSED, workflow):
            moved = self._again(run, lambda connection, run: _leave_workflow(connection, run, sent))
            if moved is not None:
                yield run, moved

    def stray(self) -> int:
        """Pause the runs that were started while their workflow was being paused: a chore of the tick."""
        runs = [str(run) for (run,) in self._ask("stray_runs", limit=_BATCH)]
        return sum(1 for run in runs if self._again(run, _follow_workflow))

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


def _pause(connection: Connection, run: str) -> bool:
    paused = bool(ask(connection, "pause_run", run=run))
    if paused:
        ask(connection, "park_ready", run=run)
        tell(connection, run, "run.paused", None, None)
    return paused


def _resume(connection: Connection, run: str, workflow: str, sent: bool) -> Moved:
    [(state,)] = ask(connection, "resume_run", run=run)
    rows = ask(connection, "unpark", run=run, sent=sent)
    tell(connection, run, "run.resumed", None, None)
    ready = [Ready._make((*row[:7], row[7] > row[8], 0.0)) for row in rows if row[9]]
    return Moved(workflow, RunState(state), len(rows), ready)


def _follow_workflow(connection: Connection, run: str) -> bool:
    workflow, _, _ = locked(connection, run)
    return bool(ask(connection, "hold_pause", kind="workflow", name=workflow)) and _pause(connection, run)


def _leave_workflow(connection: Connection, run: str, sent: bool) -> Moved | None:
    workflow, state, _ = locked(connection, run)
    if state is not RunState.PAUSED or ask(connection, "hold_pause", kind="workflow", name=workflow):
        return None
    return _resume(connection, run, workflow, sent)


def _was(state: RunState) -> str:
    return "was cancelled" if state is RunState.CANCELLED else state.value
