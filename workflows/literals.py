"""Python values as the literals and references of a definition.

The law: what a value means survives: JSON values stay, references become their notation, texts that
look like references are escaped, and values that pydantic can write as JSON (dates, paths, models) are
written now. Whatever else is refused, by the name of its input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import PydanticSerializationError, to_jsonable_python

from ..tasks.errors import DefinitionError
from .references import IndexRef, ItemRef, Ref, notation

_PLAIN = frozenset({int, float, bool, type(None)})
_MAX_DEPTH = 100


def check_owner(ref: Ref, owner: Any, key: str, *, mapped: bool) -> None:
    """Refuse the reference of another workflow, and items outside a map."""
    if ref.owner is not owner:
        other = getattr(ref.owner, "name", "?")
        raise DefinitionError(
            f"input {key!r} uses {ref!s} of workflow {other!r}: a step can only use what its own workflow has; "
            "pass the value as a parameter"
        )
    if not mapped and isinstance(ref, ItemRef | IndexRef):
        raise DefinitionError(
            f"input {key!r} uses {ref!s} outside a map: add the step with wf.map(…, over=…), or wf.loop(…)"
        )


def encode(value: Any, owner: Any, key: str, *, mapped: bool, depth: int = 0) -> Any:
    """A value as JSON in the notation of definitions. Raises DefinitionError."""
    if isinstance(value, str):
        try:
            return notation(str.__str__(value))  # a str subclass may be an enum, whose str() is its name
        except DefinitionError as error:
            raise DefinitionError(f"input {key!r}: {error}") from error
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Ref):
        check_owner(value, owner, key, mapped=mapped)
        return str(value)
    if depth > _MAX_DEPTH:
        raise DefinitionError(f"input {key!r} nests deeper than {_MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        for each in value:
            if not isinstance(each, str):
                raise DefinitionError(
                    f"input {key!r} has the key {each!r}: the keys of JSON objects are texts"
                )
        return {
            each: encode(item, owner, key, mapped=mapped, depth=depth + 1) for each, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [encode(item, owner, key, mapped=mapped, depth=depth + 1) for item in value]
    try:
        plain = to_jsonable_python(value)
    except (PydanticSerializationError, ValueError) as error:
        raise DefinitionError(
            f"input {key!r} is of type {type(value).__name__}, which has no JSON form: give JSON values, or a "
            "reference to the step that makes it"
        ) from error
    return encode(plain, owner, key, mapped=mapped, depth=depth + 1)
