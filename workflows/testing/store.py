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

# Columns by which rows are looked for, the best first: a run's rows are few among those of a hundred runs.
_INDEXES = {
    "run": ("id", "parent_run", "origin", "follow", "workflow", "state"),
    "step": ("run_id", "state"),
    "permit": ("gate", "run_id"),
    **dict.fromkeys(("event", "signal", "dead_letter", "run_tag"), ("run_id",)),
}

# Where something is still to happen: the states of rows that may name it. Those of other tables tell the past.
_AHEAD: dict[str, tuple[str, ...]] = {
    "run": ("pending", "running", "paused"),
    "step": ("ready", "running", "parked"),
    "gate": (),
    "schedule": (),
}


class Store:
    """All tables."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._tables = {table.name: _Rows(table, clock) for table in StepRow.metadata.tables.values()}
        self.ended: list[str] = []  # runs whose end was announced, and nobody told yet who waits for it
        self._undo: list[tuple[_Rows, Key, Row | None]] = []
        self._depth = 0

    def insert(self, table: str, **values: Any) -> Row | None:
        """A new row, the columns left out as their defaults say; None where its key is taken."""
        rows = self._tables[table]
        row = rows.checked({**rows.missing(values), **values})
        key = rows.key(row)
        if key in rows.rows:
            return None
        self._put(rows, key, row)
        return row

    def update(self, table: str, row: Row, **changes: Any) -> Row:
        """The row as it is now, with changes."""
        rows = self._tables[table]
        key = rows.key(row)
        before = rows.rows[key]
        changed = rows.checked({**before, **changes})
        self._put(rows, key, changed)
        for trigger in TRIGGERS.get(table, ()):
            trigger(self, before, changed)
        return changed

    def delete(self, table: str, row: Row) -> None:
        """Take a row away, if it is still there."""
        rows = self._tables[table]
        self._put(rows, rows.key(row), None)

    def get(self, table: str, *key: Any) -> Row | None:
        """The row under a primary key."""
        return self._tables[table].rows.get(key)

    def all(self, table: str) -> list[Row]:
        """All rows, the oldest first."""
        return list(self._tables[table].rows.values())

    def where(self, table: str, **equal: Any) -> list[Row]:
        """The rows in which these columns have these values."""
        return self._tables[table].where(equal)

    def moments(self) -> Iterator[datetime]:
        """Every point in time at which something may happen."""
        for name, states in _AHEAD.items():
            table = self._tables[name]
            found = (
                [row for state in states for row in table.where({"state": state})]
                if states
                else self.all(name)
            )
            for row in found:
                yield from (row[each] for each in table.moments if row[each] is not None)
        for row in self.where("step", state="cancelled"):
            if row["lease"] is not None:  # its body vanished, and something may wait for its end
                yield row["lease_until"]

    def columns(self, table: str) -> Table:
        """What a table looks like."""
        return self._tables[table].table

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is changed inside, or nothing where it ends in an error."""
        mark = len(self._undo)
        self._depth += 1
        try:
            yield
        except BaseException:
            while len(self._undo) > mark:
                rows, key, before = self._undo.pop()
                rows.put(key, before)
            raise
        finally:
            self._depth -= 1
            if not self._depth:
                self._undo.clear()

    def _put(self, rows: _Rows, key: Key, row: Row | None) -> None:
        before = rows.put(key, row)
        if self._depth:
            self._undo.append((rows, key, before))


class _Rows:
    """The rows of one table, by primary key and by what they are looked for."""

    def __init__(self, table: Table, clock: Clock) -> None:
        self.table = table
        self.rows: dict[Key, Row] = {}
        self.moments = [column.name for column in table.columns if isinstance(column.type, DateTime)]
        self._defaults = {column.name: _default(column, clock) for column in table.columns}
        self._key = [column.name for column in table.primary_key]
        self._indexes: dict[str, dict[Any, dict[Key, Row]]] = {
            name: defaultdict(dict) for name in _INDEXES.get(table.name, ())
        }

    def key(self, row: Row) -> Key:
        """The primary key of a row."""
        return tuple(row[name] for name in self._key)

    def missing(self, values: Row) -> Row:
        """The columns that an insert does not name."""
        return {name: default() for name, default in self._defaults.items() if name not in values}

    def checked(self, row: Row) -> Row:
        """The row, if the table has all its columns."""
        strange = row.keys() - self._defaults.keys()
        if strange:
            raise KeyError(f"table {self.table.name} has no column {sorted(strange)[0]}")
        return row

    def put(self, key: Key, row: Row | None) -> Row | None:
        """Replace a row, or take it away; answers with the one before."""
        before = self.rows.get(key)
        if row is None:
            self.rows.pop(key, None)
        else:
            self.rows[key] = row
        for name, index in self._indexes.items():
            if before is not None and (row is None or row[name] != before[name]):
                index[before[name]].pop(key, None)
            if row is not None:
                index[row[name]][key] = row
        return before

    def where(self, equal: Row) -> list[Row]:
        """The rows in which these columns have these values."""
        among = self.rows
        for name, index in self._indexes.items():
            if name in equal:
                among = index.get(equal[name], {})
                break
        wanted = equal.items()
        return [row for row in among.values() if all(row[name] == value for name, value in wanted)]
