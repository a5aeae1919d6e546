"""References inside inputs: where a value of a run stands in place of a literal.

The law: one notation for Python, YAML and JSON. A string that is wholly `${…}` is replaced by the value
itself, with its type; inside a longer string the value is written as text. `$${` is a literal `${`
(every `$` of a run of them in front of `{` is doubled, so that each text can be written).

    ${params.url}   ${steps.raw}   ${steps.raw.rows[0].id}   ${steps.raw["odd key"]}
    ${item}   ${item.month}   ${index}                        (inside a map; the last one also inside a loop)
    ${previous}   ${previous.score}                           (inside a loop: the result of the turn before)
    ${run.plan.search.rows}                 (in a fragment: a step that its run has finished)

In Python, `wf.params.url`, `raw["rows"][0]`, `wf.item["month"]` and `wf.index` are the same references;
they may stand anywhere in lists and dicts, and in f-strings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ..tasks.errors import DefinitionError

Path = tuple[str | int, ...]

NAME = r"[A-Za-z_][A-Za-z0-9_-]*"
_KEY = r"[A-Za-z_][A-Za-z0-9_]*"
_PART = rf'\.(?P<key>{_KEY})|\[(?P<index>-?\d+)\]|\[(?P<text>"(?:[^"\\]|\\.)*")\]'
_PARTS = re.compile(_PART)
_REFERENCE = re.compile(
    r"\$\{(?:(params|steps|run)\.(" + NAME + r")|(item|index|previous))"
    rf'((?:\.{_KEY}|\[-?\d+\]|\["(?:[^"\\]|\\.)*"\])*)\}}'
)
_OPENING = re.compile(r"\$+\{")
_IDENTIFIER = re.compile(_KEY)
_MARK = "\x00"  # cannot occur in a literal: Postgres does not store it


@dataclass(frozen=True, slots=True)
class Reference:
    """One parsed reference: `kind` is params, steps, run, item, index or previous; `name` the parameter or step."""

    kind: str
    name: str
    path: Path

    def __str__(self) -> str:
        return write(self.kind, self.name, self.path)


# What a string with `${` stands for: a literal, a typed reference, or the parts of a text.
Hole = str | Reference | tuple["str | Reference", ...]


def parse(text: str) -> Hole:
    """A string of a definition: the literal it stands for, a typed reference, or the parts of a text.

    Raises DefinitionError for a `${` that is no reference.
    """
    if "${" not in text:  # nearly every string
        return text
    whole = _REFERENCE.fullmatch(text)
    if whole is not None:
        return _reference(whole)
    parts: list[str | Reference] = []
    literal = ""
    position = 0
    while (opening := _OPENING.search(text, position)) is not None:
        dollars = opening.end() - opening.start() - 1
        literal += text[position : opening.start()] + "$" * (dollars // 2)
        if dollars % 2 == 0:
            literal += "{"
            position = opening.end()
            continue
        found = _REFERENCE.match(text, opening.end() - 2)
        if found is None:
            _refuse(text, opening.end() - 2)
        if literal:
            parts.append(literal)
            literal = ""
        parts.append(_reference(found))
        position = found.end()
    literal += text[position:]
    if not parts:
        return literal
    if literal:
        parts.append(literal)
    return tuple(parts)


def escape(text: str) -> str:
    """The notation of a literal text."""
    if "{" not in text:
        return text
    return _OPENING.sub(lambda found: "$" * (len(found[0]) - 1) + found[0], text)


def write(kind: str, name: str, path: Sequence[str | int]) -> str:
    """The notation of a reference."""
    head = f"{kind}.{name}" if name else kind
    return f"${{{head}{show(path)}}}"


def show(path: Sequence[str | int]) -> str:
    """A path as it is written behind a name: `.rows[0]["odd key"]`."""
    return "".join([_show(part) for part in path])


def _show(part: str | int) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if _IDENTIFIER.fullmatch(part) else f"[{json.dumps(part)}]"


def _reference(found: re.Match[str]) -> Reference:
    kind, name, alone, tail = found.groups()
    path = _path(tail) if tail else ()
    if alone == "index" and path:
        raise DefinitionError(f"{found[0]!r}: an index is a number and has no fields")
    return Reference(kind or alone, name or "", path)


def _path(tail: str) -> Path:
    parts: list[str | int] = []
    for found in _PARTS.finditer(tail):
        if found["key"] is not None:
            parts.append(found["key"])
        elif found["index"] is not None:
            parts.append(int(found["index"]))
        else:
            try:
                parts.append(json.loads(found["text"]))
            except ValueError as error:
                raise DefinitionError(f"the key {found['text']} of a reference is not a JSON text") from error
    return tuple(parts)


def _refuse(text: str, position: int) -> NoReturn:
    end = text.find("}", position)
    shown = text[position : end + 1] if end >= 0 else text[position:]
    raise DefinitionError(
        f"{shown!r} is not a reference: write ${{params.NAME}}, ${{steps.NAME}}, ${{steps.NAME.field[0]}}, "
        '${steps.NAME["odd key"]}, ${item} or ${index}; a literal `${` is written `$${`'
    )


def holes(value: Any, at: Path = ()) -> Iterator[tuple[Path, Hole]]:
    """The places of a JSON value where a string is not what it stands for, and what it stands for."""
    if isinstance(value, str):
        if "${" in value:
            yield at, parse(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from holes(item, (*at, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from holes(item, (*at, index))


def references(hole: Hole) -> tuple[Reference, ...]:
    """The references of a hole."""
    if isinstance(hole, Reference):
        return (hole,)
    if isinstance(hole, str):
        return ()
    return tuple([part for part in hole if isinstance(part, Reference)])


def follow(value: Any, path: Sequence[str | int]) -> Any:
    """The value at a path. Raises LookupError, whose text says what is missing."""
    for position, part in enumerate(path):
        try:
            if isinstance(value, dict):
                value = value[part]
                continue
            if isinstance(value, list) and isinstance(part, int):
                value = value[part]
                continue
        except (KeyError, IndexError):
            pass
        raise LookupError(f"{show(path[: position + 1])} does not exist: {_instead(value, path[:position])}")
    return value


def _instead(value: Any, before: Sequence[str | int]) -> str:
    what = f"the value at {show(before)}" if before else "the value"
    if isinstance(value, dict):
        keys = ", ".join(map(repr, list(value)[:12])) or "no keys"
        return f"{what} has {keys}"
    if isinstance(value, list):
        return f"{what} is a list of {len(value)}"
    return f"{what} is {'null' if value is None else type(value).__name__}"


def text_of(value: Any) -> str:
    """A value inside a longer string: a text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class Ref:
    """A reference in Python; `ref["key"]` and `ref[0]` go deeper into the value."""

    __slots__ = ("kind", "name", "owner", "path")

    def __init__(self, owner: object, kind: str, name: str, path: Path = ()) -> None:
        self.owner = owner
        self.kind = kind
        self.name = name
        self.path = path

    def __getitem__(self, part: str | int) -> Any:
        if isinstance(part, bool) or not isinstance(part, str | int):
            raise DefinitionError(
                f"{self!r}[{part!r}]: a reference is entered by a text or a whole number, "
                f"not {type(part).__name__}"
            )
        return type(self)(self.owner, self.kind, self.name, (*self.path, part))

    def __str__(self) -> str:
        return write(self.kind, self.name, self.path)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self!s}>"

    def __format__(self, spec: str) -> str:
        """In an f-string: marked, so that it is told from the same characters in a literal."""
        if spec:
            raise DefinitionError(
                f"{self!r} cannot be formatted with {spec!r}: its value is known only when the run is there"
            )
        return f"{_MARK}{self!s}{_MARK}"

    def __bool__(self) -> bool:
        raise DefinitionError(
            f'{self!r} has no value yet, so it cannot be tested: write the condition as `when="…"`'
        )

    def __iter__(self) -> NoReturn:
        raise DefinitionError(
            f"{self!r} has no value yet, so it cannot be looped over: use `wf.map(name, action, over=…)`"
        )


