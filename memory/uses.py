"""Use counts: how often a row was found, gathered in the process and written now and then.

The law: a search never waits for its own count. What was found is counted in memory and written with a later call, at
most once a second a process and at `flush`; a process that dies loses what it had not written, and nothing else
depends on it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from operator import attrgetter
from uuid import UUID

from ..tasks.queries import Numbered
from .connections import MemoryDatabase

SECONDS = 1.0


class Uses:
    """The counts of one tenant in this process."""

    def __init__(self, database: MemoryDatabase, tenant: str, statement: Numbered) -> None:
        self._database = database
        self._tenant = tenant
        self._statement = statement
        self._lock = threading.Lock()
        self._found: list[UUID] = []
        self._written = time.monotonic()

    def add(self, ids: Iterable[UUID]) -> None:
        """Count a use of each; write them all if that was a while ago."""
        with self._lock:
            self._found.extend(ids)
            due = time.monotonic() - self._written >= SECONDS
        if due:
            self.flush()

    def flush(self) -> None:
        """Write what was counted."""
        with self._lock:
            found, self._found = self._found, []
            self._written = time.monotonic()
        if found:
            counts = Counter(found)
            # In one order everywhere, so that two processes that write the same rows wait and do not deadlock.
            ids = sorted(counts, key=attrgetter("int"))
            hits = [counts[each] for each in ids]
            self._database.ask(
                self._tenant, self._statement, {"tenant": self._tenant, "ids": ids, "hits": hits}
            )
