"""SQLAlchemy's select statements, answered from the tables in memory.

The law: what `queries.py` asks is worked out as it is written: tables, joins, conditions, order, groups, windows,
limit. A clause that nobody needed so far is refused with `NotInProcess`, never guessed.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, cmp_to_key
from typing import Any

from sqlalchemy import Select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql import operators

from ...tasks.errors import NotInProcess
from .store import Store
from .values import HERE, Place, bound, holds, value

_AGGREGATES: dict[str, Callable[[list[Any]], Any]] = {
    "count": len,
    "max": lambda values: max(values, default=None),
    "min": lambda values: min(values, default=None),
    "sum": lambda values: sum(values) if values else None,
}


def rows(store: Store, statement: Select[*tuple[Any, ...]]) -> Sequence[Any]:
    """The rows of a statement, as named tuples. Raises NotInProcess."""
    make = _maker(tuple(str(column.key) for column in _columns(statement)))
    return [make(*each) for each in _answer(store, statement)]


@cache
def _maker(names: tuple[str, ...]) -> Any:
    return namedtuple("make", names, rename=True)


def _columns(statement: Any) -> list[Any]:
    """As they were given: what SQLAlchemy makes of them for its own purposes costs more than all the rest."""
    given = statement._raw_columns
    return [
        column
        for each in given
        for column in (each.columns if each.__visit_name__ == "subquery" else (each,))
    ]


def _answer(store: Store, statement: Any) -> list[list[Any]]:
    found = [place for place in _places(store, statement) if holds(statement.whereclause, place)]
    columns = _columns(statement)
    _look_through_windows(columns, found)
    groups = list(statement._group_by_clauses)
    if groups or any(_is_aggregate(column) for column in columns):
        answers = [(group, group[0]) for group in _grouped(found, groups)]
    else:
        answers = [([place], place) for place in found]
    for clause in reversed(list(statement._order_by_clauses)):
        answers = _ordered(answers, clause)
    if statement._limit_clause is not None:
        answers = answers[: value(statement._limit_clause, {})]
    return [[_cell(column, group) for column in columns] for group, _ in answers]


# --- tables


def _places(store: Store, statement: Any, outer: Place | None = None) -> Iterator[Place]:
    """Every combination of rows that the statement's tables have; with `outer`, for these rows of another one."""
    around: Place = {} if outer is None else outer

    def exists(inner: Any, place: Place) -> bool:
        return any(holds(inner.whereclause, each) for each in _places(store, inner, place))

    found: list[Place] = [{**around, HERE: {"now": store.clock.time, "exists": exists}}]
    equal = list(_equalities(statement.whereclause))
    for each in _tables(statement):
        if getattr(each, "name", None) not in around:
            found = [{**before, **more} for before in found for more in _from(store, each, equal)]
    return iter(found)


def _tables(statement: Any) -> list[Any]:
    """The tables that it names; where it joins some, SQLAlchemy has to say which, and takes its time."""
    if statement._setup_joins or statement._from_obj:
        return list(statement.get_final_froms())
    named = [*_columns(statement), *([] if statement.whereclause is None else [statement.whereclause])]
    return list({table.name: table for each in named for table in each._from_objects}.values())


def _from(store: Store, each: Any, equal: list[tuple[str, str, Any]]) -> list[Place]:
    named = {name: given for table, name, given in equal if table == getattr(each, "name", None)}
    if each.__visit_name__ == "table":
        return [{each.name: row} for row in store.where(each.name, **named)]
    if each.__visit_name__ == "alias" and each.element.__visit_name__ == "table":
        return [{each.name: row} for row in store.where(each.element.name, **named)]
    if each.__visit_name__ == "subquery":
        names = [str(column.key) for column in each.element.selected_columns]
        answers = _answer(store, each.element)
        return [{each.name: dict(zip(names, answer, strict=True))} for answer in answers]
    if each.__visit_name__ == "join":
        return list(_joined(store, each, equal))
    raise NotInProcess(f"reading from {each}")


def _joined(store: Store, join: Any, equal: list[tuple[str, str, Any]]) -> Iterator[Place]:
    right = _from(store, join.right, [] if join.isouter else equal)
    none: Place = (
        {join.right.name: {column.name: None for column in join.right.columns}} if join.isouter else {}
    )
    for one in _from(store, join.left, equal):
        pairs = [{**one, **other} for other in right if holds(join.onclause, {**one, **other})]
        yield from pairs or ([{**one, **none}] if join.isouter else [])


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
            yield left.table.name, left.name, bound(right, {})


# --- windows, groups, order


def _look_through_windows(columns: Iterable[Any], found: list[Place]) -> None:
    """Note for each row what the columns with OVER are there."""
    for column in columns:
        window = getattr(column, "element", column)
        if window.__visit_name__ != "over":
            continue
        by = [] if window.partition_by is None else list(window.partition_by)
        name = window.element.name
        if name not in ("count", "row_number"):
            raise NotInProcess(f"the window function {name}")
        for group in _grouped(found, by) if found else ():
            answers = [([place], place) for place in group]
            for clause in reversed([] if window.order_by is None else list(window.order_by)):
                answers = _ordered(answers, clause)
            for number, (_, place) in enumerate(answers, 1):
                place[HERE] = {**place[HERE], window: number if name == "row_number" else len(answers)}


def _grouped(found: list[Place], groups: list[Any]) -> Iterable[list[Place]]:
    by_key: dict[tuple[Any, ...], list[Place]] = {}
    for place in found:
        by_key.setdefault(tuple(value(each, place) for each in groups), []).append(place)
    return by_key.values() if groups or by_key else [[{}]]


def _is_aggregate(column: Any) -> bool:
    column = getattr(column, "element", column)
    return str(column.__visit_name__) == "function" and column.name in _AGGREGATES


def _cell(column: Any, group: list[Place]) -> Any:
    if not _is_aggregate(column):
        return value(column, group[0])
    function = getattr(column, "element", column)
    arguments = [each for each in function.clauses if getattr(each, "table", None) is not None]
    if not arguments:  # count(*)
        return len([place for place in group if place])
    values = [value(arguments[0], place) for place in group if place]
    return _AGGREGATES[function.name]([each for each in values if each is not None])


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
