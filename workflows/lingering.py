"""Bodies that outlive their run: it was cancelled, has failed or was late while they were at work.

The law: such a body is told with the next renewal of its lease, and what it reports changes nothing; but until it has
ended it may still do something outside. It counts as at work until its worker says that it has ended, and no longer
than the lease lasts that it held when its run ended: a worker that vanished says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from ..tasks.database import Connection, Database
from .control import ask


class Lingering(NamedTuple):
    """A body that may still be at work."""

    run: str
    step: str
    worker: str
    until: datetime  # at the latest


def last(connection: Connection, run: str) -> Lingering | None:
    """Of the bodies of a run that is over, and of the runs below it, the one that may last longest; None: no one."""
    rows = ask(connection, "lingers", run=run)
    return Lingering._make(rows[0]) if rows else None


def let_go(database: Database, run: str, leases: Iterable[str]) -> list[str]:
    """What ran under these leases has ended; answers with the runs whose compensation waited for it."""
    held = [UUID(lease) for lease in leases]

    def once() -> list[str]:
        with database.connection() as connection:
            return [row[0] for row in ask(connection, "let_go", run=run, leases=held)]

    return database.again(once)