class ParamRef(Ref):
    """A parameter of the run."""

    __slots__ = ()


class StepRef(Ref):
    """The result of a step."""

    __slots__ = ()


class ItemRef(Ref):
    """The present item of a map."""

    __slots__ = ()


class PreviousRef(Ref):
    """The result of the turn before, in a loop."""

    __slots__ = ()


class IndexRef(Ref):
    """The position of the present item of a map, or of the present turn of a loop."""

    __slots__ = ()

    def __getitem__(self, part: str | int) -> NoReturn:
        raise DefinitionError(f"{self!r} is a number and has no fields")


def notation(text: str) -> str:
    """A Python literal in the notation of definitions: references of f-strings stay, all else is escaped."""
    if _MARK not in text:
        return escape(text)
    pieces = text.split(_MARK)
    if len(pieces) % 2 == 0:
        raise DefinitionError(
            f"the text {text!r} holds a NUL character, which Postgres cannot store: remove it"
        )
    written = ""
    for position, piece in enumerate(pieces):
        if position % 2:
            if _REFERENCE.fullmatch(piece) is None:
                raise DefinitionError(
                    f"the text {text!r} holds a NUL character, which Postgres cannot store: remove it"
                )
            written += piece
            continue
        tail = len(piece) - len(piece.rstrip("$")) if position < len(pieces) - 1 else 0
        written += escape(piece) + "$" * tail  # dollars right in front of a reference are doubled as well
    return written
