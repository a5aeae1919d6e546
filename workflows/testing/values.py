"""SQLAlchemy's expressions, worked out for rows in memory.

The law: an expression is what Postgres makes of it, nulls and moments included. One that nobody needed so far is
refused with `NotInProcess`, never guessed.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql import operators

from ...tasks.errors import NotInProcess
from .clock import NEVER
from .store import Row, of_json

Place = dict[str, Row]  # the rows at hand, by the name of their table or alias
HERE = ""  # and, under the name of none: the present moment, and what is worked out over all rows

_OPERATORS: dict[Any, Callable[[Any, Any], Any]] = {
    operators.eq: operator.eq,
    operators.ne: operator.ne,
    operators.lt: operator.lt,
    operators.le: operator.le,
    operators.gt: operator.gt,
    operators.ge: operator.ge,
    operators.add: operator.add,
    operators.sub: operator.sub,
    operators.in_op: lambda value, among: value in among,
    operators.not_in_op: lambda value, among: value not in among,
    operators.json_getitem_op: lambda value, key: value.get(key),
}
_IDENTITY = {operators.is_: True, operators.is_not: False}
_EQUALS = re.compile(r"(?P<table>\w+)\.(?P<column>\w+) = '(?P<value>[^']*)'")
_CONSTANT = {"'infinity'::timestamptz": NEVER, "'{}'::jsonb": {}}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "length": len,
    "cardinality": len,
    "split_part": lambda text, by, place: (text.split(by) + [""] * place)[place - 1],
    "nullif": lambda one, other: None if one == other else one,
    "extract": lambda _, span: span / timedelta(seconds=1),  # the epoch of an interval
}
_MOMENTS = ("now", "clock_timestamp")


def value(clause: Any, place: Place) -> Any:
    """What an expression is, given these rows. Raises NotInProcess."""
    reader = _READERS.get(clause.__visit_name__)
    if reader is None:
        raise NotInProcess(f"the expression {clause}")
    return reader(clause, place)


def holds(condition: Any, place: Place) -> bool:
    """Whether a condition is true of these rows."""
    return condition is None or bool(value(condition, place))


def bound(clause: Any, _: Place) -> Any:
    """A parameter; ids are texts here."""
    given = clause.effective_value
    if isinstance(given, list | tuple):
        return [str(each) if isinstance(each, UUID) else each for each in given]
    return str(given) if isinstance(given, UUID) else given


def _column(clause: Any, place: Place) -> Any:
    found = place[clause.table.name][clause.name]
    stored = clause.table.__visit_name__ != "subquery"  # whose values are worked out already
    return of_json(found) if stored and isinstance(clause.type, JSONB) and isinstance(found, str) else found


def _binary(clause: Any, place: Place) -> Any:
    left = value(clause.left, place)
    if clause.operator in _IDENTITY:
        return (left is value(clause.right, place)) is _IDENTITY[clause.operator]
    work = _OPERATORS.get(clause.operator)
    if work is None:
        raise NotInProcess(f"the expression {clause}")
    right = value(clause.right, place)
    return None if left is None or right is None else work(left, right)


def _several(clause: Any, place: Place) -> Any:
    if clause.operator is operators.and_:
        return all(value(each, place) for each in clause.clauses)
    if clause.operator is operators.or_:
        return any(value(each, place) for each in clause.clauses)
    return [value(each, place) for each in clause.clauses]


def _unary(clause: Any, place: Place) -> Any:
    if clause.operator is operators.inv:
        found = value(clause.element, place)
        return None if found is None else not found
    if clause.operator is operators.exists:
        return place[HERE]["exists"](clause.element.element, place)
    raise NotInProcess(f"the expression {clause}")


def _function(clause: Any, place: Place) -> Any:
    if clause.name in _MOMENTS:
        return place[HERE]["now"]
    values = [value(each, place) for each in clause.clauses]
    if clause.name == "coalesce":
        return next((each for each in values if each is not None), None)
    work = _FUNCTIONS.get(clause.name)
    if work is None:
        raise NotInProcess(f"the function {clause.name}")
    return None if None in values else work(*values)


def _extract(clause: Any, place: Place) -> Any:
    span = value(clause.expr, place)
    return None if span is None else _FUNCTIONS["extract"](clause.field, span)


def _case(clause: Any, place: Place) -> Any:
    for condition, then in clause.whens:
        if holds(condition, place):
            return value(then, place)
    return None if clause.else_ is None else value(clause.else_, place)


def _over(clause: Any, place: Place) -> Any:
    """Worked out before, over all rows."""
    return place[HERE][clause]


def _written(clause: Any, place: Place) -> Any:
    """What is written out: a constant, or a condition in which Postgres sees one: `table.column = 'value'`."""
    text = clause.text.strip()
    if text in _CONSTANT:
        return _CONSTANT[text]
    found = _EQUALS.fullmatch(text)
    if found is None or found["table"] not in place:
        raise NotInProcess(f"the expression {clause}")
    return place[found["table"]][found["column"]] == found["value"]


_READERS: dict[str, Callable[[Any, Place], Any]] = {
    "column": _column,
    "bindparam": bound,
    "binary": _binary,
    "textclause": _written,
    "clauselist": _several,
    "expression_clauselist": _several,
    "tuple": lambda clause, place: tuple(value(each, place) for each in clause.clauses),
    "grouping": lambda clause, place: value(clause.element, place),
    "label": lambda clause, place: value(clause.element, place),
    "cast": lambda clause, place: value(clause.clause, place),
    "type_coerce": lambda clause, place: value(clause.clause, place),
    "function": _function,
    "extract": _extract,
    "case": _case,
    "over": _over,
    "unary": _unary,
    "null": lambda _, __: None,
    "true": lambda _, __: True,
    "false": lambda _, __: False,
}
