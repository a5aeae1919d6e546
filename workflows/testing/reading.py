"""SQLAlchemy's select statements, answered from the tables in memory.

The law: what `queries.py` asks is worked out as it is written: tables, joins, conditions, order, groups, limit. An
expression that nobody needed so far is refused with `NotInProcess`, never guessed.
"""

from __future__ import annotations

import operator
import re
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cmp_to_key
from typing import Any
from uuid import UUID

from sqlalchemy import Select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql import operators

from ...tasks.errors import NotInProcess
from .store import Row, Store, of_json

Place = dict[str, Row]  # the rows at hand, by the name of their table or alias
_MOMENT = ""  # and, under the name of none, the present moment
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
_WRITTEN = re.compile(r"(?P<table>\w+)\.(?P<column>\w+) = '(?P<value>[^']*)'")
_IDENTITY = {operators.is_: True, operators.is_not: False}
_AGGREGATES: dict[str, Callable[[list[Any]], Any]] = {
    "count": len,
    "max": lambda values: max(values, default=None),
    "min": lambda values: min(values, default=None),
    "sum": lambda values: sum(values) if values else None,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "length": len,
    "cardinality": len,
}


def rows(store: Store, statement: Select[*tuple[Any, ...]]) -> Sequence[Any]:
    """The rows of a statement, as named tuples. Raises NotInProcess."""
    found = [place for place in _places(store, statement) if _holds(statement.whereclause, place)]
    columns = list(statement.selected_columns)
    groups = list(statement._group_by_clauses)
    if groups or any(_is_aggregate(column) for column in columns):
        answers = [(group, group[0]) for group in _grouped(found, groups)]
    else:
        answers = [([place], place) for place in found]
    for clause in reversed(list(statement._order_by_clauses)):
        answers = _ordered(answers, clause)
    if statement._limit_clause is not None:
        answers = answers[: _value(statement._limit_clause, {})]
    make = namedtuple("make", [str(column.key) for column in columns], rename=True)  # type: ignore[misc]
    return [make(*(_cell(column, group) for column in columns)) for group, _ in answers]


def _places(store: Store, statement: Any) -> Iterator[Place]:
    """Every combination of rows that the statement's tables have."""
    found: list[Place] = [{_MOMENT: {"now": store.clock.time}}]
    equal = list(_equalities(statement.whereclause))
    for each in statement.get_final_froms():
        found = [{**before, **more} for before in found for more in _from(store, each, equal)]
    return iter(found)


def _from(store: Store, each: Any, equal: list[tuple[str, str, Any]]) -> list[Place]:
    named = {name: value for table, name, value in equal if table == getattr(each, "name", None)}
    if each.__visit_name__ == "table":
        return [{each.name: row} for row in store.where(each.name, **named)]
    if each.__visit_name__ == "alias" and each.element.__visit_name__ == "table":
        return [{each.name: row} for row in store.where(each.element.name, **named)]
    if each.__visit_name__ == "join" and not each.isouter:
        left, right = _from(store, each.left, equal), _from(store, each.right, equal)
        pairs = ({**one, **other} for one in left for other in right)
        return [place for place in pairs if _holds(each.onclause, place)]
    raise NotInProcess(f"reading from {each}")


def _equalities(condition: Any) -> Iterator[tuple[str, str, Any]]:
    """What the rows have to equal in any case (table, column, value): they need not be looked at one by one."""
    if condition is None:
        return
    kind = condition.__visit_name__
    if kind in ("clauselist", "expression_clauselist") and condition.operator is operators.and_:
        for each in condition.clauses:
            yield from _equalities(each)
    elif kind == "binary" and condition.operator is operators.eq:
        left, right = condition.left, condition.right
        plain = left.__visit_name__ == "column" and not isinstance(left.type, JSONB)
        if plain and right.__visit_name__ == "bindparam":
            yield left.table.name, left.name, _bound(right, {})


def _holds(condition: Any, place: Place) -> bool:
    return condition is None or bool(_value(condition, place))


def _grouped(found: list[Place], groups: list[Any]) -> Iterable[list[Place]]:
    by_key: dict[tuple[Any, ...], list[Place]] = {}
    for place in found:
        by_key.setdefault(tuple(_value(each, place) for each in groups), []).append(place)
    return by_key.values() if groups or by_key else [[{}]]


