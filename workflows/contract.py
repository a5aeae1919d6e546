"""What an action takes and returns, read from its signature.

The law: inputs come in as JSON and reach the body as the types it declares; what the body returns
leaves as JSON that Postgres can hold, or is refused. A `Contract` is built once per action and does
no I/O; `validate` and `dump` are the engine's hot path and cost well below a microsecond for small
signatures (one call into pydantic-core, no model instances).
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import (
    Annotated,
    Any,
    NamedTuple,
    NoReturn,
    NotRequired,
    Required,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError, PydanticUndefined, to_json, to_jsonable_python
from typing_extensions import TypedDict

from ..tasks.errors import DefinitionError, InputError, OutputError
from ..tasks.hints import did_you_mean, listed
from . import secret

_DIGITS = 4000  # Python reads back no number of more than 4,300
_LONG_NUMBER = re.compile(rb"\d{4000}")
_EMPTY = inspect.Parameter.empty
_UNTYPED = (_EMPTY, Any, NoReturn)
_CONFIG = ConfigDict(arbitrary_types_allowed=False)


@dataclass(frozen=True, slots=True)
class Input:
    """One input of an action."""

    name: str
    annotation: Any
    required: bool
    default: Any
    description: str


@dataclass(frozen=True, slots=True, eq=False)
class Contract:
    """The inputs and the output of one function; see `Contract.of`."""

    name: str
    function: Callable[..., Any]
    is_async: bool
    context_parameter: str | None
    inputs: dict[str, Input]
    accepts_any: bool
    input_schema: dict[str, Any]
    output_schema: dict[str, Any] | None
    secrets: frozenset[str]  # the inputs that are declared as SecretStr
    _check_inputs: Callable[[Any], dict[str, Any]]
    _check_more: Callable[[Any], dict[str, Any]] | None  # of **more: int
    _checks: dict[str, Callable[[Any], Any]]
    _check_output: Callable[[Any], Any] | None
    _to_plain: Callable[..., Any]
    _needs_inputs: bool
    _null_output: bool

    @classmethod
    def of(cls, function: Callable[..., Any], name: str) -> Contract:
        """The contract of a function. Raises DefinitionError for a signature that cannot be one."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise DefinitionError(f"action {name!r} yields; an action returns one value: return a list")
        hints = _resolved_hints(function, name)
        taken = _taken(function, hints, name)
        single = {each.name: _adapter(name, each.name, each.annotation) for each in taken.inputs.values()}
        adapter = _inputs_adapter(name, taken)
        more = None if taken.more in _UNTYPED else _adapter(name, "**", dict[str, taken.more])  # type: ignore[name-defined]
        returns = hints.get("return", _EMPTY)
        output = None if returns in _UNTYPED else _adapter(name, "return", returns)
        input_schema = _input_schema(name, adapter, taken.inputs, single)
        return cls(
            name=name,
            function=function,
            is_async=inspect.iscoroutinefunction(function),
            context_parameter=taken.context,
            inputs=taken.inputs,
            accepts_any=taken.more is not _EMPTY,
            input_schema=input_schema,
            output_schema=None if output is None else _output_schema(name, output),
            secrets=secret.names(input_schema["properties"]),
            _check_inputs=adapter.validator.validate_python,
            _check_more=None if more is None else more.validator.validate_python,
            _checks={each: one.validator.validate_python for each, one in single.items()},
            _check_output=None if output is None else output.validator.validate_python,
            _to_plain=to_jsonable_python if output is None else output.serializer.to_python,
            _needs_inputs=any(each.required for each in taken.inputs.values()),
            _null_output=returns in _UNTYPED or returns is NoneType or NoneType in get_args(returns),
        )

    def validate(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs as the types that the body declares. Raises InputError with a problem per input.

        Absent inputs with a default stay absent: the function fills them in itself.
        """
        # Bodies without inputs are common where order is all that matters: no call into pydantic-core for them.
        if not inputs and not self._needs_inputs:
            return {}
        try:
            found = self._check_inputs(inputs)
            if self._check_more is not None:
                found.update(
                    self._check_more({each: found[each] for each in found.keys() - self.inputs.keys()})
                )
            return found
        except ValidationError as error:
            raise InputError(self.name, self.problems(error)) from None

    def dump(self, value: Any) -> bytes:
        """A returned value as JSON. Raises OutputError for what is not declared or cannot be JSON."""
        if value is None and self._null_output:  # most steps of a wide workflow return nothing
            return b"null"
        try:
            if self._check_output is not None:
                # Two passes, because a model nested in the value brings its own configuration, whose default
                # writes NaN as null: plain Python first (keeps NaN), then text with NaN spelled out.
                value = self._to_plain(self._check_output(value), mode="json")
            data = to_json(value, inf_nan_mode="constants")
        except ValidationError as error:
            raise OutputError(self.name, _first_problem(error)) from None
        except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
            raise OutputError(self.name, _not_json(error)) from None
        if len(data) > _DIGITS and _LONG_NUMBER.search(data):
            raise OutputError(self.name, f"a number of more than {_DIGITS} digits: return it as a text")
        # A cheap search first; only a hit (which may be innocent text) is parsed and walked.
        if b"\\u0000" in data or b"NaN" in data or b"Infinity" in data:
            problem = unkeepable(json.loads(data))
            if problem is not None:
                raise OutputError(self.name, problem)
        return data

    def problem(self, name: str, value: Any) -> str | None:
        """What is wrong with one input's JSON value; None where nothing is."""
        check = self._checks.get(name)
        if check is None:
            return None
        try:
            check(value)
        except ValidationError as error:
            return _first_problem(error)
        return None

    def problems(self, error: ValidationError) -> dict[str, str]:
        """A sentence per input, from a pydantic error."""
        found: dict[str, str] = {}
        for each in error.errors(include_url=False, include_context=False):
            name = str(each["loc"][0]) if each["loc"] else "inputs"
            if name in found:
                continue
            if each["type"] == "missing" and len(each["loc"]) == 1:
                found[name] = "is missing"
            elif each["type"] == "extra_forbidden" and len(each["loc"]) == 1:
                found[name] = f"is not an input of this action{did_you_mean(name, self.inputs)}"
                found[name] += f" (it takes {listed(self.inputs, 'nothing')})"
            else:
                found[name] = _sentence(each, each["loc"][1:])
        return found


def unkeepable(value: Any) -> str | None:
    """Why Postgres cannot hold a JSON value (NaN, Infinity or a NUL character), and where; None if it can."""
    stack: list[tuple[str, Any]] = [("", value)]
    while stack:
        place, each = stack.pop()
        where = f" at {place}" if place else ""
        if isinstance(each, dict):
            if any("\x00" in key for key in each):
                return f"a key{where} holds a NUL character, which Postgres cannot store"
            stack.extend((f"{place}.{key}", item) for key, item in each.items())
        elif isinstance(each, list):
            stack.extend((f"{place}[{index}]", item) for index, item in enumerate(each))
        elif isinstance(each, float) and not math.isfinite(each):
            return f"{each}{where} is not JSON: use None, or a text, for a missing number"
        elif isinstance(each, str) and "\x00" in each:
            return f"the text{where} holds a NUL character, which Postgres cannot store: remove it"
    return None


def context_of(function: Callable[..., Any]) -> str | None:
    """The parameter of a function that takes the context; None where none is annotated so."""
    hints = _resolved_hints(function, getattr(function, "__name__", repr(function)))
    return next((name for name, hint in hints.items() if name != "return" and _is_context(hint)), None)


def _resolved_hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    target = function if inspect.isroutine(function) else type(function).__call__
    try:
        return get_type_hints(target, include_extras=True)
    except NameError as error:
        raise DefinitionError(
            f"action {name!r}: a type hint cannot be read ({error}): import or define that name at the top "
            "of the module, and not under TYPE_CHECKING"
        ) from error


class _Taken(NamedTuple):
    """What a function takes: inputs, the context's parameter, and the type of **keywords (empty: none)."""

    inputs: dict[str, Input]
    context: str | None
    more: Any


def _taken(function: Callable[..., Any], hints: Mapping[str, Any], name: str) -> _Taken:
    inputs: dict[str, Input] = {}
    context: str | None = None
    more: Any = _EMPTY
    for parameter in inspect.signature(function).parameters.values():
        annotation = hints.get(parameter.name, Any)
        _refuse_shape(parameter, name)
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            more = annotation
        elif _is_context(annotation):
            if context is not None:
                raise DefinitionError(f"action {name!r} asks for the context twice: keep {context!r} only")
            context = parameter.name
        else:
            inputs[parameter.name] = _input(parameter, annotation)
    return _Taken(inputs, context, more)


def _refuse_shape(parameter: inspect.Parameter, name: str) -> None:
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        raise DefinitionError(
            f"action {name!r} takes *{parameter.name}: inputs have names, make it a list parameter"
        )
    if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
        raise DefinitionError(
            f"action {name!r}: parameter {parameter.name!r} is positional-only, but inputs have names: "
            "remove the `/`"
        )
    if isinstance(parameter.default, FieldInfo):
        raise DefinitionError(
            f"action {name!r}: parameter {parameter.name!r} has a Field as its default: write "
            f"`{parameter.name}: Annotated[…, Field(…)]`, and the plain default behind it"
        )


def _is_context(annotation: Any) -> bool:
    if getattr(annotation, "__trellis_context__", False) is True:
        return True
    return any(getattr(each, "__trellis_context__", False) is True for each in get_args(annotation))


def _input(parameter: inspect.Parameter, annotation: Any) -> Input:
    description = ""
    if get_origin(annotation) is Annotated:
        fields = [each for each in annotation.__metadata__ if isinstance(each, FieldInfo)]
        description = next((each.description for each in fields if each.description), "")
    required = parameter.default is _EMPTY
    return Input(
        parameter.name,
        annotation,
        required,
        PydanticUndefined if required else parameter.default,
        description,
    )


def _inputs_adapter(name: str, taken: _Taken) -> TypeAdapter[Any]:
    """One typed-dict validator for all inputs: dicts in and out, so that no model instance is ever made."""
    fields = {
        each.name: Required[each.annotation] if each.required else NotRequired[each.annotation]
        for each in taken.inputs.values()
    }
    make: Any = TypedDict  # from a name and fields that type checkers cannot know
    shape = make(name, fields)
    shape.__pydantic_config__ = ConfigDict(**_CONFIG, extra="forbid" if taken.more is _EMPTY else "allow")
    return TypeAdapter(shape)


def _adapter(name: str, parameter: str, annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation)
    except PydanticUserError as error:
        what = "the return type" if parameter == "return" else f"parameter {parameter!r}"
        raise DefinitionError(
            f"action {name!r}: {what} ({_type_name(annotation)}) has no JSON form: use JSON types, a "
            "dataclass, a TypedDict or a pydantic model; large data travels as an Artifact"
        ) from error


def _schema(name: str, what: str, adapter: TypeAdapter[Any], mode: Any) -> dict[str, Any]:
    try:
        return adapter.json_schema(mode=mode)
    except PydanticUserError as error:
        raise DefinitionError(f"action {name!r}: {what} has no JSON form: {error.message}") from error


def _output_schema(name: str, adapter: TypeAdapter[Any]) -> dict[str, Any]:
    found = _schema(name, "the return type", adapter, "serialization")
    if secret.within(found):
        raise DefinitionError(
            f"action {name!r} returns a SecretStr, of which the journal would keep asterisks: let the action that "
            "needs the secret get it by itself, or take it as a parameter"
        )
    return found


def _input_schema(
    name: str, adapter: TypeAdapter[Any], inputs: Mapping[str, Input], single: Mapping[str, TypeAdapter[Any]]
) -> dict[str, Any]:
    for parameter, one in single.items():  # one by one first, so that a refusal names the parameter
        _schema(name, f"parameter {parameter!r}", one, "validation")
    schema = _schema(name, "an input", adapter, "validation")
    schema.setdefault("properties", {})
    for each in inputs.values():
        if not each.required:
            try:
                schema["properties"][each.name]["default"] = to_jsonable_python(each.default)
            except PydanticSerializationError:
                continue  # a sentinel object as default: the schema shows an optional input, which is true
    return schema


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _first_problem(error: ValidationError) -> str:
    each = error.errors(include_url=False, include_context=False)[0]
    return _sentence(each, each["loc"])


def _sentence(problem: Any, place: tuple[int | str, ...]) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    message = problem["msg"][:1].lower() + problem["msg"][1:]
    value = problem["input"]
    # Of a number that is out of its range the value is said, of all else (it may be large, or a secret) the type.
    given = repr(value) if _ranged(problem) else type(value).__name__
    kind = "" if problem["type"] == "missing" else f", not {given}"
    return f"{'at ' + where + ': ' if where else ''}{message}{kind}"


def _ranged(problem: Any) -> bool:
    return isinstance(problem["input"], int | float) and problem["type"].startswith(("greater_", "less_"))


def _not_json(error: Exception) -> str:
    text = str(error)
    if "surrogates not allowed" in text:
        return "a text holds a lone surrogate, which is no Unicode character: decode it with errors='replace'"
    return f"it is not JSON: {text or type(error).__name__}"
