"""The tables of schedules: one method for each statement on them.

The law: every method works inside the caller's transaction. Who changes a schedule has locked its row first, so
that what a tick decides and what a person changes come one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from psycopg.rows import tuple_row

from ..tasks.database import Connection, rows_of
from ..tasks.queries import load
from .records import Json
from .timetable import Timetable

SQL = load("trellis.workflows.sql", "schedules.sql")
_COLUMNS = 21  # of a schedule; what follows them in `lock` and `take` is the rest of `Held`


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule as it was when it was read."""

    name: str
    workflow: str
    definition: str  # digest of the definition that its runs get
    params: dict[str, Json]
    cron: str | None
    every: float | None  # seconds
    timezone: str
    anchor: datetime  # from which intervals are counted
    jitter: float  # seconds
    overlap: str  # skip, queue, cancel or allow
    catch_up: float  # seconds
    tick_param: str | None  # the parameter that says which tick it is
    paused: bool
    next_at: datetime | None  # the next tick, in UTC; jitter comes on top
    last_at: datetime | None  # the last tick that was handled
    last_run: str | None  # the last run that was started
    queued: int  # ticks that wait until an earlier run is over
    started: int  # runs so far
    skipped: int  # ticks that the overlap policy left out
    missed_at: datetime | None  # the last tick that was too old to be made up for
    problem: str | None  # why a tick that is due has not started its run

    @property
    def timetable(self) -> Timetable:
        """Its ticks."""
        return Timetable(self.cron, self.every, self.timezone, self.anchor, self.jitter)

    def upcoming(self, count: int = 5) -> list[datetime]:
        """The next ticks, in UTC; none while it is paused."""
        found: list[datetime] = []
        tick = None if self.paused else self.next_at
        while tick is not None and len(found) < count:
            found.append(tick)
            tick = self.timetable.after(tick)
        return found


class Held(NamedTuple):
    """A schedule whose row is locked."""

    schedule: Schedule
    running: list[str]  # runs that it has started and that may be open
    now: datetime  # by the clock of Postgres


def schedule_of(row: Sequence[Any]) -> Schedule:
    """From the columns in the order of the fields."""
    values = list(row)
    values[15] = None if values[15] is None else str(values[15])
    return Schedule(*values)


def ask(connection: Connection, block: str, **arguments: Any) -> list[tuple[Any, ...]]:
    """The rows of one statement."""
    cursor = connection.cursor(row_factory=tuple_row).execute(SQL[block], arguments)
    return rows_of(cursor)


def now(connection: Connection) -> datetime:
    """The time, by the clock of Postgres."""
    moment: datetime = ask(connection, "now")[0][0]
    return moment


def one(connection: Connection, name: str) -> Schedule | None:
    """The schedule of a name; None where there is none."""
    rows = ask(connection, "one", name=name)
    return schedule_of(rows[0]) if rows else None


def read(connection: Connection, workflow: str | None = None) -> list[Schedule]:
    """All schedules, or those of a workflow; by name."""
    rows = ask(connection, "read") if workflow is None else ask(connection, "read_of", workflow=workflow)
    return [schedule_of(row) for row in rows]


def hold(connection: Connection, name: str, *, wait: bool) -> Held | None:
    """Lock a schedule; None where there is none, or (without `wait`) where somebody else has it."""
    rows = ask(connection, "lock" if wait else "take", name=name)
    if not rows:
        return None
    *columns, running, moment = rows[0]
    return Held(schedule_of(columns[:_COLUMNS]), [str(run) for run in running], moment)


def due(connection: Connection, limit: int) -> list[str]:
    """The names of schedules that a tick should look at."""
    return [row[0] for row in ask(connection, "due", limit=limit)]


def doomed(connection: Connection, name: str) -> list[str]:
    """The open runs that the next tick of a schedule with overlap `cancel` ends."""
    return [str(row[0]) for row in ask(connection, "doomed", name=name)]


def still_open(connection: Connection, running: Sequence[str]) -> list[str]:
    """Those of these runs that are not over."""
    return [str(row[0]) for row in ask(connection, "open", running=list(running))] if running else []


def queue(connection: Connection, name: str, ticks: Sequence[datetime], *, by_hand: bool) -> int:
    """Put ticks into the queue; answers with how many were not in it."""
    return len(ask(connection, "queue", name=name, ticks=list(ticks), by_hand=by_hand))


def unqueue(connection: Connection, name: str, limit: int, *, paused: bool) -> list[datetime]:
    """Take the oldest ticks out of the queue; while it is paused only those that a person has put there."""
    return sorted(row[0] for row in ask(connection, "unqueue", name=name, limit=limit, paused=paused))
