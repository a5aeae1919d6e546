"""The journal's tables in memory: rows by primary key, with the columns that workflows/tables.py describes.

The law: a row is never changed, only replaced, so a transaction is undone by putting back what the tables held
before. JSON columns hold texts in the form that Postgres gives them: what comes out is a new value every time, with
its keys in Postgres' order and its numbers as Postgres reads them.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import count
from typing import Any

from sqlalchemy import Column, DateTime, Table
from sqlalchemy.dialects.postgresql import JSONB

from .. import wire
from ..tables import StepRow
from .clock import Clock

Row = dict[str, Any]
Key = tuple[Any, ...]

_NOW = ("now()", "clock_timestamp()")
_QUOTED = re.compile(r"^'(.*)'(?:::\w+)?$")


def jsonb(text: str) -> str:
    """A JSON text as Postgres prints it after reading it."""
    return json.dumps(wire.loads(text.encode()), ensure_ascii=False)


def as_json(value: Any) -> str | None:
    """A value for a JSON column; None is SQL's null."""
    return None if value is None else jsonb(json.dumps(value, ensure_ascii=False))


def of_json(text: str | None) -> Any:
    """The value of a JSON column."""
    return None if text is None else json.loads(text)


def _default(column: Column[Any], clock: Clock) -> Callable[[], Any]:
    """What a row has in a column that its insert does not name."""
    if column.identity is not None:
        numbers = count(1)
        return lambda: next(numbers)
    if column.server_default is None:
        return lambda: None
    text = str(getattr(column.server_default, "arg", ""))
    if text in _NOW:
        return clock.now
    quoted = _QUOTED.match(text)
    if text in ("true", "false"):
        value: Any = text == "true"
    elif quoted is None:
        value = int(text)
    elif isinstance(column.type, JSONB):
        value = jsonb(quoted[1])
    else:
        value = [] if quoted[1] == "{}" else quoted[1]
    return lambda: value


# What the migrations let happen with a change of a row, by table: called with the row before and after it.
TRIGGERS: dict[str, list[Callable[[Store, Row, Row], None]]] = defaultdict(list)


class Store:
    """All tables."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        tables = StepRow.metadata.tables.values()
        self._tables: dict[str, Table] = {table.name: table for table in tables}
        self._defaults = {
            table.name: {column.name: _default(column, clock) for column in table.columns} for table in tables
        }
        self._keys = {table.name: [column.name for column in table.primary_key] for table in tables}
        self._rows: dict[str, dict[Key, Row]] = {table.name: {} for table in tables}

    def insert(self, table: str, **values: Any) -> Row | None:
        """A new row, the columns left out as their defaults say; None where its key is taken."""
        row = {name: default() for name, default in self._defaults[table].items() if name not in values}
        row = self._checked(table, {**row, **values})
        key = tuple(row[name] for name in self._keys[table])
        if key in self._rows[table]:
            return None
        self._rows[table][key] = row
        return row

    def update(self, table: str, row: Row, **changes: Any) -> Row:
        """The row with changes, in its place."""
        changed = self._checked(table, {**row, **changes})
        self._rows[table][tuple(row[name] for name in self._keys[table])] = changed
        for trigger in TRIGGERS.get(table, ()):
            trigger(self, row, changed)
        return changed

    def delete(self, table: str, row: Row) -> None:
        """Take a row away, if it is still there."""
        self._rows[table].pop(tuple(row[name] for name in self._keys[table]), None)

    def get(self, table: str, *key: Any) -> Row | None:
        """The row under a primary key."""
        return self._rows[table].get(key)

    def all(self, table: str) -> list[Row]:
        """All rows, the oldest first."""
        return list(self._rows[table].values())

    def where(self, table: str, **equal: Any) -> list[Row]:
        """The rows in which these columns have these values."""
        wanted = equal.items()
        return [
            row for row in self._rows[table].values() if all(row[name] == value for name, value in wanted)
        ]

    def moments(self) -> Iterator[datetime]:
        """Every point in time that any row names."""
        for table, rows in self._rows.items():
            names = [
                column.name for column in self._tables[table].columns if isinstance(column.type, DateTime)
            ]
            for row in rows.values():
                yield from (row[name] for name in names if row[name] is not None)

    def columns(self, table: str) -> Table:
        """What a table looks like."""
        return self._tables[table]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is changed inside, or nothing where it ends in an error."""
        before = {name: dict(rows) for name, rows in self._rows.items()}
        try:
            yield
        except BaseException:
            self._rows = before
            raise

    def _checked(self, table: str, row: Row) -> Row:
        strange = row.keys() - self._defaults[table].keys()
        if strange:
            raise KeyError(f"table {table} has no column {sorted(strange)[0]}")
        return row
