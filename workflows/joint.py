"""The transaction that a body shares with the completion of its step: `ctx.transaction()`.

The law: what the body writes there and the step's result are one commit. The body fails, is stopped, loses its
lease or its worker: then neither was. The connection is borrowed at first use, so a body that writes nothing
costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TypeVar

import psycopg
from psycopg.errors import IdleInTransactionSessionTimeout

from ..tasks.database import Connection, Database, idle_ms, lost
from ..tasks.errors import CommunicationError
from ..tasks.queries import load

SQL = load("trellis.workflows.sql", "effects.sql")
T = TypeVar("T")


class Joint:
    """A transaction that its first part opens, and that `commit` or `abandon` ends."""

    def __init__(self, database: Database, seconds: float) -> None:
        """seconds: how long the body may take, and so be silent in the midst of it."""
        self._database = database
        self._seconds = seconds
        self._borrowed: AbstractContextManager[Connection] | None = None
        self._transaction: AbstractContextManager[psycopg.Transaction] | None = None
        self._connection: Connection | None = None
        self._refused = False  # Postgres was away when the body asked for it

    @property
    def open(self) -> bool:
        """Whether the body has asked for it."""
        return self._connection is not None

    @property
    def lost(self) -> bool:
        """Whether the body has asked for it and could not have it, or its connection broke since.

        That is an outage, not the body's failure.
        """
        return self._refused or (self._connection is not None and self._connection.closed)

    @contextmanager
    def part(self) -> Iterator[Connection]:
        """A part of it: an exception takes back what this part did, and leaves the rest."""
        connection = self._connection or self._opened()
        with connection.transaction():
            yield connection

    def _opened(self) -> Connection:
        """Begin it; nothing was written yet, so a connection that is found dead is replaced."""
        try:
            return self._database.again(self._begin)
        except (psycopg.OperationalError, psycopg.InterfaceError, CommunicationError):
            self._refused = True
            raise

    def _begin(self) -> Connection:
        self._borrowed = self._database.connection()
        connection = self._borrowed.__enter__()
        try:
            self._transaction = connection.transaction()
            self._transaction.__enter__()
            # Our planner settings are for our statements, and our patience is too short for a body.
            connection.execute(SQL["plan_freely"], {"idle_ms": str(idle_ms(self._seconds))})
        except BaseException:
            self._connection = connection
            self.abandon()
            raise
        self._connection = connection
        return connection

    def commit(self, last: Callable[[Connection], T | None]) -> T | None:
        """Do `last` in it and commit; where it answers with None all is rolled back."""
        assert self._connection is not None
        assert self._transaction is not None
        try:
            self._connection.execute(SQL["plan_strictly"])
            answer = last(self._connection)
            if answer is not None:
                self._transaction.__exit__(None, None, None)
                self._transaction = None
        except IdleInTransactionSessionTimeout as error:  # the process was stopped after the body
            raise lost(error) from error
        finally:
            self.abandon()
        return answer

    def abandon(self) -> None:
        """Roll it back, if it is open."""
        transaction, self._transaction = self._transaction, None
        borrowed, self._borrowed = self._borrowed, None
        self._connection = None
        if transaction is not None:
            # A statement that was cut off leaves a connection that the pool closes, and Postgres rolls back.
            with suppress(psycopg.Error):
                transaction.__exit__(psycopg.Rollback, psycopg.Rollback(), None)
        if borrowed is not None:
            with suppress(psycopg.Error):
                borrowed.__exit__(None, None, None)
