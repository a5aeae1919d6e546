"""Connections of the memory: a role that owns nothing, a tenant for each transaction, and a planner of its own.

The law: a statement runs as the role `trellis_memory`, behind row-level security, with its tenant set in its own
transaction; where the database would not keep tenants apart, nothing runs at all. That is looked at once, before the
first use.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import RawCursor
from psycopg.types import TypeInfo

from ..tasks import schema
from ..tasks.database import Connection, Database, connect, rows_of
from ..tasks.errors import CommunicationError, ConfigurationError, IsolationMissing, MissingExtension
from ..tasks.queries import Numbered, load, numbered
from ..tasks.settings import Settings, current
from . import halves

Rows = list[tuple[Any, ...]]

ROLE = "trellis_memory"

# Of an approximate search: candidates kept in mind at once, and how far it goes on where a condition throws rows away
# (what it remembers of those is a multiple of work_mem).
HNSW = {
    "hnsw.iterative_scan": "relaxed_order",
    "hnsw.ef_search": "100",
    "hnsw.max_scan_tuples": "40000",
    "hnsw.scan_mem_multiplier": "4",
}
# What a search asks differs from one to the next (a tenant of ten rows or of a million), so most have a plan of their
# own. Without `enable_sort` a walk through the whole scope and a sort can look cheaper than the HNSW index.
_PLANNER = {
    "role": ROLE,
    "jit": "off",
    "enable_sort": "off",
    "plan_cache_mode": "force_generic_plan",
    "max_parallel_workers_per_gather": "0",
    "work_mem": "32MB",
}
_TENANT = numbered(
    b"SELECT set_config('trellis.tenant', %(tenant)s::text, true), set_config('plan_cache_mode', %(plan)s::text, true)"
)
_PLANS = {False: "force_custom_plan", True: "force_generic_plan"}


class MemoryDatabase(Database):
    """The pool of a process for its memories; other pools of the process know nothing of them."""

    planner = " ".join(f"-c {name}={value}" for name, value in {**_PLANNER, **HNSW}.items())

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.need_database(), settings)
        self.settings = settings
        self._info: TypeInfo | None = None

    def examine(self, connection: Connection) -> None:
        """Raise MissingExtension, SchemaMismatch, IsolationMissing or ConfigurationError where something is amiss."""
        self._info = halves.info(connection)
        if self._info is None:
            raise MissingExtension("vector", "memories keep their vectors in it")
        schema.check(connection)
        try:
            with connect(self.url, options=self.planner) as own:
                _look(own)
        except (psycopg.Error, CommunicationError) as error:
            raise IsolationMissing(
                f"no connection in the role {ROLE} ({str(error).strip()})",
                f"as a superuser run GRANT {ROLE} TO the user of TRELLIS_DATABASE_URL, and put no pooler between "
                "that drops the options of a connection",
            ) from error

    def furnish(self, connection: Connection) -> None:
        super().furnish(connection)
        assert self._info is not None
        halves.register(connection, self._info)

    @contextmanager
    def piped(self, tenant: str, *, generic: bool = False) -> Iterator[Asker]:
        """A transaction of one round trip: what is asked in it is answered when it is over.

        generic: whatever is asked for, the plan is the same, and is made once.
        """
        with self.connection() as connection, connection.pipeline():
            asker = Asker(connection)
            asker(_TENANT, {"tenant": tenant, "plan": _PLANS[generic]})
            yield asker

    @contextmanager
    def writing(self, tenant: str) -> Iterator[Asker]:
        """A transaction in which one answer decides what is asked next."""
        with self.transaction() as connection:
            asker = Asker(connection)
            asker(_TENANT, {"tenant": tenant, "plan": _PLANS[False]})
            yield asker

    def ask(
        self, tenant: str, statement: Numbered, arguments: Mapping[str, Any], *, generic: bool = False
    ) -> Rows:
        """The rows of one statement, again if a connection was lost; `generic` as for `piped`."""

        def once() -> Rows:
            with self.piped(tenant, generic=generic) as asker:
                cursor = asker(statement, arguments)
            return rows_of(cursor)

        return self.again(once)

    def ask_alone(self, statement: Numbered, arguments: Mapping[str, Any]) -> Rows:
        """The rows of a statement that sets its tenant itself, without a transaction around it."""

        def once() -> Rows:
            with self.connection() as connection:
                return rows_of(Asker(connection)(statement, arguments))

        return self.again(once)


class Asker:
    """Runs numbered statements on one connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def __call__(self, statement: Numbered, arguments: Mapping[str, Any]) -> RawCursor[tuple[Any, ...]]:
        return RawCursor(self.connection).execute(statement.text, statement.values(arguments))

    def rows(self, statement: Numbered, arguments: Mapping[str, Any]) -> Rows:
        return rows_of(self(statement, arguments))


def statements(file: str, *others: str, **parts: bytes) -> dict[str, Numbered]:
    """The statements of a .sql file of this package; `others` and `parts` as for `load`."""
    found = load("trellis.memory.sql", file, *others, **parts)
    return {name: numbered(text) for name, text in found.items()}


def _look(connection: Connection) -> None:
    """Whether the policies hold for this connection, and pgvector does what the searches count on."""
    row = connection.execute("SELECT current_user, row_security_active('memory')").fetchone()
    if row is None or row[0] != ROLE or not row[1]:
        raise IsolationMissing(
            f"row-level security is not active for {row and row[0]!r}",
            f"connections have to begin in the role {ROLE}: put no pooler between that drops their options",
        )
    connection.execute(
        "SELECT '[1]'::halfvec <#> '[1]'::halfvec"
    )  # loads the library, which knows its settings
    for name, wanted in HNSW.items():
        found = connection.execute("SELECT current_setting(%s, true)", (name,)).fetchone()
        if found is None or found[0] != wanted:
            raise ConfigurationError(
                f"pgvector took {name}={found and found[0]!r} instead of {wanted!r}, and filtered searches would find "
                "too few rows: update the extension to 0.8 or newer (ALTER EXTENSION vector UPDATE)"
            )


_lock = threading.Lock()
_shared: dict[str, MemoryDatabase] = {}


def shared(settings: Settings | None = None) -> MemoryDatabase:
    """The one pool of this process for a database; closed with the process."""
    settings = settings or current()
    url = settings.need_database()
    with _lock:
        if url not in _shared:
            _shared[url] = MemoryDatabase(settings)
        return _shared[url]