def _is_aggregate(column: Any) -> bool:
    column = getattr(column, "element", column)
    return str(column.__visit_name__) == "function" and column.name in _AGGREGATES


def _cell(column: Any, group: list[Place]) -> Any:
    if not _is_aggregate(column):
        return _value(column, group[0])
    function = getattr(column, "element", column)
    arguments = [each for each in function.clauses if getattr(each, "table", None) is not None]
    if not arguments:  # count(*)
        return len([place for place in group if place])
    values = [_value(arguments[0], place) for place in group if place]
    return _AGGREGATES[function.name]([value for value in values if value is not None])


def _ordered(answers: list[tuple[list[Place], Place]], clause: Any) -> list[tuple[list[Place], Place]]:
    """In the order of one clause; equal ones stay as they are. Nulls come last, going down first."""
    down = False
    while clause.__visit_name__ == "unary" and clause.modifier in (operators.desc_op, operators.asc_op):
        down = down or clause.modifier is operators.desc_op
        clause = clause.element

    def compare(one: Any, other: Any) -> int:
        left, right = _cell(clause, one[0]), _cell(clause, other[0])
        if left is None or right is None:
            return int(left is None) - int(right is None)
        return int(left > right) - int(left < right)

    return sorted(answers, key=cmp_to_key(lambda a, b: -compare(a, b) if down else compare(a, b)))


def _value(clause: Any, place: Place) -> Any:
    reader = _READERS.get(clause.__visit_name__)
    if reader is None:
        raise NotInProcess(f"the expression {clause}")
    return reader(clause, place)


def _column(clause: Any, place: Place) -> Any:
    value = place[clause.table.name][clause.name]
    return of_json(value) if isinstance(clause.type, JSONB) and isinstance(value, str) else value


def _bound(clause: Any, _: Place) -> Any:
    value = clause.effective_value
    if isinstance(value, list | tuple):
        return [str(each) if isinstance(each, UUID) else each for each in value]
    return str(value) if isinstance(value, UUID) else value


def _binary(clause: Any, place: Place) -> Any:
    left = _value(clause.left, place)
    if clause.operator in _IDENTITY:
        return (left is _value(clause.right, place)) is _IDENTITY[clause.operator]
    work = _OPERATORS.get(clause.operator)
    if work is None:
        raise NotInProcess(f"the expression {clause}")
    right = _value(clause.right, place)
    return None if left is None or right is None else work(left, right)


def _several(clause: Any, place: Place) -> Any:
    if clause.operator is operators.and_:
        return all(_value(each, place) for each in clause.clauses)
    if clause.operator is operators.or_:
        return any(_value(each, place) for each in clause.clauses)
    return [_value(each, place) for each in clause.clauses]


def _unary(clause: Any, place: Place) -> Any:
    if clause.operator is operators.inv:
        value = _value(clause.element, place)
        return None if value is None else not value
    raise NotInProcess(f"the expression {clause}")


def _function(clause: Any, place: Place) -> Any:
    if clause.name == "now":
        return place[_MOMENT]["now"]
    values = [_value(each, place) for each in clause.clauses]
    if clause.name == "coalesce":
        return next((value for value in values if value is not None), None)
    work = _FUNCTIONS.get(clause.name)
    if work is None:
        raise NotInProcess(f"the function {clause.name}")
    return None if None in values else work(*values)


def _written(clause: Any, place: Place) -> Any:
    """A condition that is written out, so that Postgres sees the constant: `table.column = 'value'`."""
    found = _WRITTEN.fullmatch(clause.text.strip())
    if found is None or found["table"] not in place:
        raise NotInProcess(f"the expression {clause}")
    return place[found["table"]][found["column"]] == found["value"]


_READERS: dict[str, Callable[[Any, Place], Any]] = {
    "column": _column,
    "bindparam": _bound,
    "binary": _binary,
    "textclause": _written,
    "clauselist": _several,
    "expression_clauselist": _several,
    "tuple": lambda clause, place: tuple(_value(each, place) for each in clause.clauses),
    "grouping": lambda clause, place: _value(clause.element, place),
    "label": lambda clause, place: _value(clause.element, place),
    "cast": lambda clause, place: _value(clause.clause, place),
    "type_coerce": lambda clause, place: _value(clause.clause, place),
    "function": _function,
    "unary": _unary,
    "null": lambda _, __: None,
    "true": lambda _, __: True,
    "false": lambda _, __: False,
}
