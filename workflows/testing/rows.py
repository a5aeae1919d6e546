"""New steps of a run: rows in the text format of COPY, read back into the table.

The law: the inverse of `wire.copy_rows`, driven by the columns that the statement names and the types that
workflows/tables.py gives them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.types import Boolean, Float, Integer

from ..journal import SQL
from .counterparts import COPY
from .store import Store, jsonb

_ESCAPED = {"\\t": "\t", "\\n": "\n", "\\r": "\r", "\\\\": "\\"}
_NULL = "\\N"


def _plain(text: str) -> str:
    return re.sub(r"\\[tnr\\]", lambda found: _ESCAPED[found[0]], text) if "\\" in text else text


def _array(text: str) -> list[int]:
    return [int(each) for each in text[1:-1].split(",") if each]


def _reader(kind: Any) -> Callable[[str], Any]:
    readers: tuple[tuple[type, Callable[[str], Any]], ...] = (
        (ARRAY, _array),
        (JSONB, lambda text: jsonb(_plain(text))),
        (Boolean, lambda text: text == "t"),
        (Integer, int),
        (Float, float),
    )
    return next((read for each, read in readers if isinstance(kind, each)), _plain)


def copy_steps(store: Store, block: str) -> None:
    """Inserts the steps of a block."""
    columns = store.columns("step").columns
    for line in block.removesuffix("\n").split("\n"):
        values = zip(_COLUMNS, line.split("\t"), strict=True)
        row = {name: None if text == _NULL else _reader(columns[name].type)(text) for name, text in values}
        if store.insert("step", **row) is None:
            raise ValueError(f"step {row['idx']} of run {row['run_id']} is there already")


def _named(statement: bytes) -> list[str]:
    text = statement.decode()
    return [name.strip() for name in text[text.index("(") + 1 : text.index(")")].split(",")]


_COLUMNS = _named(SQL["copy_steps"])
COPY[SQL["copy_steps"]] = copy_steps
