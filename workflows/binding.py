"""Filling a step's template with the results it was waiting for.

The law: pure; a template stays as it is, results are not copied, and the cost is that of the places
filled. What a binding looks like is told in `plan`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import JsonValue

from ..tasks.errors import InputError
from .references import follow, show, text_of

Bindings = list[list[Any]]


def bind(
    inputs: dict[str, Any],
    bindings: Bindings | None,
    results: Mapping[int | str, JsonValue],
    *,
    action: str = "",
    names: Mapping[int, str] | None = None,
    joins: bool = False,
) -> dict[str, Any]:
    """Fill a template with results, by row ("item" and "index" inside a map).

    The template stays as it is; results are not copied. `joins`: where branches meet, the parts of a result that is
    null are null. Raises InputError, which names the step (where `names` knows it) and the path, for a path that a
    result does not have.
    """
    if not bindings:
        return inputs
    places: list[tuple[list[str | int], Any]] = []
    for at, parent, rest in bindings:
        try:
            if parent == "text":
                texts = [
                    p if isinstance(p, str) else text_of(_part(results[p[0]], p[1], joins)) for p in rest
                ]
                places.append((at, "".join(texts)))
            else:
                places.append((at, _part(results[parent], rest, joins) if rest else results[parent]))
        except LookupError as error:
            problem = _lost(parent, rest, results, names, error)
            raise InputError(action, {f"{at[0]}{show(at[1:])}": problem}) from None
    return filled(inputs, places)


def _part(result: Any, path: Sequence[str | int], joins: bool) -> Any:
    return None if joins and result is None else follow(result, path)


def _lost(
    parent: int | str,
    rest: list[Any],
    results: Mapping[int | str, JsonValue],
    names: Mapping[int, str] | None,
    error: LookupError,
) -> str:
    parts: list[Any] = [[parent, rest]]
    if parent == "text":
        parts = [part for part in rest if not isinstance(part, str)]
    for row, path in parts:
        called = f"step {(names or {}).get(row, row)!r}" if isinstance(row, int) else f"the map's {row}"
        if row not in results:
            return f"the result of {called} is not there"
        try:
            follow(results[row], path)
        except LookupError as lost:
            return f"in the result of {called}, {lost}"
    return str(error)


def filled(inputs: dict[str, Any], places: Iterable[tuple[Sequence[str | int], Any]]) -> dict[str, Any]:
    """A copy with values put in their places; what has no place in it is shared with the original."""
    copy = dict(inputs)
    copied: set[str | int] = set()
    for at, value in places:
        top = at[0]
        if len(at) == 1:
            copy[top] = value  # type: ignore[index]  # inputs have names
            continue
        if top not in copied:  # once per input, however many places inside it are filled
            copied.add(top)
            copy[top] = _copy(copy[top])  # type: ignore[index]
        container: Any = copy
        for part in at[:-1]:
            container = container[part]
        container[at[-1]] = value
    return copy


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value
