"""From one embedding model to another: the vectors of all memories are made anew while the old ones serve.

The law: a row is copied with a vector of its own text and leaves nothing behind: same id, same use counts, same links.
A batch and whoever writes meanwhile take turns, so nothing is lost, and nothing that was deleted comes back. The old
generation goes in one transaction, which looks once more whether all is there; until then it is searched as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict
from uuid import UUID

from psycopg import RawCursor
from psycopg.errors import DeadlockDetected, LockNotAvailable

from ..tasks import schema
from ..tasks.database import Connection, Database, rows_of
from ..tasks.errors import ConfigurationError, ModelMismatch
from ..tasks.settings import Settings
from .base import in_context
from .connections import Rows, statements
from .embedders.protocol import Embedder

AT_ONCE = 100  # rows of one transaction, for which writers wait
TURN = 500  # rows of one step of the workflow
PASSES = 20  # after so many the last rows are embedded while nobody else writes
_PATIENCE = "2s"  # for the lock at the end: while it is waited for, searches wait as well

_SQL = statements("reembedding.sql")


class State(TypedDict):
    """How far it is; plain data, for a journal.

    `model` is the new generation, `old` are those that are copied, of which the first `at` are through in this pass;
    `after`: the last id; `found`: rows of this pass; `passes`: that are over; `settled`: the last one found nothing.
    """

    name: str
    model: int
    old: list[int]
    at: int
    after: str | None
    rows: int
    copied: int
    found: int
    passes: int
    settled: bool
    done: bool


class _Missing(NamedTuple):
    id: UUID
    text: str
    before: str | None


class OwnerDatabase(Database):
    """Connections of the tables' owner, for whom there are no policies. Only for what concerns all tenants at once."""

    planner = "-c jit=off"

    def examine(self, connection: Connection) -> None:
        """Raise ConfigurationError unless this user owns the tables, SchemaMismatch."""
        row = RawCursor(connection).execute(_SQL["mine"].text).fetchone()
        if row is None or not row[0]:
            raise ConfigurationError(
                "making vectors anew concerns all tenants: run it as the user that owns the tables, which is the one "
                "that ran `trellis migrate`"
            )
        schema.check(connection)


