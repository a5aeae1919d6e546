"""What goes before its run: events and artifacts that a workflow keeps for a shorter time.

The law: a run stays, and says of itself what is gone: the event `events.purged`, and a mark in the folder of its
artifacts, of which whoever opens one of them is told. Each workflow is walked in the order in which its runs ended,
some of them at each tick, and the place where the walk came to is kept: what was purged is never looked at again.
Nothing waits for a rerun or a parent that may still name an artifact: the time that was said is the time that it is
there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any

from ..tasks.database import Database
from ..tasks.logs import get_logger
from ..tasks.settings import Settings
from . import artifacts
from .control import ask

PARTS = ("events", "artifacts")

_RUNS = 100  # of a workflow, at one tick
_ROWS = 5000  # in one transaction

log = get_logger("trellis.retention")


class Trim:
    """Purges events and artifacts of runs of one database."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    def outlived(self) -> int:
        """Purge some of what its time is over for; answers with the number of runs. A chore of the tick."""
        verbs: dict[str, Callable[[Sequence[str]], int]] = {
            "events": self._events,
            "artifacts": self._artifacts,
        }
        return sum(self._walk(part, verbs[part]) for part in PARTS)

    def _walk(self, part: str, purge: Callable[[Sequence[str]], int]) -> int:
        done = 0
        rows = self._ask("outlived", part=part, limit=_RUNS)
        for workflow, group in groupby(rows, key=itemgetter(0)):
            runs = [(str(run), at) for _, run, at in group]
            gone = purge([run for run, _ in runs])
            until = _until([at for _, at in runs], gone)
            if until is not None:
                self._ask("purged_until", part=part, workflow=workflow, until=until)
            done += gone
        return done

    def _events(self, runs: Sequence[str]) -> int:
        while self._ask("trim_events", runs=runs, limit=_ROWS)[0][0] >= _ROWS:
            pass
        return len(runs)

    def _artifacts(self, runs: Sequence[str]) -> int:
        for count, run in enumerate(runs):
            try:
                artifacts.purge(self._settings.artifacts_root(), run)
            except Exception as error:  # whatever a file system raises: from this run on it is tried again
                log.warning("purge.failed", run=run, error=str(error))
                return count
        return len(runs)

    def _ask(self, block: str, **arguments: Any) -> list[tuple[Any, ...]]:
        def once() -> list[tuple[Any, ...]]:
            with self._database.connection() as connection:
                return ask(connection, block, **arguments)

        return self._database.again(once)


def _until(ends: Sequence[datetime], gone: int) -> datetime | None:
    """How far the walk came: the last end of which all runs are done."""
    done = ends if gone == len(ends) else [at for at in ends[:gone] if at < ends[gone]]
    return max(done, default=None)
