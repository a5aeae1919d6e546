"""How many pages of the database each statement of this process touches, as Postgres itself counts them.

The law: a statement is explained before it runs, behind a savepoint that is undone, under the generic plan that
the engine's connections use, and then runs as if nobody had looked.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple
from unittest.mock import patch

import psycopg
from psycopg import pq, sql
from psycopg.adapt import Transformer

_VERBS = (b"SELECT", b"WITH", b"UPDATE", b"INSERT", b"DELETE")
_numbers = itertools.count()


class Read(NamedTuple):
    """What one node of a plan read of a table."""

    table: str
    node: str  # its kind
    rows: int  # those that it gave and those that it threw away
    generic: bool  # whether its condition has parameters in it, and no values

    @property
    def whole(self) -> bool:
        """Whether it reads the table from the first row to the last, by its kind."""
        return self.node == "Seq Scan"


class Touched(NamedTuple):
    """What one statement did."""

    statement: str
    pages: int  # read or found in the cache, by all of its parts
    reads: list[Read]

    @property
    def scanned(self) -> dict[str, int]:
        """Tables that were read from the first row to the last, with the rows found there."""
        return {each.table: each.rows for each in self.reads if each.whole}


@contextmanager
def watched() -> Iterator[list[Touched]]:
    """Yields a list that fills with what the statements of the block touch."""
    found: list[Touched] = []
    execute = psycopg.Cursor.execute

    def looked_at(self: Any, query: Any, params: Any = None, **more: Any) -> Any:
        text = query if isinstance(query, bytes) else str(query).encode()
        if text.lstrip().upper().startswith(_VERBS):
            found.append(_explained(self, text, params))
        return execute(self, query, params, **more)

    def one_by_one(_: Any) -> Any:
        return nullcontext()  # in a pipeline nothing can be explained in between

    with (
        patch.object(psycopg.Cursor, "execute", looked_at),
        patch.object(psycopg.Connection, "pipeline", one_by_one),
    ):
        yield found


def _explained(cursor: Any, text: bytes, params: Any) -> Touched:
    connection = cursor.connection
    made = cursor._query_cls(Transformer(connection))
    made.convert(text, params or None)
    named = isinstance(params, dict)
    values: Sequence[Any] = [params[key] for key in made._order or ()] if named else list(params or ())
    name = sql.Identifier(f"looked_{next(_numbers)}")
    types = sql.SQL(", ").join(sql.SQL(_type(connection, oid)) for oid in made.types)
    given = sql.SQL(", ").join(map(sql.Literal, values))

    def run(command: sql.Composable, more: bytes = b"") -> Any:
        result = connection.pgconn.exec_(command.as_bytes(connection) + more)
        fine = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)
        assert result.status in fine, (result.error_message, text, values)
        return result

    with connection.transaction(force_rollback=True):
        run(
            sql.SQL("PREPARE {} {} AS ").format(
                name, sql.SQL("({})").format(types) if values else sql.SQL("")
            ),
            made.query,
        )
        call = sql.SQL("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) EXECUTE {} {}")
        shown = run(call.format(name, sql.SQL("({})").format(given) if values else sql.SQL("")))
    plan = json.loads(shown.get_value(0, 0))[0]["Plan"]
    pages = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    return Touched(text.decode(), pages, [_read(node) for node in _nodes(plan) if _reads(node)])


def _reads(node: dict[str, Any]) -> bool:
    return "Scan" in node["Node Type"] and "Relation Name" in node


def _read(node: dict[str, Any]) -> Read:
    thrown = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    rows = (node["Actual Rows"] + thrown) * node["Actual Loops"]
    return Read(node["Relation Name"], node["Node Type"], int(rows), "$1" in node.get("Index Cond", ""))


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)


def _type(connection: Any, oid: int) -> str:
    if oid == 0:
        return "unknown"
    found = connection.adapters.types.get(oid)
    assert found is not None, oid
    return found.regtype + ("[]" if found.array_oid == oid and not found.regtype.endswith("[]") else "")
