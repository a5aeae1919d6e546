"""`-p key=value` on a command line: texts that become JSON values by the schema of their parameter.

The law: pure. The schema decides what a text means: where a text is wanted it is taken as it is, in all
other places as JSON reads it. What cannot be read is handed on unread, for the check of the parameters to
refuse, unless a better answer can be given here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from ..tasks.errors import ConfigurationError, ParameterError
from . import registry
from .records import Json
from .schemas import types, whole
from .spec import WorkflowSpec

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_WORDS = {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}
_EXAMPLES = {"array": "'[1, 2]'", "object": """'{"a": 1}'"""}


def parse(spec: WorkflowSpec, pairs: Iterable[str], file: Path | None = None) -> dict[str, Json]:
    """The parameters that a command line gives: those of a JSON file, and over them `key=value` pairs.

    Raises ParameterError, and ConfigurationError for a file that cannot be read.
    """
    given: dict[str, Json] = {} if file is None else _from_file(file)
    seen: set[str] = set()
    problems: dict[str, str] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip()
        if not equals or not name:
            problems[name] = f"has no value: write -p {name or 'NAME'}=VALUE"
        elif name in seen:
            problems[name] = "is given twice"
        else:
            seen.add(name)
            try:
                given[name] = value(text, spec.params.get(name, {}))
            except ValueError as error:
                problems[name] = f"{error}; write e.g. -p {name}={_example(spec.params[name])}"
    if problems:
        raise ParameterError(problems, workflow=spec.name)
    return given


def moment(text: str | None) -> datetime | None:
    """A time, ISO 8601; without an offset it is one of this machine's time zone. Raises ConfigurationError."""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError as error:
        raise ConfigurationError(
            f"{text!r} is not a time: write 2026-03-29T02:00 or 2026-03-29T02:00:00+01:00"
        ) from error


def inputs(spec: WorkflowSpec, pairs: Iterable[str]) -> dict[str, dict[str, Json]]:
    """The inputs that `step.input=value` pairs give, by step, read as the action wants them where it is known here.

    Raises ParameterError.
    """
    found: dict[str, dict[str, Json]] = {}
    for pair in pairs:
        place, equals, text = pair.partition("=")
        step, dot, name = place.strip().partition(".")
        if not (equals and dot and step and name):
            raise ParameterError({place: "write --input STEP.INPUT=VALUE"}, workflow=spec.name)
        info = registry.actions.get(spec.steps[step].action) if step in spec.steps else None
        schema = {} if info is None else info.contract.input_schema
        try:
            given = value(
                text, {**schema.get("properties", {}).get(name, {}), "$defs": schema.get("$defs", {})}
            )
        except ValueError as error:
            raise ParameterError({place: str(error)}, workflow=spec.name) from None
        found.setdefault(step, {})[name] = given
    return found


def value(text: str, schema: Mapping[str, Any]) -> Json:
    """A text as the value that a schema wants. Raises ValueError where a list or an object is no JSON."""
    kinds = types(whole(schema))
    if kinds is None:  # anything may come: what reads as JSON is JSON
        found = _json(text)
        return text if found is None else found[0]
    if kinds == {"string"}:
        return text
    if "null" in kinds and text == "null":
        return None
    if "boolean" in kinds and (text.lower() in ("true", "false") or kinds <= {"boolean", "null"}):
        return _WORDS.get(text.lower(), text)
    if kinds & {"integer", "number"} and (number := _number(text)) is not None:
        return number
    if kinds & {"array", "object"}:
        found = _json(text)
        if found is not None and isinstance(found[0], list | dict):
            return found[0]
        if kinds <= {"array", "object", "null"}:
            raise ValueError(f"{_shortened(text)} is not {_article(kinds - {'null'})} in JSON")
    return text


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            found = kind(text)
        except ValueError:
            continue
        return found if math.isfinite(found) else None
    return None


def _json(text: str) -> tuple[Json] | None:
    """The value in a tuple, since it may be null; None where the text is no JSON."""
    try:
        return (json.loads(text, parse_constant=_refuse),)
    except (ValueError, RecursionError):
        return None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _from_file(file: Path) -> dict[str, Json]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise ConfigurationError(f"--params-file: {file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"--params-file: {file} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f'--params-file: {file} holds no object: write {{"name": value, …}}')
    return found


def _example(schema: Mapping[str, Any]) -> str:
    kinds = types(whole(schema)) or frozenset()
    return next((example for kind, example in _EXAMPLES.items() if kind in kinds), "VALUE")


def _article(kinds: Iterable[str]) -> str:
    return " or ".join(f"an {kind}" for kind in sorted(kinds))


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "…")
