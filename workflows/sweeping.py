"""What the tick does for memories: what has expired is deleted, of all tenants.

The law: nothing of what lives is touched, and no vector is lost, since a tick has no embedder (`sweep` in going.py says
what that leaves). Any number of workers at once is safe: each skips what another one has locked. Where no memory has
expired, nothing of what memories need is loaded.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from typing import Any

from psycopg.rows import tuple_row

from ..tasks.database import Database, rows_of
from ..tasks.errors import IsolationMissing, MissingExtension
from ..tasks.logs import get_logger
from ..tasks.queries import load
from ..tasks.settings import Settings

EVERY = 600.0  # seconds between two looks of a process
BATCHES = 20  # of a thousand rows of a tenant in one look: the tick has more to do, and the next look goes on
_PAGE = 1000  # tenants in one statement

_NEEDED = "going", "connections"  # with numpy: loaded with the first memory that has expired

_EXPIRING = load("trellis.memory.sql", "memory.sql")["expiring"]

log = get_logger("trellis.sweeping")


class Sweeping:
    """A process's part in deleting what has expired in a database."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._next = float("-inf")

    def soon(self) -> None:
        """Look at the next tick."""
        self._next = float("-inf")

    def look(self) -> int:
        """Delete what has expired, if it is time; answers with the rows and links."""
        now = time.monotonic()
        if now < self._next:
            return 0
        self._next = now + EVERY
        gone = 0
        try:
            for tenant in self._tenants():
                count, all_ = self._sweep(tenant)
                gone += count
                if not all_:
                    self.soon()
        except (IsolationMissing, MissingExtension) as error:
            log.warning("memories.not_swept", why=str(error))
        return gone

    def _sweep(self, tenant: str) -> tuple[int, bool]:
        going, connections = (importlib.import_module(f"..memory.{each}", __package__) for each in _NEEDED)
        done: tuple[int, bool] = going.sweep(connections.shared(self._settings), tenant, BATCHES)
        return done

    def _tenants(self) -> Iterator[str]:
        after = ""
        while True:
            page = self._database.again(lambda after=after: self._page(after))  # type: ignore[misc]
            yield from (tenant for tenant, expired in page if expired)
            if len(page) < _PAGE:
                return
            after = page[-1][0]

    def _page(self, after: str) -> list[tuple[Any, ...]]:
        with self._database.connection() as connection:
            cursor = connection.cursor(row_factory=tuple_row)
            return rows_of(cursor.execute(_EXPIRING, {"after": after, "most": _PAGE}))
