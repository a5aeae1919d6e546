"""Every statement of the memory names its tenant by itself: row-level security is the second bar, and not the only one.

Judged by the plans of somebody whom no policy holds. Only making vectors anew concerns all tenants at once: it runs as
the owner of the tables, and nobody else may.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
import redis
from memories import EMBEDDER, opened
from stack import stack_of
from tenants import unbound

from trellis.memory import Scope, VectorMemory
from trellis.memory.base import CONDITIONS
from trellis.memory.connections import statements
from trellis.memory.going import conditions_of
from trellis.tasks.embedded import Servers
from trellis.tasks.queries import Numbered

FILES = (
    "memory.sql",
    "links.sql",
    "bulk.sql",
    "distilling.sql",
    "stats.sql",
    "working.sql",
)  # reembedding.sql is for all tenants
TABLES = (
    "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant' "
    "WHERE c.relkind IN ('r', 'p') AND NOT c.relname ~ '^(run|step|audit|permit|gate|definition)'"
)
KEYED = (
    "SELECT indexrelid::regclass::text FROM pg_index i WHERE EXISTS (SELECT FROM pg_attribute a "
    "WHERE a.attrelid = i.indexrelid AND a.attname = 'tenant')"
)
PLANNED = ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE")
DIMS = b"64"
FILTERED = conditions_of(CONDITIONS)


@pytest.fixture(scope="module")
def connection(
    servers: Servers, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """The owner's, with a model's partition and the table in which rows are staged."""
    with redis.Redis.from_url(servers.redis.url(96)) as client:
        client.flushdb()
    folder = tmp_path_factory.mktemp("statements")
    for stack in stack_of(servers, template, "memory_statements", 96, folder):
        with opened(stack) as database:
            VectorMemory(EMBEDDER, Scope("acme"), database=database).store("a", "b")
        with stack.connect() as found:
            found.execute(statements("bulk.sql")["stage"].text)
            yield found


def every() -> dict[str, Numbered]:
    """All statements, those of searches with no condition and with all of them."""
    found = {}
    for file in FILES:
        others = [other for other in FILES if other != file]
        for what, filters in (("", b""), (" filtered", FILTERED)):
            for name, statement in statements(file, *others, dims=DIMS, part_filters=filters).items():
                found[f"{file}: {name}{what}"] = statement
    return found


STATEMENTS = every()


def of_tenants(connection: psycopg.Connection[tuple[object, ...]]) -> tuple[set[str], set[str]]:
    tables, keyed = ({str(name) for (name,) in connection.execute(text)} for text in (TABLES, KEYED))
    return tables, keyed


def misses(connection: psycopg.Connection[tuple[object, ...]], statement: Numbered) -> list[str]:
    """What of a statement no tenant binds."""
    text = statement.text
    parameter = statement.names.index("tenant") + 1 if "tenant" in statement.names else None
    if not text.decode().startswith(PLANNED):
        return []
    with psycopg.RawCursor(connection) as cursor:
        row = cursor.execute(b"EXPLAIN (GENERIC_PLAN, FORMAT JSON) " + text, prepare=False).fetchone()
    assert row is not None
    return unbound(row[0][0]["Plan"], parameter, *of_tenants(connection))


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_names_its_tenant_wherever_it_reads_or_changes_rows_of_one(
    connection: psycopg.Connection[tuple[object, ...]], name: str
) -> None:
    """In each part of it: where it reads, where it joins, where it deletes."""
    assert misses(connection, STATEMENTS[name]) == []


def test_what_cannot_be_planned_touches_no_row_of_a_tenant(
    connection: psycopg.Connection[tuple[object, ...]],
) -> None:
    """What makes the table of a session and fills it."""
    others = {
        name.removesuffix(" filtered")
        for name, statement in STATEMENTS.items()
        if not statement.text.decode().startswith(PLANNED)
    }
    assert others == {"bulk.sql: stage", "bulk.sql: copy"}


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        (b"SELECT FROM memory m WHERE m.id = $2 AND m.key = $1", 1),
        (b"SELECT FROM memory m WHERE m.tenant = $2", 1),  # another parameter
        (b"SELECT FROM memory m WHERE m.tenant = $1 OR m.agent = $2", 1),
        (b"SELECT FROM memory m WHERE m.tenant = $1 AND m.agent = $2", 0),
        (b"SELECT FROM memory m JOIN memory_use u ON u.id = m.id WHERE m.tenant = $1 AND m.agent = $2", 1),
        (b"SELECT FROM memory m JOIN memory_use u USING (id, tenant) WHERE m.tenant = $1 AND m.agent = $2", 0),
        (b"WITH gone AS (DELETE FROM memory m WHERE m.tenant = $1 AND m.agent = $2 RETURNING m.id) "
         b"DELETE FROM memory_use u USING gone WHERE u.id = gone.id", 1),
        (b"DELETE FROM working WHERE ctid = ANY (ARRAY(SELECT ctid FROM working WHERE tenant = $1 AND key = $2))", 1),
        (b"SELECT FROM memory WHERE tenant = $1 AND id IN (SELECT id FROM memory WHERE key = $2)", 1),
        (b"INSERT INTO memory_use AS u VALUES ($2::uuid, $1, 1, now()) ON CONFLICT (id) DO UPDATE SET hits = 2", 1),
        (b"INSERT INTO memory_use AS u VALUES ($2::uuid, $1, 1, now()) ON CONFLICT (id) DO UPDATE SET hits = 2 "
         b"WHERE u.tenant = excluded.tenant", 0),
    ],
)  # fmt: skip
def test_the_judge_of_plans_sees_what_is_missing(
    connection: psycopg.Connection[tuple[object, ...]], statement: bytes, found: int
) -> None:
    assert len(misses(connection, Numbered(statement, ("tenant", "other")))) == found


def test_the_tables_of_tenants_are_known(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    tables, _ = of_tenants(connection)
    assert {"memory", "memory_1", "memory_link", "memory_use", "working"} <= tables
    assert all(name.startswith(("memory", "working")) for name in tables)
