"""What all memories in Postgres have in common: their scope, their model, and how rows come back and go.

The law: nothing is embedded inside a transaction. Whatever goes, by `forget`, by time or by capacity, goes as going.py
says, and what lost its vector by that is embedded again behind it. What has expired never comes back, whether or not it
was swept.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from operator import itemgetter
from types import TracebackType
from typing import Any, ClassVar, Self
from uuid import UUID

from ..tasks.errors import EntryError, ModelMismatch
from ..tasks.queries import Numbered
from ..tasks.settings import Settings
from . import going, models, ranking
from .aio import threaded
from .connections import Asker, MemoryDatabase, Rows, shared
from .embedders.protocol import Embedder
from .embedders.vectors import unit
from .entries import Entry, Filters, Hit, Seconds, limit_of, named_once, query_of, seconds_of
from .going import Going, sql
from .halves import Half
from .models import Model
from .recalled import FACT
from .scope import NAME_BYTES, Scope
from .texts import CONTEXT, array_of, name_of
from .uses import Uses

EMBED = 32  # texts in one call of the embedder
SIZES = 60.0  # seconds for which a scope's size is believed
NOWHERE = -1  # the number of a model that has made no memory
# Their plan is the same whatever is asked (planning is a third of what a search by the HNSW index takes).
GENERIC = frozenset({"retrieve", "history", "last", "use"})
ALONE = frozenset({"nearest_index", "nearest_among"})  # they set their tenant themselves


CONDITIONS = tuple(Filters().arguments())


def conditions_in(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Which conditions some arguments set."""
    return tuple(each for each in CONDITIONS if arguments.get(each) is not None)


