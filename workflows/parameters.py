"""A run's parameters: their JSON Schemas, and the check when a run starts.

The law: a run starts with values that fit the schemas of its definition, defaults filled in, or it does
not start; the error names every wrong parameter at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from pydantic import SecretStr, TypeAdapter
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from ..tasks.errors import DefinitionError, ParameterError
from ..tasks.hints import choices
from ..tasks.vault import is_sealed
from . import secret
from .contract import unkeepable
from .references import show
from .spec import WorkflowSpec

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_NOTHING: Any = object()


class Param:
    """A parameter with more than a type: `Param(int, default=3, description="how many")`.

    The type is anything that pydantic knows, or a JSON Schema as a dict. Without a default the parameter
    is required.
    """

    __slots__ = ("default", "description", "type")

    def __init__(self, type: Any, *, default: Any = _NOTHING, description: str = "") -> None:  # noqa: A002
        self.type = type
        self.default = default
        self.description = description

    def schema(self) -> dict[str, Any]:
        """The JSON Schema. Raises DefinitionError for a type that has none."""
        found = dict(self.type) if isinstance(self.type, Mapping) else _schema_of(self.type)
        if self.description:
            found["description"] = self.description
        if self.default is not _NOTHING:
            try:
                found["default"] = to_jsonable_python(self.default)
            except PydanticSerializationError as error:
                raise DefinitionError(f"the default {self.default!r} is not JSON: {error}") from error
        return found


def _schema_of(kind: Any) -> dict[str, Any]:
    try:
        return TypeAdapter(kind).json_schema()
    except PydanticUserError as error:
        raise DefinitionError(
            f"{kind!r} is not a type of JSON values: give a type such as str, int, list[str] or a pydantic "
            "model, or Param(type, default=…)"
        ) from error


def check_schemas(spec: WorkflowSpec) -> None:
    """Refuse params that are no JSON Schemas, and defaults that do not fit their own."""
    for name, schema in spec.params.items():
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise DefinitionError(
                f"parameter {name!r} is not a JSON Schema: {error.message}; write for example "
                "{type: integer, default: 3}",
                workflow=spec.name,
            ) from error
        _check_secret(spec.name, name, schema)
        if "default" in schema:
            problem = _problem(schema, schema["default"])
            if problem is not None:
                raise DefinitionError(
                    f"the default of parameter {name!r} does not fit: {problem}", workflow=spec.name
                )


def _check_secret(workflow: str, name: str, schema: Mapping[str, Any]) -> None:
    if secret.declared(schema):
        if schema.get("default") is not None:
            raise DefinitionError(
                f"parameter {name!r} is secret and has a default, which the definition would keep as it is: leave the "
                "default out, or make it None",
                workflow=workflow,
            )
    elif secret.within(schema):
        raise DefinitionError(
            f"parameter {name!r} has a secret inside: make that a parameter of its own, of type SecretStr, so that "
            "it can be encrypted",
            workflow=workflow,
        )


def schema_of_params(spec: WorkflowSpec) -> dict[str, Any]:
    """One JSON Schema for all parameters together."""
    return {
        "$schema": DIALECT,
        "title": f"Parameters of {spec.name}",
        "type": "object",
        "properties": {name: _moved(schema, f"#/properties/{name}") for name, schema in spec.params.items()},
        "required": [name for name, schema in spec.params.items() if "default" not in schema],
        "additionalProperties": False,
    }


def check_params(
    spec: WorkflowSpec, params: Mapping[str, Any], *, later: str | None = None, ours: bool = False
) -> dict[str, Any]:
    """The parameters of a run as JSON values, with the defaults. Raises ParameterError.

    later: one that need not be there yet. ours: whether encrypted texts among them come from the journal, where they
    were checked before they were encrypted.
    """
    problems: dict[str, str] = {}
    checked: dict[str, Any] = {}
    for name in params:
        if name not in spec.params:
            problems[name] = f"does not exist{choices(str(name), spec.params, 'there are')}"
    for name, schema in spec.params.items():
        if name not in params:
            if "default" in schema:
                checked[name] = schema["default"]
            elif name != later:
                problems[name] = "is missing"
            continue
        given = params[name]
        if secret.declared(schema):
            problem = _secret(schema, given, checked, name, ours=ours)
        else:
            problem = _checked(schema, given, checked, name)
        if problem is not None:
            problems[name] = problem
    if problems:
        raise ParameterError(problems, workflow=spec.name)
    return checked


def _checked(schema: Mapping[str, Any], given: Any, checked: dict[str, Any], name: str) -> str | None:
    """Keep a parameter as JSON; answers with what is wrong with it."""
    if isinstance(given, SecretStr):
        return "is a SecretStr, and the parameter is not: declare it as SecretStr"
    try:
        value = to_jsonable_python(given)
    except (PydanticSerializationError, ValueError) as error:
        return f"is not JSON: {error}"
    checked[name] = value
    return unkeepable(value) or _problem(schema, value)


def _secret(
    schema: Mapping[str, Any], given: Any, checked: dict[str, Any], name: str, *, ours: bool
) -> str | None:
    """The same of a secret one, whose value no message repeats."""
    value = given.get_secret_value() if isinstance(given, SecretStr) else given
    checked[name] = value
    if ours and is_sealed(value):
        return None
    if not isinstance(value, str | None):
        return f"is secret, so it is a text or a SecretStr, not {type(value).__name__}"
    return "does not fit what the parameter says of itself" if _problem(schema, value) else None


def _problem(schema: Mapping[str, Any], value: Any) -> str | None:
    for error in _validator(json.dumps(schema, sort_keys=True)).iter_errors(value):
        where = f"at {show(list(error.absolute_path))}: " if error.absolute_path else ""
        message = error.message if len(error.message) <= 300 else error.message[:300] + "…"
        return f"{where}{message}"
    return None


@lru_cache(maxsize=1000)
def _validator(schema: str) -> Draft202012Validator:
    # Formats (date, uuid, …) are checked: pydantic writes them for types that a text must fit.
    return Draft202012Validator(json.loads(schema), format_checker=Draft202012Validator.FORMAT_CHECKER)


def _moved(schema: Any, place: str) -> Any:
    """A schema inside another document: its `$ref`s have to start from there."""
    if isinstance(schema, Mapping):
        return {
            key: f"{place}{value[1:]}"
            if key == "$ref" and str(value).startswith("#/")
            else _moved(value, place)
            for key, value in schema.items()
        }
    if isinstance(schema, list):
        return [_moved(each, place) for each in schema]
    return schema
