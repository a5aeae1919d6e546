"""What is done to runs from outside: opened again, paused, resumed.

The law: one transaction each, which begins by locking the run's row. So of two at once the second sees what the
first has done, and neither leaves anything half done. Nothing here is on a worker's way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from psycopg import errors as postgres
from psycopg.rows import tuple_row

from ..tasks.database import Connection, Database, rows_of
from ..tasks.errors import NotFound, StateError
from ..tasks.queries import load
from . import wire
from .records import Json, Ready
from .states import RUN_REOPENINGS, RunState

SQL = load("trellis.workflows.sql", "control.sql")


class Moved(NamedTuple):
    """What a transaction has done to a run, and the steps to publish now that it is committed."""

    workflow: str
    state: RunState  # that it is in now
    steps: int  # that were moved
    ready: list[Ready]
    lines: frozenset[str] = frozenset()  # limits in front of others


class Control:
    """The verbs of control on one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def retry(self, run: str, *, sent: bool) -> Moved | None:
        """Open a failed or cancelled run again; None where it is open already.

        sent: whether the caller publishes the steps that are ready; else the next tick does.

        Raises NotFound; StateError where it succeeded, was compensated, or another run has taken its place.
        """

        def once() -> Moved | None:
            with self._database.transaction() as connection:
                return _reopen(connection, run, sent)

        try:
            return self._database.again(once)
        except postgres.UniqueViolation as error:
            raise StateError(
                f"run {run} cannot be opened again while another run of its workflow is open in its place: "
                "wait for that one, or cancel it"
            ) from error

    def discard(self, run: str, idx: int | None = None) -> int:
        """Remove the dead letters of a run, or of one of its steps; answers with how many there were."""

        def once() -> int:
            with self._database.transaction() as connection:
                found = ask(connection, "discard", run=run, idx=idx)
                for at, step in found:
                    tell(connection, run, "dead.discarded", at, {"step": step})
                return len(found)

        return self._database.again(once)


def _reopen(connection: Connection, run: str, sent: bool) -> Moved | None:
    workflow, state, step = locked(connection, run)
    if state not in RUN_REOPENINGS:
        if state is RunState.SUCCEEDED:
            raise StateError(f"run {run} succeeded, so nothing of it is to be retried: rerun it instead")
        return None
    undone = ask(connection, "undone_by", run=run)
    if undone:
        raise StateError(
            f"run {run} was compensated by run {undone[0][0]}, so what its steps did is undone: rerun it instead"
        )
    ask(connection, "plan_whole")
    *rows, (*_, count, sinks) = ask(connection, "reopen_steps", run=run, step=step, sent=sent)
    if not count:
        raise StateError(f"run {run} has no failed or cancelled step to retry: rerun it instead")
    [(now,)] = ask(connection, "reopen_run", run=run, missing=sinks)
    ask(connection, "bring_back", run=run)
    tell(connection, run, "run.retried", None, {"steps": count})
    return Moved(workflow, RunState(now), count, [Ready._make((*row[:7], False, 0.0)) for row in rows])


def locked(connection: Connection, run: str) -> tuple[str, RunState, str | None]:
    """Lock a run's row: workflow, state, the step that failed it. Raises NotFound; StateError while it is deleted."""
    rows = ask(connection, "lock_run", run=run)
    if not rows:
        raise NotFound("run", run, "`trellis runs` lists them")
    state, workflow, step, missing = rows[0]
    if missing < 0:
        raise StateError(f"run {run} is being deleted")
    return workflow, RunState(state), step


def tell(connection: Connection, run: str, kind: str, idx: int | None, detail: Json) -> None:
    """Write an event, inside a transaction."""
    ask(connection, "tell", run=run, kind=kind, idx=idx, detail=wire.dumps(detail))


def ask(connection: Connection, block: str, **arguments: Any) -> list[tuple[Any, ...]]:
    """The rows of a block of control.sql, inside a transaction."""
    cursor = connection.cursor(row_factory=tuple_row).execute(SQL[block], arguments)
    return rows_of(cursor)
