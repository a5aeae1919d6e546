"""From plain data to a `WorkflowSpec`, with errors a person can act on.

The law: every problem of a definition's form is told, each with its place, what is wrong and what would
be right; pydantic's own words never reach a user.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from ..tasks.errors import DefinitionError
from ..tasks.hints import choices
from ..tasks.retry import Retry
from .spec import CallSpec, Default, LoopSpec, MapSpec, Rate, StepSpec, ThenSpec, UndoSpec, WorkflowSpec

Place = tuple[int | str, ...]

_SHOWN = 10
_FIELDS: dict[str, type[BaseModel]] = {
    "retry": Retry,
    "on_failure": Default,
    "map": MapSpec,
    "loop": LoopSpec,
    "rate": Rate,
}


def spec_of(content: Any, locate: Callable[[Place], str] | None = None) -> WorkflowSpec:
    """The canonical definition. Raises DefinitionError with every problem, each behind its place."""
    if not isinstance(content, Mapping):
        raise DefinitionError(
            f"{locate(()) if locate else ''}a definition is an object with a name and steps, "
            f"not {type(content).__name__}"
        )
    try:
        return WorkflowSpec.model_validate(content)
    except ValidationError as error:
        problems = _distinct(error)
    lines = []
    for problem in problems:
        place: Place = problem["loc"]
        lines.append(f"{locate(place) if locate else ''}{_where(place)}{_sentence(problem, place)}")
    if len(lines) > _SHOWN:
        lines[_SHOWN:] = [f"… and {len(lines) - _SHOWN} more"]
    name = content.get("name")
    steps = {step for step in (_step(each["loc"]) for each in problems) if step is not None}
    raise DefinitionError(
        "\n".join(lines),
        workflow=name if isinstance(name, str) and locate is None else None,
        step=next(iter(steps)) if len(steps) == 1 and locate is None else None,
    )


def told(problem: Any) -> str:
    """What is wrong with a value that was given in Python, from one of pydantic's errors."""
    where = [str(part) for part in problem["loc"] if not str(part).startswith(("literal[", "function-"))]
    message = f"{problem['msg'][:1].lower()}{problem['msg'][1:]}"
    if where == ["on_failure"]:
        message = "it is 'fail', 'skip' or a Default(value)"
    return f"{'.'.join(where)} = {problem['input']!r}: {message}"


def _distinct(error: ValidationError) -> list[Any]:
    """One problem per place: a union reports each of its alternatives."""
    found: dict[Place, Any] = {}
    for each in error.errors(include_url=False, include_context=True):
        place = _clean(each["loc"])
        if place[-1:] == ("on_failure",) and isinstance(each["input"], dict):
            continue  # meant as {default: …}, whose own problem follows
        found.setdefault(place, {**each, "loc": place})
    return list(found.values())


def _clean(place: Sequence[int | str]) -> Place:
    """A place in the data: without the names of union members and the key marks that pydantic adds."""
    cleaned: list[int | str] = []
    for part in place:
        if part == "[key]":
            continue
        in_union = len(cleaned) == 3 and cleaned[0] == "steps" and cleaned[2] in ("on_failure", "retry")
        if in_union and (part in ("Default", "Retry") or str(part).startswith(("literal[", "function-"))):
            continue
        cleaned.append(part)
    return tuple(cleaned)


def _step(place: Place) -> str | None:
    return str(place[1]) if len(place) > 1 and place[0] == "steps" else None


def _where(place: Place) -> str:
    step = _step(place)
    if step is not None:
        inner = ".".join(str(part) for part in place[2:])
        return f"step {step!r}: " + (f"{inner}: " if inner else "")
    return ".".join(str(part) for part in place) + ": " if place else ""


def _sentence(problem: Any, place: Place) -> str:
    kind = problem["type"]
    if kind == "task_form":
        return str(problem["msg"])
    if kind == "extra_forbidden":
        return f"there is no such field{choices(str(place[-1]), _siblings(place), 'there are')}"
    if kind == "missing":
        return "is missing"
    if kind == "string_pattern_mismatch":
        return f"{problem['input']!r} is not a name: letters, digits, _ and -, beginning with a letter or _"
    if len(place) > 1 and place[-1] == "on_failure":
        return f"is 'fail', 'skip' or {{default: …}}, not {problem['input']!r}"
    message = str(problem["msg"])
    shown = repr(problem["input"])
    return f"{message[:1].lower()}{message[1:]}, not {shown if len(shown) <= 60 else shown[:60] + '…'}"


def _siblings(place: Place) -> list[str]:
    model: type[BaseModel] = WorkflowSpec
    if len(place) > 3 and place[0] == "steps":
        model = _FIELDS.get(str(place[2]), StepSpec)
    elif len(place) == 3 and place[0] == "steps":
        model = StepSpec
    elif place[0] == "then":
        model = ThenSpec if len(place) == 2 else CallSpec
    elif len(place) == 3 and place[0] in ("on_failure", "on_cancel"):
        model = UndoSpec
    return list(model.model_fields)