class Memory:
    """A scope of one kind of memory, or of all."""

    kinds: ClassVar[tuple[str, ...]] = ()
    _task: str | None = None  # the task whose own values are searched as well

    def __init__(
        self,
        embedder: Embedder,
        scope: Scope | None = None,
        *,
        include_shared: bool = False,
        capacity: int | None = None,
        ttl: Seconds | None = None,
        settings: Settings | None = None,
        database: MemoryDatabase | None = None,
    ) -> None:
        if capacity is not None and (
            isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1
        ):
            raise EntryError("capacity", f"is {capacity!r}: needs a number of rows, 1 or more")
        self.embedder = embedder
        self.scope = scope or Scope()
        self.include_shared = include_shared
        self.capacity = capacity
        self.ttl = seconds_of("ttl", ttl)
        self._kinds = array_of(self.kinds)
        self._reach = {wanted: array_of(self.scope.reach(wanted)) for wanted in (False, True)}
        self.database = database or shared(settings)
        self._sql = sql()
        self._dims = 0
        self._going = Going(self.database, self.scope.tenant)
        self._uses = Uses(self.database, self.scope.tenant, self._sql["use"])
        self._model: Model | None = None
        self._looked = 0.0  # when, by the monotonic clock: the memories of a model may move to another one
        self._sizes: dict[tuple[str, ...], tuple[int, float]] = {}
        self._stored = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aflush()

    # --- what everybody does

    def retrieve(self, key: str, *, include_shared: bool | None = None) -> Entry | None:
        """The entry of a key, this agent's before the shared one; None where there is none, or it has expired."""
        arguments = {**self._reached(include_shared), "key": name_of("key", key, NAME_BYTES)}
        found = self._ask("retrieve", {**arguments, "model": self._number()})
        if not found:
            return None
        entry = Entry.of(found[0])
        self._uses.add([entry.id])
        return entry

    def history(self, key: str) -> list[Entry]:
        """What this agent has had under a key, the oldest first; `valid_to` says until when.

        All values, also those that were linked to another key's. Not what was forgotten, and not what has expired.
        """
        return [
            Entry.of(row)
            for row in self._ask("history", {**self._own(), "key": name_of("key", key, NAME_BYTES)})
        ]

    def forget(self, key: str | None = None, *, filters: Filters | None = None) -> int:
        """Delete a key with its history, or all that the filters name; how many rows and links went.

        Only this agent's own: what is shared is forgotten by a memory of the shared scope. Entries of episodes leave
        no word in the context of those behind them. Raises EntryError where neither a key nor a filter is given.
        """
        named_once(key, filters)
        own = self._own()
        if key is not None:
            own["key"] = name_of("key", key, NAME_BYTES)
            return self._go("keyed", own, "unlink")
        return self._go("filtered", {**own, **(filters or Filters()).arguments()}, "unlink_filtered")

    def sweep(self) -> int:
        """Delete what has expired in the whole tenant, and embed what lost its context by that; how many went.

        Of values of tasks as well, which are not counted. The tick of any worker does most of this by itself.
        """
        gone = self._go("expired", self._own(), "unlink_expired")
        self._going.values()
        self.mend()
        return gone

    def mend(self) -> int:
        """Embed the rows that have no vector, because what their context was made of is gone; how many."""
        model = self._found()
        mended = 0
        while model is not None:
            bare = self._ask("bare", {"model": model.id, "tenant": self.scope.tenant, "most": EMBED})
            vectors = self._vectors([in_context(text, before or "") for _, text, before in bare])
            changed = 0
            with self.database.writing(self.scope.tenant) as asker:
                for (row, text, before), vector in zip(bare, vectors, strict=True):
                    given = {"model": model.id, "tenant": self.scope.tenant, "id": row, "text": text}
                    given |= {"before": before or "", "vector": vector}
                    changed += asker(self._sql["dress"], given).rowcount
            mended += changed
            if len(bare) < EMBED or changed == 0:
                break
        return mended

    def flush(self) -> None:
        """Write the use counts that were gathered."""
        self._uses.flush()

    aretrieve = threaded(retrieve)
    ahistory = threaded(history)
    aforget = threaded(forget)
    asweep = threaded(sweep)
    amend = threaded(mend)
    aflush = threaded(flush)

    # --- reading

    def _newest(self, reach: dict[str, Any], limit: int) -> list[Hit]:
        name = "newest" if self._task is None else "newest_task"
        rows = self._ask(name, {**reach, **self._desk(), "depth": limit})
        return [Hit(Entry.of(row), 0.0, {}) for row in rows]

    def _nearest(self, reach: dict[str, Any], vector: Half, limit: int, filtered: bool) -> list[Hit]:
        """The rows nearest to a vector, `limit` of them wherever there are as many.

        Each text once, by the row of it that is trusted most.
        """
        depth = limit
        while True:
            rows = self._near(reach, vector, depth, filtered)
            best: dict[bytes, Sequence[Any]] = {}
            for row in rows:
                if best.setdefault(row[19], row)[9] < row[9]:  # its trust
                    best[row[19]] = row
            if len(best) >= limit or len(rows) < depth:
                found = sorted(best.values(), key=itemgetter(20), reverse=True)[:limit]
                return [Hit(Entry.of(row), row[20], {"dense": row[20]}) for row in found]
            depth *= 4

    def _near(self, reach: dict[str, Any], vector: Half, depth: int, filtered: bool) -> Rows:
        asked = {**reach, "vector": vector, "depth": depth}
        size = self._size(reach)
        if size <= (ranking.NEAR_ROWS if filtered else ranking.EXACT_ROWS):
            return self._ask("nearest_exact", asked)
        if filtered:
            among = self._among("nearest_among", asked, reach)
            if among is not None:
                return among
        if size <= ranking.EXACT_ROWS:
            return self._ask("nearest_exact", asked)
        rows = self._ask("nearest_index", asked)
        return rows if len(rows) >= depth else self._ask("nearest_among", {**asked, "most": None})

    def _among(self, name: str, asked: Mapping[str, Any], reach: Mapping[str, Any]) -> Rows | None:
        """The rows of a search that looks at all that conditions leave; None where that is too many.

        How many they leave is counted now and then only: counting is a seventh of such a search.
        """
        key = tuple(f"{name}={reach[name]}" for name in sorted(reach))
        left, until = self._sizes.get(key, (0, 0.0))
        known = time.monotonic() < until
        if known and left > ranking.EXACT_ROWS:
            return None
        rows = self._ask(name, {**asked, "most": None if known else ranking.EXACT_ROWS + 1})
        if not known:
            left = max((row[-1] or 0 for row in rows), default=0)
            if len(self._sizes) > 1_000:
                self._sizes.clear()
            self._sizes[key] = (left, time.monotonic() + SIZES)
        return rows if left <= ranking.EXACT_ROWS else None

    def _size(self, reach: Mapping[str, Any]) -> int:
        """Live rows in reach, up to one more than are searched exactly; believed for a minute."""
        key = ("size", str(reach["model"]), reach["agents"])
        known = self._sizes.get(key)
        if known is None or time.monotonic() > known[1]:
            [[size]] = self._ask("size", {**reach, "most": ranking.EXACT_ROWS + 1})
            known = self._sizes[key] = (size, time.monotonic() + SIZES)
        return known[0]

    def _asked(
        self, query: str, limit: int, filters: Filters | None, include_shared: bool | None
    ) -> tuple[str, dict[str, Any] | None, bool]:
        """A query, what the statements need for it, and whether it has conditions; None where nothing can be found."""
        limit_of(limit)
        text = query_of(query)
        conditions = (filters or Filters()).arguments()
        model = self._found()
        if model is None and self._task is None:
            return text, None, False
        if model is not None:
            if text and model.dims != self.embedder.dims:
                raise ModelMismatch(model.name, self.embedder.dims, model.dims)
            self._dims = model.dims
        reach = {
            **self._reached(include_shared),
            "model": NOWHERE if model is None else model.id,
            **conditions,
        }
        return text, reach, filters is not None and not filters.empty

    # --- going

    def _go(self, which: str, arguments: dict[str, Any], links: str) -> int:
        """Delete the links, then the rows that a statement names, until it names none; how many went."""
        gone = self._going.links(self._statement(links, arguments), arguments)
        while True:
            batch = self._going.batch(self._statement(which, arguments), arguments)
            gone += batch.gone
            if batch.followed:
                self.mend()
            if batch.gone < going.BATCH:
                return gone

    def _evict(self, spared: UUID, stored: int = 1) -> None:
        """Keep to the capacity. Large scopes are counted once in a while, and may pass it by a thousandth a process."""
        if self.capacity is None:
            return
        self._stored += stored
        if self._stored < max(1, self.capacity // 1_000):
            return
        self._stored = 0
        reach = {**self._own(), "agents": array_of([self.scope.agent]), "model": self._number()}
        [[size]] = self._ask("held", reach)
        # A hundredth more than needed, so that who stores at the limit does not pay for each.
        surplus = size - self.capacity + self.capacity // 100 if size > self.capacity else 0
        while surplus > 0:
            arguments = {**reach, "spared": [spared], "half_life": ranking.HALF_LIFE}
            batch = self._going.batch(self._statement("surplus", arguments), arguments, surplus)
            if batch.followed:
                self.mend()
            if batch.gone == 0:
                return
            surplus -= batch.gone

    # --- parts

    def _hand_back(self, asker: Asker, ended: Rows) -> None:
        going.hand_back(asker, self.scope.tenant, ended)

    def _known(self, asker: Asker, lines: Sequence[bytes]) -> dict[bytes, set[str]]:
        """Which of some lines are memories that this one reads, and in whose words."""
        found: dict[bytes, set[str]] = {}
        for line, kind, source in asker.rows(
            self._sql["known_lines"], {**self._reached(None), "lines": list(lines)}
        ):
            found.setdefault(line, set()).add(FACT if kind == "fact" else source)
        return found

    def _lock(self, asker: Asker, level: int, *what: str) -> None:
        going.lock(asker, level, self.scope.tenant, *what)

    def _statement(self, name: str, arguments: Mapping[str, Any]) -> Numbered:
        """A statement with the conditions that the arguments set."""
        return sql(self._dims, conditions_in(arguments))[name]

    def _ask(self, name: str, arguments: Mapping[str, Any]) -> Rows:
        statement = self._statement(name, arguments)
        if name in ALONE:
            return self.database.ask_alone(statement, arguments)
        return self.database.ask(self.scope.tenant, statement, arguments, generic=name in GENERIC)

    def _own(self) -> dict[str, Any]:
        return {"tenant": self.scope.tenant, "agent": self.scope.agent, "kinds": self._kinds}

    def _reached(self, include_shared: bool | None) -> dict[str, Any]:
        wanted = self.include_shared if include_shared is None else include_shared
        return {
            "tenant": self.scope.tenant,
            "agents": self._reach[bool(wanted)],
            "kinds": self._kinds,
        }

    def _desk(self) -> dict[str, Any]:
        """Whose values of which task are searched with the rest."""
        return {} if self._task is None else {"task": self._task, "owner": self.scope.agent}

    def _found(self) -> Model | None:
        """The model, if there is a memory made by it."""
        if self._model is None or time.monotonic() > self._looked + SIZES:
            self._looked = time.monotonic()
            self._model = models.find(self.database, self.scope.tenant, self.embedder.model)
        return self._model

    def _needed(self) -> Model:
        if self._model is None or time.monotonic() > self._looked + SIZES:
            self._looked = time.monotonic()
            self._model = models.need(
                self.database, self.scope.tenant, self.embedder.model, self.embedder.dims
            )
        self._dims = self._model.dims
        return self._model

    def _number(self) -> int:
        model = self._found()
        return NOWHERE if model is None else model.id

    def _vectors(self, texts: Sequence[str]) -> list[Half]:
        """The texts as vectors of length 1. Raises EmbeddingError."""
        found: list[Half] = []
        for start in range(0, len(texts), EMBED):
            part = texts[start : start + EMBED]
            made = unit(self.embedder.embed(part), len(part), self.embedder.dims, self.embedder.model)
            found += [Half(row) for row in made]
        return found


def in_context(text: str, before: str) -> str:
    """What is embedded for an entry: its own text first, then the beginning of the one before it."""
    return f"{text}\n{before[:CONTEXT]}" if before else text
