"""The journal's part for runs that grow: room for steps, who waits for them, and what came of them.

The law: a method is one statement. Those that write run inside the transaction that completes the growing step.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from ..tasks.database import Connection
from ..tasks.errors import RunTooLarge, StateError
from ..tasks.settings import Settings
from . import wire
from .records import Claimed, Json, Parked, StepResult


class Growing:
    """Statements for growing runs."""

    _settings: Settings

    @abstractmethod
    def _rows(self, block: str, **arguments: Any) -> list[tuple[Any, ...]]:
        """The rows of a statement, on a connection of its own."""

    @abstractmethod
    def _within(self, connection: Connection, block: str, **arguments: Any) -> list[tuple[Any, ...]]:
        """The rows of a statement, inside a transaction."""

    def grow(
        self,
        connection: Connection,
        run: str,
        count: int,
        sinks: int = 0,
        *,
        limited: bool = False,
        tasks: bool = False,
    ) -> int:
        """Reserve ids for `count` more steps, `sinks` of them final ones, inside a transaction.

        limited, tasks: whether steps with limits, or tasks of other applications, are among them.

        Raises StateError where the run is over, RunTooLarge where it has too many steps.
        """
        rows = self._within(
            connection, "grow", run=run, count=count, sinks=sinks, limited=limited, tasks=tasks
        )
        if not rows:
            raise StateError(f"run {run} is over and takes no more steps")
        first, limit = int(rows[0][0]), self._settings.run_max_steps
        if first + count > limit:
            raise RunTooLarge(first + count, limit)
        return first

    def tenant(self, connection: Connection, run: str) -> str | None:
        """Whose run it is, inside a transaction."""
        rows = self._within(connection, "tenant", run=run)
        return rows[0][0] if rows else None

    def hold(self, connection: Connection, run: str, step: Claimed, count: int) -> list[int]:
        """Let what waits for a growing step wait for `count` more steps, inside a transaction; who that is.

        Raises StateError where the step is no longer ours.
        """
        rows = self._within(connection, "hold", run=run, idx=step.idx, lease=step.lease, count=count)
        if not rows:
            raise not_ours(run, step)
        return list(rows[0][0])

    def widen(self, connection: Connection, run: str, idx: int, count: int, inputs: dict[str, Json]) -> int:
        """Make the step that gathers behind `idx` wait for `count` more, inside a transaction; answers with its id.

        inputs: what it has to know when its turn comes.
        """
        rows = self._within(connection, "widen", run=run, idx=idx, count=count, inputs=wire.dumps(inputs))
        if not rows:
            raise StateError(f"run {run} is over and takes no more steps")
        return int(rows[0][0])

    def find(self, run: str, names: Iterable[str]) -> dict[str, StepResult]:
        """The steps of these names, with their results."""
        return {row[1]: StepResult.from_row(row) for row in self._rows("find", run=run, names=list(names))}

    def below(self, run: str, name: str) -> dict[str, StepResult]:
        """The steps whose names begin with that of the step that appended them."""
        return {row[1]: StepResult.from_row(row) for row in self._rows("below", run=run, prefix=f"{name}.")}

    def gather(
        self, run: str, first: int, count: int, limit: int, policy: str = ""
    ) -> tuple[int, bytes | None]:
        """The results of neighbouring steps as one JSON list with its size; None where that is over `limit`.

        `policy` says what stands for a step that failed: nothing ("skip"), its error ("collect"), else its result.
        """
        rows = self._rows("gather", run=run, first=first, count=count, limit=limit, policy=policy)
        size, text = rows[0]
        return int(size), None if text is None else text.encode()

    def succeeded(self, run: str, first: int, count: int) -> int:
        """How many of neighbouring steps succeeded."""
        return int(self._rows("succeeded", run=run, first=first, count=count)[0][0])

    def failed(self, run: str, idx: int) -> bool:
        """Whether a step failed."""
        return bool(self._rows("failed", run=run, idx=idx))


def not_ours(run: str, step: Claimed | Parked) -> StateError:
    """What to raise where a step is no longer ours: it was given to another worker, or its run was ended."""
    which = repr(step.name) if isinstance(step, Claimed) else step.idx
    return StateError(f"step {which} of run {run} was ended or given to another worker")
