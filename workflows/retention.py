"""How long runs are kept after their end, and what becomes of them then.

The law: a run goes whole, with its steps, events, signals, tags, dead letters and artifacts, or it stays. Only runs
that are over go, and only those that no other run needs: a rerun reuses results (and artifacts) of its origin, a parent
those of its children. Deleting takes small transactions on rows that nobody else wants, a little at each tick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from ..tasks.database import Connection, Database
from ..tasks.errors import NotFound, StateError
from ..tasks.logs import get_logger
from ..tasks.settings import Settings
from . import artifacts, compensation
from .control import ask
from .states import RUN_ENDS, RunState

FOREVER = timedelta(days=365_000)

_RUNS = 100  # in one transaction
_ROWS = 5000  # in one transaction
_ROUNDS = 10  # transactions in one tick: the next tick goes on

log = get_logger("trellis.retention")


class Retention(NamedTuple):
    """How long a workflow's runs are kept after their end, and what of them is kept for a shorter time."""

    workflow: str
    keep: timedelta | None  # FOREVER for ever; None: as the setting says
    events: timedelta | None = None  # None: as long as the run
    artifacts: timedelta | None = None


class Purge:
    """Deletes runs of one database, and their artifacts."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    def expired(self) -> int:
        """Delete some of the runs whose time is over, the oldest first; a chore of the tick."""
        days = self._settings.retention_days
        default = None if days is None else timedelta(days=days)
        if default is None and not self._ask("retains_anything")[0][0]:
            return 0
        deleted = 0
        for _ in range(_ROUNDS):
            rows = self._ask("expired_runs", default=default, limit=_RUNS)
            runs = [(str(run), steps) for run, steps in rows]
            gone = self.delete(runs)
            deleted += gone
            if len(runs) < _RUNS or not gone:
                break
        return deleted

    def one(self, run: str) -> None:
        """Delete a run. Raises NotFound, StateError where it is open, or is still to be compensated, or is needed."""

        def check() -> None:
            with self._database.transaction() as connection:
                rows = ask(connection, "lock_run", run=run)
                if not rows:
                    raise NotFound("run", run, "`trellis runs` lists them")
                state = RunState(rows[0][0])
                if state not in RUN_ENDS:
                    raise StateError(f"run {run} is {state}: cancel it before you delete it")
                needed = ask(connection, "needed_by", run=run)
                if needed:
                    other, why = needed[0]
                    raise StateError(
                        f"run {run} is needed by run {other}, which {why}: delete that one first"
                    )
                if compensation.waits(connection, run):
                    raise StateError(
                        f"run {run} is still to be compensated, when its last body has ended (`trellis why {run}`): "
                        "delete it after that"
                    )

        self._database.again(check)
        self.delete([(run, self._ask("read_origin", run=run)[0][4])])

    def keep(self, workflow: str, spans: Mapping[str, timedelta | None]) -> None:
        """Keep the runs of a workflow (`keep`), or a part of them, for so long after their end, all or nothing.

        None: runs as the setting says, a part as long as its run.
        """

        def once() -> None:
            with self._database.transaction() as connection:
                for what, span in spans.items():
                    if what == "keep" and span is None:
                        ask(connection, "retain_default", workflow=workflow)
                    elif what == "keep":
                        assert span is not None
                        ask(connection, "retain", workflow=workflow, runs=min(span, FOREVER))
                    elif span is None or span >= FOREVER:
                        ask(connection, "retain_part_default", part=what, workflow=workflow)
                    else:
                        ask(connection, "retain_part", part=what, workflow=workflow, keep=span)

        self._database.again(once)

    def every(self) -> list[Retention]:
        """What is said for single workflows."""
        return [Retention._make(row) for row in self._ask("retentions")]

    def delete(self, runs: Sequence[tuple[str, int]]) -> int:
        """Delete runs (id, steps) that are over; answers with how many are gone."""
        ready = [(run, steps) for run, steps in runs if self._drop_artifacts(run)]
        small: list[str] = []
        gone = room = 0
        for run, steps in ready:
            if steps > _ROWS:
                gone += self._large(run)
                continue
            if room + steps > _ROWS:
                gone += self._small(small)
                small, room = [], 0
            small.append(run)
            room += steps
        return gone + self._small(small)

    def _small(self, runs: list[str]) -> int:
        def once() -> int:
            with self._database.transaction() as connection:
                taken = _take(connection, runs)
                return len(ask(connection, "delete_runs", runs=taken)) if taken else 0

        return self._database.again(once) if runs else 0

    def _large(self, run: str) -> int:
        """Its rows go bit by bit, each bit for good; the run itself is the last."""

        def mark() -> bool:
            with self._database.transaction() as connection:
                return bool(_take(connection, [run]))

        if not self._database.again(mark):
            return 0
        for block in ("delete_steps", "delete_events"):
            while len(self._ask(block, run=run, limit=_ROWS)) == _ROWS:
                pass
        return len(self._ask("delete_runs", runs=[UUID(run)]))

    def _drop_artifacts(self, run: str) -> bool:
        """Whether the folder of a run's artifacts is gone; else the run stays until it is."""
        try:
            artifacts.drop(self._settings.artifacts_root(), run)
        except Exception as error:
            log.warning("purge.failed", run=run, error=str(error))
            return False
        return True

    def _ask(self, block: str, **arguments: Any) -> list[tuple[Any, ...]]:
        def once() -> list[tuple[Any, ...]]:
            with self._database.connection() as connection:
                return ask(connection, block, **arguments)

        return self._database.again(once)


def _take(connection: Connection, runs: Sequence[str]) -> list[UUID]:
    return [row[0] for row in ask(connection, "take_dead", runs=[UUID(run) for run in runs])]
