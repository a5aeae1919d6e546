"""Definitions in files: YAML or JSON, with a published JSON Schema.

The law: a file says the same as the Python API and has the same digest. Texts are what they look like:
YAML is read by its 1.2 core rules, so that `no` is a text and 2013-01-01 is not a date. A key that is
given twice is refused. Errors name file and line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

import yaml

from ..tasks.errors import DefinitionError
from .definition import Workflow
from .parameters import DIALECT
from .parsing import Place, spec_of
from .registry import Catalogue, actions
from .spec import WorkflowSpec

Format = Literal["yaml", "json"]

SCHEMA_ID = "urn:celery-trellis:schema:workflow:1"
_MAX_NODES = 3_000_000  # aliases may multiply: ten lines can stand for a billion values

_ODD_BREAKS = re.compile("[\x85\u2028\u2029\ufeff]")

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):  # type: ignore[misc]  # one of two bases, chosen when imported
    """Only what JSON has: null, true, false, whole numbers and decimals; all else is text."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that a reader of YAML 1.1 or 1.2 would not take for texts."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Readers fold these as line breaks, or drop them, unless they are written as escapes.
    style = '"' if _ODD_BREAKS.search(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    for _class in (_Loader, _Dumper):  # what the one would read as a number, the other has to quote
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def load(path: str | Path) -> WorkflowSpec:
    """Read a definition. Raises DefinitionError with file and line for what is wrong with its form."""
    file = Path(path)
    return loads(_read(file), name=str(path), form="json" if file.suffix.lower() == ".json" else "yaml")


def loads(text: str, *, name: str = "<text>", form: Format = "yaml") -> WorkflowSpec:
    """The same from a text; `name` stands for the file's name in errors."""
    content = _parse_json(text, name) if form == "json" else _parse_yaml(text, name)
    return spec_of(content, locate=lambda place: _location(text, name, place))


def workflow(path: str | Path, *, catalogue: Catalogue = actions) -> Workflow:
    """Read and check a whole definition. Raises DefinitionError with file and line."""
    spec = load(path)
    found = Workflow.from_spec(spec, catalogue=catalogue)
    try:
        found.validate()
    except DefinitionError as error:
        place: Place = ("steps", error.step) if error.step is not None else ()
        error.args = (f"{_location(_read(Path(path)), str(path), place)}{error}",)
        raise
    return found


def dump(spec: WorkflowSpec, form: Format = "yaml") -> str:
    """A definition as a text for a file; what has its default value is left out."""
    content = spec.model_dump(mode="json", exclude_defaults=True)
    if form == "json":
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


def schema() -> dict[str, Any]:
    """The JSON Schema of definition files, for editors and other tools."""
    found = WorkflowSpec.model_json_schema()
    return {
        "$schema": DIALECT,
        "$id": SCHEMA_ID,
        **found,
        "title": "Trellis workflow",
        "description": "A durable workflow: its steps, their inputs and how they depend on each other.",
    }


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DefinitionError(f"the definition {str(file)!r} cannot be read: {reason}") from error


def _parse_json(text: str, name: str) -> Any:
    def refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise DefinitionError(
                    f"{name}: the key {key!r} is given twice in one object: remove one of them"
                )
            found[key] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=refuse_twice)
    except json.JSONDecodeError as error:
        raise DefinitionError(
            f"{name}:{error.lineno}: not JSON: {error.msg} (column {error.colno})"
        ) from error


def _parse_yaml(text: str, name: str) -> Any:
    node = _compose(text, name)
    return None if node is None else _Builder(name).value(node)


def _compose(text: str, name: str) -> Any:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        hint = (
            '; a reference inside [ ] or { } needs quotes: {url: "${params.url}"}'
            if _is_bare(text, mark)
            else ""
        )
        raise DefinitionError(f"{name}{line}: not YAML: {error.problem}{hint}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise DefinitionError(f"{name}: not YAML: {error}") from error


def _is_bare(text: str, mark: Any) -> bool:
    lines = text.splitlines()
    return mark is not None and mark.line < len(lines) and "${" in lines[mark.line]


class _Builder:
    """Makes plain data of YAML nodes; refuses what JSON does not have."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0
        self._open: set[int] = set()

    def value(self, node: Any) -> Any:
        """The value of a node."""
        self._count += 1
        if self._count > _MAX_NODES:
            self._refuse(node, f"its aliases stand for more than {_MAX_NODES:,} values: write them out")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if id(node) in self._open:
            self._refuse(node, "an alias stands inside its own anchor")
        self._open.add(id(node))
        found = (
            self._mapping(node)
            if isinstance(node, yaml.MappingNode)
            else [self.value(each) for each in node.value]
        )
        self._open.discard(id(node))
        return found

    def _mapping(self, node: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._refuse(key_node, "a key is a text")
            key = key_node.value
            if key == "<<" and not key_node.style:  # in quotes it is a key like any other
                self._refuse(key_node, "merge keys (<<) are not read: write the fields out")
            if key in found:
                self._refuse(
                    key_node,
                    f"{key!r} is given twice, first in line {lines[key]}: remove or rename one of them",
                )
            lines[key] = key_node.start_mark.line + 1
            found[key] = self.value(value_node)
        return found

    def _scalar(self, node: Any) -> Any:
        tag = node.tag.rpartition(":")[2]
        text = node.value
        if tag == "str":
            return text
        if tag == "null":
            return None
        if tag == "bool":
            return text.lower() == "true"
        if tag not in ("int", "float"):
            self._refuse(
                node, f"the tag {node.tag!r} is not read: write a text, a number, true, false or null"
            )
        try:
            return int(text) if tag == "int" else float(text)
        except ValueError as error:
            self._refuse(node, str(error))

    def _refuse(self, node: Any, problem: str) -> NoReturn:
        raise DefinitionError(f"{self._name}:{node.start_mark.line + 1}: {problem}")


def _location(text: str, name: str, place: Place) -> str:
    """`file:line: ` of a place in the data, or of the nearest place around it that is there."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError):  # JSON with tabs, for one, is not YAML
        return f"{name}: "
    line = 0 if node is None else node.start_mark.line
    for part in place:
        found = next(_entries(node, part), None)
        if found is None:
            break
        line, node = found
    return f"{name}:{line + 1}: "


def _entries(node: Any, part: int | str) -> Iterator[tuple[int, Any]]:
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            if key_node.value == str(part):
                yield key_node.start_mark.line, value_node
    elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        yield node.value[part].start_mark.line, node.value[part]
