"""What stands in for Postgres: a database that knows the engine's statements by name instead of reading SQL.

The law: whoever talks to it (the journal, the queries, a chore of the tick) is the real code and cannot tell the
difference. A statement that has no counterpart here is refused with `NotInProcess`, never taken for done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self, TypeVar, cast

from sqlalchemy import Select

from ...tasks.database import Connection, Database
from ...tasks.errors import NotInProcess
from ...tasks.settings import Settings
from . import reading
from .counterparts import Rows, parameters
from .statements import COPY, STATEMENTS
from .store import Store

T = TypeVar("T")


class MemoryDatabase(Database):
    """The tables in memory, behind the methods of a `Database`."""

    def __init__(self, settings: Settings, store: Store) -> None:
        super().__init__("in-process", settings)
        self.store = store

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection in autocommit mode."""
        yield cast("Connection", MemoryConnection(self.store))

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection inside one transaction, rolled back on an error."""
        with self.connection() as connection, connection.transaction():
            yield connection

    def read(self, statement: Select[*tuple[Any, ...]]) -> Sequence[Any]:
        """The rows of a SQLAlchemy statement."""
        return reading.rows(self.store, statement)

    def again(self, attempt: Callable[[], T]) -> T:
        """Nothing here fails for a passing reason."""
        return attempt()

    def close(self) -> None:
        """There is nothing to close."""


def done(store: Store, statement: bytes, arguments: Mapping[str, Any]) -> Rows | None:
    """What the counterpart of a statement answers, given the arguments that the statement names."""
    known = STATEMENTS.get(statement)
    if known is None:
        raise NotInProcess(f"the statement {' '.join(statement.decode().split())[:80]!r}")
    return known(store, **{name: arguments[name] for name in parameters(statement)})


class MemoryConnection:
    """What the engine uses of a psycopg connection."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def cursor(self, **_: Any) -> MemoryCursor:
        """A cursor; rows are tuples."""
        return MemoryCursor(self._store)

    def execute(self, statement: bytes, arguments: Mapping[str, Any] | None = None) -> MemoryCursor:
        """Run a statement."""
        return self.cursor().execute(statement, arguments)

    def answer(self, statement: bytes, arguments: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """The rows of a statement of a .sql file. Raises NotInProcess."""
        return done(self._store, statement, arguments) or []

    @contextmanager
    def pipeline(self) -> Iterator[None]:
        """Nothing here is far away."""
        yield

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A transaction, or a part of one."""
        with self._store.transaction():
            yield


class MemoryAnswer(NamedTuple):
    """What is asked of libpq's answer: whether there are rows."""

    nfields: int


class MemoryCursor:
    """The rows of a statement."""

    pgresult: MemoryAnswer | None = None

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: list[tuple[Any, ...]] | None = None

    def execute(self, statement: bytes, arguments: Mapping[str, Any] | None = None) -> Self:
        """Run a statement that has a counterpart here. Raises NotInProcess."""
        self._rows = done(self._store, statement, arguments or {})
        self.pgresult = None if self._rows is None else MemoryAnswer(1)
        return self

    def fetchall(self) -> list[tuple[Any, ...]]:
        """The rows that are left."""
        rows, self._rows = self._rows or [], []
        return rows

    def fetchone(self) -> tuple[Any, ...] | None:
        """The next row."""
        return self._rows.pop(0) if self._rows else None

    @contextmanager
    def copy(self, statement: bytes) -> Iterator[MemoryCopy]:
        """Write rows in the text format of COPY."""
        into = COPY.get(statement)
        if into is None:
            raise NotInProcess(f"the statement {statement.decode()[:80]!r}")
        yield MemoryCopy(self._store, into)


class MemoryCopy:
    """Blocks of rows on their way into a table."""

    def __init__(self, store: Store, into: Callable[[Store, str], None]) -> None:
        self._store = store
        self._into = into

    def write(self, block: str) -> None:
        """Insert the rows of a block."""
        self._into(self._store, block)
