"""The context of the task at hand: a few values, of which the least used makes room for a new one.

The law: what was stored last is there, and never more than `capacity` values are, however many processes work on one
task: they take turns, a statement each. It lives in Postgres, so it outlives workers and a flush of Redis, and every
worker that touches the run sees the same. A value is found by its key, by its words, or by a look at the few that are
there; no model is asked.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Any, NamedTuple, Unpack
from uuid import UUID, uuid4

from ..tasks.database import rows_of
from ..tasks.errors import EntryError
from ..tasks.queries import Numbered
from . import ranking
from .aio import threaded
from .base import conditions_in
from .connections import MemoryDatabase, Rows, statements
from .drafts import Options, draft
from .entries import Entry, Filters, Hit, Json, Seconds, Stored, limit_of, named_once, query_of, seconds_of
from .going import conditions_of
from .scope import NAME_BYTES, Scope
from .texts import name_of

CAPACITY = 7
MOST = 1000  # values of a task: each store looks at all of them

_SHOWN = 19  # columns of an entry


@cache
def sql(conditions: tuple[str, ...] = ()) -> dict[str, Numbered]:
    """The statements with these conditions."""
    return statements("working.sql", "memory.sql", part_filters=conditions_of(conditions))


class Item(NamedTuple):
    """A value of working memory."""

    key: str
    value: Any
    used_at: datetime  # when it was last stored or retrieved
    expires_at: datetime | None


class WorkingMemory:
    """The working memory of one task: the id of a run, or any other text that its workers share.

    capacity: values at most, up to 1,000. A store beyond it takes out the one that was not used for the longest time.
    ttl: seconds, or a timedelta, that a value is kept after its store, where `store` says nothing else; None: until it
    is forgotten.

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
        ttl: Seconds | None = None,
    ) -> None:
        if isinstance(capacity, bool) or not isinstance(capacity, int) or not 1 <= capacity <= MOST:
            raise EntryError("capacity", f"takes a whole number from 1 to {MOST:,}, not {capacity!r}")
        self.scope = scope
        self.task = name_of("task", task, NAME_BYTES)
        self.capacity = capacity
        self.ttl = seconds_of("ttl", ttl)
        self._database = database

    def store(self, key: str, value: Json, **options: Unpack[Options]) -> Stored:
        """Keep a JSON value under a key, with what `Options` says of it; `evicted` are the keys that made room for it.

        A store under an old key begins anew: it counts as use, and the old time to live is forgotten; there is no
        history. The same value stays `same`, with its importance and metadata where nothing is said of them.
        What is marked as recalled is not stored.

        Raises EntryError, ValueTooLarge (above TRELLIS_VALUE_MAX_BYTES), CommunicationError.
        """
        wanted = draft(key, value, self._database.settings.value_max_bytes, self.ttl, options)
        if wanted.source == "recalled":
            return Stored(key, None, "recalled")
        told = {f"told_{name}": said for name, said in wanted.told.items()}
        given = {**wanted.arguments(), **told, "id": uuid4(), "capacity": self.capacity}
        [[found, outcome, evicted]] = self._ask("enter", "store", given)
        return Stored(key, found, outcome, tuple(evicted))

    def hand(self, key: str, fact: UUID) -> bool:
        """Take over what a fact of this agent, or a shared one, says under its key; whether it was there.

        It stays for as long as the fact holds, and tells what the fact tells: its source, trust and metadata.

        Raises EntryError, CommunicationError.
        """
        given = {"key": name_of("key", key, NAME_BYTES), "id": fact, "capacity": self.capacity}
        return bool(self._ask("enter", "hand", given))

    def retrieve(self, key: str) -> Entry | None:
        """What the task has under a key; None where there is nothing. Counts as use; its time to live goes on.

        Raises EntryError, CommunicationError.
        """
        found = self._ask("enter_lightly", "retrieve", {"key": name_of("key", key, NAME_BYTES)})
        return Entry.of(found[0]) if found else None

    def search(self, query: str, limit: int = 10, filters: Filters | None = None) -> list[Hit]:
        """The values with the most words of the query; `limit` of them wherever the filters leave as many.

        A score is the share of the query's words (English stems, without stop words) that the value's text has, and a
        little for its importance and trust: `parts` has all three. A query without a word gives the newest. To be
        found is no use. Raises EntryError, CommunicationError.
        """
        lifts = {"importance": ranking.IMPORTANCE, "trusted": ranking.TRUSTED}
        given = {
            **(filters or Filters()).arguments(),
            **lifts,
            "limit": limit_of(limit),
            "text": query_of(query),
        }
        return [_hit(row) for row in self._ask(None, "search", given)]

    def items(self) -> list[Item]:
        """All values, the last used first. Looking at them all is no use of any. Raises CommunicationError."""
        return [Item(*row) for row in self._ask(None, "items", {})]

    def forget(
        self, key: str | None = None, *, filters: Filters | None = None, own_only: bool = False
    ) -> int:
        """Take a value out, or all that the filters name; how many there were.

        own_only: leave what a fact gave, which goes when the fact does.
        Raises EntryError where neither a key nor a filter is given, CommunicationError.
        """
        named_once(key, filters)
        if key is not None:
            given = {"key": name_of("key", key, NAME_BYTES), "own_only": own_only}
            found = self._ask("enter", "forget", given)
        else:
            given = {**(filters or Filters()).arguments(), "own_only": own_only}
            found = self._ask("enter", "forget_filtered", given)
        return sum(alive for (alive,) in found)

    def clear(self) -> int:
        """Take all values out; how many there were. Raises CommunicationError."""
        return int(self._ask("enter", "clear", {})[0][0])

    astore = threaded(store)
    aretrieve = threaded(retrieve)
    asearch = threaded(search)
    aforget = threaded(forget)
    aitems = threaded(items)
    aclear = threaded(clear)

    def _ask(self, enter: str | None, verb: str, arguments: dict[str, Any]) -> Rows:
        """The rows of a verb, in one transaction and one round trip with the lock that it needs."""
        given = {**arguments, "tenant": self.scope.tenant, "agent": self.scope.agent, "task": self.task}
        own = sql(conditions_in(arguments) if verb in _CONDITIONED else ())

        def once() -> Rows:
            with self._database.piped(self.scope.tenant) as asker:
                if enter is not None:
                    asker(own[enter], given)
                cursor = asker(own[verb], given)
            return rows_of(cursor)

        return self._database.again(once)


_CONDITIONED = frozenset({"search", "forget_filtered"})


def _hit(row: tuple[Any, ...]) -> Hit:
    score, spoken, text, importance, trust = row[_SHOWN:]
    parts = {"text": text, "importance": importance, "trust": trust} if spoken else {}
    return Hit(Entry.of(row), score, parts)