class Reembedding:
    """Makes the vectors of all memories anew, by one embedder. Every method may be called again after a crash."""

    def __init__(self, settings: Settings, embedder: Embedder, database: Database | None = None) -> None:
        self._embedder = embedder
        self._database = database or OwnerDatabase(settings.need_database(), settings)

    def begin(self) -> State:
        """Open the new generation. Raises ModelMismatch, ConfigurationError."""
        embedder = self._embedder
        with self._database.transaction() as connection:
            _ask(connection, "revive", name=embedder.model)
            [[model, dims]] = _ask(connection, "open", name=embedder.model, dims=embedder.dims)
            if dims != embedder.dims:
                raise ModelMismatch(embedder.model, embedder.dims, dims)
            old = [row[0] for row in _ask(connection, "others", model=model)]
            [[count]] = _ask(connection, "count", models=old)
        return State(
            name=embedder.model, model=model, old=old, at=0, after=None, rows=count, copied=0, found=0, passes=0,
            settled=not old, done=not old,
        )  # fmt: skip

    def turn(self, state: State, *, keep: bool = False) -> State:
        """Copy some rows, or end it; how far it is then.

        keep: leave the old generation, for processes that still search it.

        Raises EmbeddingError, CommunicationError: the same turn may be tried again.
        """
        new = state.copy()
        if state["done"]:
            return new
        if state["settled"] or state["passes"] >= PASSES:
            new["done"] = self._end(new, keep)
            if not new["done"]:
                new |= {"settled": False, "at": 0, "after": None, "found": 0}
            return new
        old = state["old"][state["at"]]
        missing = self._missing(old, state["model"], state["after"], TURN)
        for start in range(0, len(missing), AT_ONCE):
            new["copied"] += self._copy(old, state["model"], missing[start : start + AT_ONCE])
        new["found"] += len(missing)
        if len(missing) == TURN:
            new["after"] = str(missing[-1].id)
            return new
        new |= {"at": state["at"] + 1, "after": None}
        if new["at"] == len(state["old"]):
            self._mend(state["model"])
            new |= {"at": 0, "passes": state["passes"] + 1, "settled": new["found"] == 0, "found": 0}
        return new

    def close(self) -> None:
        """Close the connections."""
        self._database.close()

    def _missing(self, old: int, model: int, after: str | None, most: int) -> list[_Missing]:
        def once() -> list[_Missing]:
            with self._database.connection() as connection:
                found = _ask(connection, "missing", old=old, model=model, after=after, most=most)
            return [_Missing(*row) for row in found]

        return self._database.again(once)

    def _copy(self, old: int, model: int, some: Sequence[_Missing]) -> int:
        """Embed, and then insert what is still as it was; how many."""
        return self._changed("copy", old, model, some)

    def _changed(self, block: str, old: int, model: int, some: Sequence[_Missing]) -> int:
        arguments = self._embedded(old, model, some)

        def once() -> int:
            with self._database.transaction() as connection:
                _ask(connection, "still")
                return _run(connection, block, arguments).rowcount

        return self._database.again(once)

    def _mend(self, model: int) -> None:
        """Embed what lost its vector meanwhile."""
        with self._database.connection() as connection:
            bare = [_Missing(*row) for row in _ask(connection, "bare", model=model, most=TURN)]
        for start in range(0, len(bare), AT_ONCE):
            self._changed("dress", model, model, bare[start : start + AT_ONCE])

    def _embedded(self, old: int, model: int, some: Sequence[_Missing]) -> dict[str, Any]:
        spoken = [n for n, each in enumerate(some) if each.text.strip()]
        made = self._embedder.embed([in_context(some[n].text, some[n].before or "") for n in spoken])
        vectors: list[str | None] = [None] * len(some)
        for n, vector in zip(spoken, made, strict=True):
            vectors[n] = f"[{','.join(map(repr, vector.tolist()))}]"
        return {
            "old": old, "model": model, "ids": [each.id for each in some], "vectors": vectors,
            "befores": [each.before or "" for each in some],
        }  # fmt: skip

    def _end(self, state: State, keep: bool) -> bool:
        """Let the old generations go, unless something is missing; False where it is, or somebody holds the tables."""
        try:
            with self._database.transaction() as connection:
                connection.execute(f"SET LOCAL lock_timeout = '{_PATIENCE}'")
                _ask(connection, "alone")
                for old in state["old"]:
                    if state["passes"] >= PASSES:
                        self._last(connection, old, state)
                    [[more]] = _ask(connection, "any_missing", old=old, model=state["model"])
                    if more:
                        return False
                for old in () if keep else state["old"]:
                    _ask(connection, "leave", old=old, model=state["model"])
                    connection.execute(f"DROP TABLE IF EXISTS memory_{old:d}")
            return True
        except (LockNotAvailable, DeadlockDetected):
            return False

    def _last(self, connection: Connection, old: int, state: State) -> None:
        """The rows that came faster than passes: now nobody writes."""
        model = state["model"]
        while found := _ask(connection, "missing", old=old, model=model, after=None, most=TURN):
            arguments = self._embedded(old, model, [_Missing(*row) for row in found])
            state["copied"] += _run(connection, "copy", arguments).rowcount
        while found := _ask(connection, "bare", model=model, most=TURN):
            _run(connection, "dress", self._embedded(old, model, [_Missing(*row) for row in found]))


def _run(connection: Connection, name: str, arguments: dict[str, Any]) -> RawCursor[tuple[Any, ...]]:
    return RawCursor(connection).execute(_SQL[name].text, _SQL[name].values(arguments))


def _ask(connection: Connection, block: str, /, **arguments: Any) -> Rows:
    return rows_of(_run(connection, block, arguments))
