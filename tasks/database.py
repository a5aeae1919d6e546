"""Connections to Postgres: one pool a process, for the engine's statements and for SQLAlchemy's.

The law: a pool is opened at first use and belongs to the process that opened it. After a fork the child
opens its own, since two processes on one connection corrupt its protocol. Connections are in autocommit
mode: a single statement is one round trip; what needs more says `transaction()`. A process that stops in the
midst of a transaction holds its locks for two leases at most: then Postgres ends it.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.errors import DeadlockDetected, IdleInTransactionSessionTimeout, SerializationFailure
from psycopg.rows import TupleRow, namedtuple_row
from psycopg.types.json import set_json_loads
from psycopg_pool import ConnectionPool, PoolTimeout
from sqlalchemy import MetaData, Select
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.orm import DeclarativeBase
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from .errors import CommunicationError
from .settings import Settings

Connection = psycopg.Connection[TupleRow]
T = TypeVar("T")

# Connections break when Postgres restarts; deadlocks and serialisation failures ask for another try.
_PASSING = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    DeadlockDetected,
    SerializationFailure,
)
_DECODER = json.JSONDecoder()
_DIALECT = PGDialect_psycopg()  # type: ignore[no-untyped-call]

# Tables of a journal grow from empty to 100,000 rows within seconds, long before autovacuum has analysed them,
# so statistics mislead. Statements read by key or along an index; a scan is never right where an index fits, and
# neither is a join that hashes or sorts a whole table, nor a shorter index and a sort where one has the whole order.
# Plans are generic, because the keys differ and the plan does not (planning `complete` takes 1.7 ms).
PLANNER = (
    "-c jit=off -c enable_seqscan=off -c enable_bitmapscan=off -c enable_hashjoin=off -c enable_mergejoin=off "
    "-c enable_incremental_sort=off -c plan_cache_mode=force_generic_plan"
)


def idle_ms(seconds: float) -> int:
    """Milliseconds after which Postgres ends a transaction whose client says nothing.

    seconds: how long the client may well be silent, twice of which counts as gone. A stopped machine keeps its
    sockets, and with them the lock on its run: the whole run would wait for it (found by the fault suite).
    """
    return max(1, math.ceil(seconds * 2000.0))


def options_of(settings: Settings, planner: str = PLANNER) -> str:
    """The parameters of a session, as libpq takes them; `trellis.actor` is read where the audit log is written."""
    actor = re.sub(r"([\\\s])", r"\\\1", settings.actor)
    idle = idle_ms(settings.lease_seconds)
    return f"{planner} -c idle_in_transaction_session_timeout={idle} -c trellis.actor={actor}"


class Base(DeclarativeBase):
    """The one registry of tables; migrations are compared with it by a test."""

    metadata = MetaData(
        naming_convention={
            "pk": "%(table_name)s_pkey",
            "fk": "%(table_name)s_%(column_0_name)s_fkey",
            "uq": "%(table_name)s_%(column_0_name)s_key",
            "ck": "%(table_name)s_%(constraint_name)s_check",
        }
    )


class Database:
    """The pool of a process, opened at first use and again after a fork."""

    planner = PLANNER  # options with which its connections start

    def __init__(self, url: str, settings: Settings) -> None:
        self.url = url
        self._settings = settings
        self._lock = threading.Lock()
        self._pool: ConnectionPool[Connection] | None = None
        self._pid = 0
        self._reached = False  # once: then a refusal is an outage and no wrong address

    @property
    def actor(self) -> str:
        """Who acts on these connections."""
        return self._settings.actor

    @property
    def pool(self) -> ConnectionPool[Connection]:
        """This process's pool."""
        if self._pool is not None and self._pid == os.getpid():
            return self._pool
        with self._lock:
            if self._pool is None or self._pid != os.getpid():
                # A parent's pool is dropped, not closed: its sockets belong to the parent.
                self._pool = self._open()
                self._pid = os.getpid()
            return self._pool

    def _open(self) -> ConnectionPool[Connection]:
        # A pool hides why it cannot connect and waits; a wrong address should be told at once.
        with connect(self.url, connect_timeout=self._settings.connect_timeout) as connection:
            self._reached = True
            self.examine(connection)
        return ConnectionPool(
            self.url,
            min_size=self._settings.pool_min_size,
            max_size=max(self._settings.pool_max_size, self._settings.pool_min_size),
            timeout=self._settings.pool_timeout,
            kwargs={
                "autocommit": True,
                "connect_timeout": self._settings.connect_timeout,
                "application_name": "trellis",
                "options": options_of(self._settings, self.planner),
                "prepare_threshold": 0,
            },
            configure=self.furnish,
            open=True,
        )

    def examine(self, connection: Connection) -> None:
        """Look, once before the first use, whether the database is what is needed; raise where it is not."""

    def furnish(self, connection: Connection) -> None:
        """Prepare a new connection of the pool."""
        set_json_loads(json_value, connection)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection in autocommit mode.

        Raises CommunicationError where Postgres cannot be reached, OperationalError where a transaction was silent for
        too long and is gone.
        """
        pool = self.pool
        try:
            borrowed = pool.getconn()
        except PoolTimeout as error:
            raise CommunicationError(
                f"no connection to Postgres within {self._settings.pool_timeout:g} s: is it running at "
                "TRELLIS_DATABASE_URL, and does TRELLIS_POOL_MAX_SIZE allow enough connections?"
            ) from error
        try:
            yield borrowed
        except IdleInTransactionSessionTimeout as error:
            raise lost(error) from error
        finally:
            broken = borrowed.broken
            pool.putconn(borrowed)
            if broken:
                self._drop(pool)

    def _drop(self, pool: ConnectionPool[Connection]) -> None:
        """Forget a pool whose server went away: it would look for a new one ever more rarely, up to minutes."""
        with self._lock:
            if self._pool is not pool:
                return
            self._pool = None
        pool.close(timeout=0)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection inside one transaction, committed at the end and rolled back on an error."""
        with self.connection() as connection, connection.transaction():
            yield connection

    def read(self, statement: Select[*tuple[Any, ...]]) -> Sequence[Any]:
        """The rows of a SQLAlchemy statement, as named tuples, by psycopg on the same connections.

        An Engine over the pool would be a second owner of them: it hangs another notice handler on a connection
        at each checkout.
        """
        compiled = statement.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
        text, arguments = str(compiled).encode(), compiled.params

        def once() -> Sequence[Any]:
            with self.connection() as connection:
                return connection.cursor(row_factory=namedtuple_row).execute(text, arguments).fetchall()

        return self.again(once)

    def again(self, attempt: Callable[[], T]) -> T:
        """Call `attempt` until it does not fail for a passing reason; it must be safe to repeat.

        A server that was never reached is no passing reason: a wrong address is told at once.

        Gives up, with the last error, after the length of a lease: then the work belongs to somebody else anyway.
        """
        try:
            return attempt()  # the usual case, without the machinery
        except _PASSING:
            pass
        except CommunicationError:
            if not self._reached:
                raise
        policy = Retrying(
            retry=retry_if_exception_type((*_PASSING, CommunicationError)),
            wait=wait_random_exponential(multiplier=0.05, max=2.0),
            stop=stop_after_delay(self._settings.lease_seconds),
            reraise=True,
        )
        return policy(attempt)

    def close(self) -> None:
        """Close this process's connections; a later use opens new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None and self._pid == os.getpid():
            pool.close()


def lost(error: IdleInTransactionSessionTimeout) -> psycopg.OperationalError:
    """What it is: a lost connection. psycopg calls it an InternalError."""
    return psycopg.OperationalError(str(error))


def rows_of(cursor: psycopg.Cursor[TupleRow] | psycopg.RawCursor[TupleRow]) -> list[TupleRow]:
    """What a statement that was executed has answered; nothing where it answers nothing.

    Asked of libpq: `description` makes an object for each column, half a tenth of what a statement costs this process.
    """
    answer = cursor.pgresult
    return cursor.fetchall() if answer is not None and answer.nfields else []


def json_value(data: str | bytes) -> Any:
    """What Postgres sends of a JSON column: UTF-8 and no space around it, which `json.loads` would look for.

    A value of twenty characters takes 0.4 µs instead of 1.7.
    """
    return _DECODER.raw_decode(data if isinstance(data, str) else data.decode())[0]


def connect(url: str, **options: Any) -> Connection:
    """One connection outside any pool. Raises CommunicationError where Postgres cannot be reached."""
    try:
        return psycopg.connect(url, autocommit=True, **options)
    except psycopg.OperationalError as error:
        raise CommunicationError(f"cannot reach Postgres: {error}".strip()) from error
