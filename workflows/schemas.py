"""JSON Schemas of results and inputs, as far as a definition can use them.

The law: a schema can only refuse what it is sure of. Where a schema says nothing (`Any`, a schema from
elsewhere with words that are not understood here), everything is taken, and the run will tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..tasks.hints import choices
from .references import show

_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null", list: "array"}
_DEEP = 20  # references to references; more is a circle


class Schema(NamedTuple):
    """A schema and the document that its `$ref`s point into; `content` is None where nothing is known."""

    content: Mapping[str, Any] | None
    root: Mapping[str, Any]


UNKNOWN = Schema(None, {})


def whole(document: Mapping[str, Any] | None) -> Schema:
    """A schema that is its own document."""
    return UNKNOWN if document is None else Schema(document, document)


def list_of(schema: Schema) -> Schema:
    """The schema of a list of such values."""
    return Schema({"type": "array", "items": schema.content or {}}, schema.root)


def enter(schema: Schema, path: Sequence[str | int]) -> Schema:
    """The schema at a path. Raises LookupError, whose text says what there is, for a path that cannot be."""
    for position, part in enumerate(path):
        found = _enter(schema, part)
        if isinstance(found, str):
            raise LookupError(f"there is no {show(path[: position + 1])}{found}")
        schema = found
    return schema


def _enter(schema: Schema, part: str | int) -> Schema | str:
    """One step into a schema, or what to say instead."""
    answers = [_enter_one(each, part) for each in alternatives(schema)]
    schemas = [each for each in answers if isinstance(each, Schema)]
    if not schemas:
        texts = [each for each in answers if isinstance(each, str) and each]
        return texts[0] if texts else "; the value is null"
    return schemas[0] if len(schemas) == 1 else UNKNOWN


def _enter_one(schema: Schema, part: str | int) -> Schema | str:
    content = schema.content
    if content is None:
        return UNKNOWN
    kinds = types(schema)
    if kinds == frozenset({"null"}):
        return ""
    if kinds == frozenset({"object"}):
        return _field(schema, content, part)
    if kinds == frozenset({"array"}):
        if isinstance(part, str):
            return f"; the value is a list, which is entered by a number: [0] instead of {show([part])}"
        items = content.get("items")
        plain = isinstance(items, Mapping) and "prefixItems" not in content
        return Schema(items, schema.root) if plain else UNKNOWN
    if kinds is not None and kinds.isdisjoint({"object", "array"}):
        return f"; the value is of type {' or '.join(sorted(kinds))} and has nothing inside"
    return UNKNOWN


def _field(schema: Schema, content: Mapping[str, Any], part: str | int) -> Schema | str:
    if isinstance(part, int):
        return "; the value is an object, which is entered by the name of a field"
    fields = content.get("properties", {})
    if part in fields:
        return Schema(fields[part], schema.root)
    # pydantic leaves `additionalProperties` out for a model, whose results have its fields and no others.
    more = content.get("additionalProperties", not fields)
    if isinstance(more, Mapping):
        return Schema(more, schema.root)
    return UNKNOWN if more else choices(part, fields, "the fields are")


def alternatives(schema: Schema) -> list[Schema]:
    """A schema's alternatives (`anyOf`), with every `$ref` followed."""
    content = schema.content
    for _ in range(_DEEP):
        if content is None or "$ref" not in content:
            break
        content = _follow(str(content["$ref"]), schema.root)
    if content is None:
        return [UNKNOWN]
    for word in ("anyOf", "oneOf"):
        if word in content:
            return [found for each in content[word] for found in alternatives(Schema(each, schema.root))]
    if "$ref" in content or "allOf" in content:
        return [UNKNOWN]
    return [Schema(content, schema.root)]


def _follow(reference: str, root: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if not reference.startswith("#/"):
        return None
    found: Any = root
    for part in reference[2:].split("/"):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return found if isinstance(found, Mapping) else None


def types(schema: Schema) -> frozenset[str] | None:
    """The JSON types that a value may have; None where that is not known."""
    found: set[str] = set()
    for each in alternatives(schema):
        kinds = _types_of_one(each.content)
        if kinds is None:
            return None
        found |= kinds
    return frozenset(found)


def _types_of_one(content: Mapping[str, Any] | None) -> set[str] | None:
    if content is None:
        return None
    kind = content.get("type")
    if isinstance(kind, str):
        return {kind}
    if isinstance(kind, list):
        return set(kind)
    if "const" in content:
        return {type_of(content["const"])}
    if "enum" in content:
        return {type_of(value) for value in content["enum"]}
    return None


def type_of(value: Any) -> str:
    """The JSON type of a value."""
    return _TYPES.get(type(value), "object")


def fits(given: frozenset[str] | None, taken: frozenset[str] | None) -> bool:
    """False where no value of the given types can be one of the types taken."""
    if given is None or taken is None:
        return True
    if "number" in taken:
        taken = taken | {"integer"}
    if "number" in given:
        given = given | {"integer"}  # 2.0 is a whole number
    return not given.isdisjoint(taken)


def words(kinds: frozenset[str]) -> str:
    """Types as they are told."""
    return " or ".join(sorted(kinds))
