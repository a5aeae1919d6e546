"""The context of the task at hand: a few values, of which the least used makes room for a new one.

The law: what was stored last is there, and never more than `capacity` values are, however many processes work on one
task: they take turns, a statement each. It lives in Postgres, so it outlives workers and a flush of Redis, and every
worker that touches the run sees the same. A value is found by its key, or by a look at the few that are there.
"""

from __future__ import annotations

import asyncio
import math
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from ..tasks.database import rows_of
from ..tasks.errors import EntryError
from .connections import MemoryDatabase, Rows, statements
from .scope import NAME_BYTES, TRUST, Scope
from .texts import json_of, name_of

CAPACITY = 7
MOST = 1000  # values of a task: each store looks at all of them

_SQL = statements("working.sql")


class Item(NamedTuple):
    """A value of working memory."""

    key: str
    value: Any
    used_at: datetime  # when it was last stored or retrieved
    expires_at: datetime | None


class WorkingMemory:
    """The working memory of one task: the id of a run, or any other text that its workers share.

    capacity: values at most, up to 1,000. A store beyond it takes out the one that was not used for the longest time.
    ttl: seconds that a value is kept after its store, where `store` says nothing else; None: until it is forgotten.

    Whoever shares a task shares its values; each store applies the capacity of the memory that it is called on.

    Raises EntryError for a wrong argument.
    """

    def __init__(
        self,
        database: MemoryDatabase,
        scope: Scope,
        task: str,
        *,
        capacity: int = CAPACITY,
        ttl: float | None = None,
    ) -> None:
        if isinstance(capacity, bool) or not isinstance(capacity, int) or not 1 <= capacity <= MOST:
            raise EntryError("capacity", f"takes a whole number from 1 to {MOST:,}, not {capacity!r}")
        self.scope = scope
        self.task = name_of("task", task, NAME_BYTES)
        self.capacity = capacity
        self.ttl = None if ttl is None else _seconds(ttl)
        self._database = database

    def store(self, key: str, value: Any, *, ttl: float | None = None) -> tuple[str, ...]:
        """Store a JSON value; answers with the keys that had to make room for it, the least used first.

        ttl: seconds until it is gone; the memory's own without it. A store under an old key begins anew: it counts as
        use, and the old time to live is forgotten.

        Raises EntryError, ValueTooLarge (above TRELLIS_VALUE_MAX_BYTES), CommunicationError.
        """
        found = self._ask(
            "enter",
            "store",
            key=name_of("key", key, NAME_BYTES),
            value=json_of("value", value, self._database.settings.value_max_bytes),
            ttl=self.ttl if ttl is None else _seconds(ttl),
            capacity=self.capacity,
        )
        return tuple(row[0] for row in found)

    def hand(self, key: str, fact: UUID) -> bool:
        """Take over what a fact of this agent, or a shared one, says under its key; whether it was.

        It stays for as long as the fact holds. A value here does not tell its source, so one that is trusted less than
        agents are (a tool's, the web's) is not taken.

        Raises EntryError, CommunicationError.
        """
        found = self._ask(
            "enter",
            "hand",
            key=name_of("key", key, NAME_BYTES),
            id=fact,
            trust=TRUST["agent"],
            capacity=self.capacity,
        )
        return bool(found)

    def retrieve(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default where there is none. Counts as use; its time to live goes on.

        Raises EntryError, CommunicationError.
        """
        found = self._ask("enter_lightly", "retrieve", key=name_of("key", key, NAME_BYTES))
        return found[0][0] if found else default

    def items(self) -> list[Item]:
        """All values, the last used first. Looking at them all is no use of any. Raises CommunicationError."""
        return [Item(*row) for row in self._ask(None, "items")]

    def forget(self, key: str) -> bool:
        """Take a value out; whether there was one. Raises EntryError, CommunicationError."""
        found = self._ask("enter", "forget", key=name_of("key", key, NAME_BYTES))
        return bool(found and found[0][0])

    def clear(self) -> int:
        """Take all values out; how many there were. Raises CommunicationError."""
        return int(self._ask("enter", "clear")[0][0])

    # --- the same for coroutines, on a thread

    async def astore(self, key: str, value: Any, *, ttl: float | None = None) -> tuple[str, ...]:
        """`store` without holding up the event loop."""
        return await asyncio.to_thread(self.store, key, value, ttl=ttl)

    async def aretrieve(self, key: str, default: Any = None) -> Any:
        """`retrieve` without holding up the event loop."""
        return await asyncio.to_thread(self.retrieve, key, default)

    async def aitems(self) -> list[Item]:
        """`items` without holding up the event loop."""
        return await asyncio.to_thread(self.items)

    async def aforget(self, key: str) -> bool:
        """`forget` without holding up the event loop."""
        return await asyncio.to_thread(self.forget, key)

    async def aclear(self) -> int:
        """`clear` without holding up the event loop."""
        return await asyncio.to_thread(self.clear)

    def _ask(self, enter: str | None, verb: str, **arguments: Any) -> Rows:
        """The rows of a verb, in one transaction and one round trip with the lock that it needs."""
        given = {"tenant": self.scope.tenant, "agent": self.scope.agent, "task": self.task, **arguments}

        def once() -> Rows:
            with self._database.piped(self.scope.tenant) as asker:
                if enter is not None:
                    asker(_SQL[enter], given)
                cursor = asker(_SQL[verb], given)
            return rows_of(cursor)

        return self._database.again(once)


def _seconds(ttl: object) -> float:
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not 0 < ttl < math.inf:
        raise EntryError("ttl", f"takes a number of seconds above 0, not {ttl!r}")
    return float(ttl)
