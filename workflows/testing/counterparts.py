"""Which Python function does what a statement of a .sql file does.

The law: one function a statement, with the statement's parameters as its own and rows of the same columns as its
answer. What the statement does for speed (leases without a flush, rows picked in an order of locks) is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

from .store import Store

Rows = list[tuple[Any, ...]]
Statement = Callable[..., Rows | None]

STATEMENTS: dict[bytes, Statement] = {}  # by their text
COPY: dict[bytes, Callable[[Store, str], None]] = {}  # those that take rows


@cache
def parameters(statement: bytes) -> tuple[str, ...]:
    """The names of a statement's parameters."""
    return tuple(dict.fromkeys(name.decode() for name in re.findall(rb"%\((\w+)\)s", statement)))


def does(statement: bytes) -> Callable[[Statement], Statement]:
    """This function does what `statement` says."""

    def note(function: Statement) -> Statement:
        STATEMENTS[statement] = function
        return function

    return note
