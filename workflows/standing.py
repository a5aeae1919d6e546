"""The open steps of a run, in groups of which one sentence is true.

The law: a group is steps of which everything that is said is the same; only their times differ, and those are told from
the first to the last. What comes back is bounded, however long the run is, and says how many steps it leaves out.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from psycopg.rows import tuple_row

from ..tasks.database import Database, rows_of
from ..tasks.queries import load
from .records import Json
from .states import StepState

SQL = load("trellis.workflows.sql", "why.sql")

MOST = 10  # groups of a kind
NEEDS = 1000  # groups of ready steps: pairs of queue and action, of which one sentence tells


class Group(NamedTuple):
    """Steps that stand for the same reason; the columns are those of the first of them."""

    state: StepState
    kind: str  # "signal", "approval", … of parked steps; "now" or "later" of ready, "busy" or "silent" of running ones
    number: int
    of: int  # steps of the kind, with those of all other groups
    name: str
    action: str
    queue: str
    waits_for: str
    wait: dict[str, Json]
    options: dict[str, Json]
    error: dict[str, Json] | None
    failures: int
    worker: str | None
    first: datetime | None  # when the first of them is due, or began; None: never
    last: datetime | None
    leased: datetime | None  # until when the last of them has a lease

    def said(self) -> str:
        """The steps, for a sentence."""
        if self.number == 1:
            return f"step {self.name!r}"
        return f"{self.name!r} and {self.number - 1:,} more step{'s' if self.number > 2 else ''}"

    def have(self, singular: str, plural: str) -> str:
        """The verb that goes with them."""
        return singular if self.number == 1 else plural

    def waits(self) -> str:
        """That they wait, for a sentence that says for what."""
        return f"{self.said()} {self.have('waits', 'wait')}"


def groups(database: Database, run: str) -> list[Group]:
    """The groups of a run, in the order of their first steps; of each kind the first ones."""

    def once() -> list[Group]:
        with database.connection() as connection:
            cursor = connection.cursor(row_factory=tuple_row)
            rows = rows_of(cursor.execute(SQL["standing"], {"run": run, "most": MOST, "needs": NEEDS}))
        return [_group(*row) for row in rows]

    return database.again(once)


def _group(
    state: str,
    kind: str,
    number: int,
    of: int,
    name: str,
    action: str,
    queue: str,
    waits_for: str | None,
    wait: dict[str, Json] | None,
    options: dict[str, Json] | None,
    *rest: object,
) -> Group:
    columns = (name, action, queue, waits_for or "", wait or {}, options or {}, *rest)
    return Group._make((StepState(state), kind, number, of, *columns))
