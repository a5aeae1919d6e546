"""Named SQL blocks: one file of statements, read once.

The law: a statement lives in a .sql file under its name, with the reason for its shape beside it; Python
refers to it by that name and never assembles SQL from strings. What several statements have in common is a block
`part_…`, which they name in braces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import Any, NamedTuple

_HEADER = re.compile(r"^-- name: (?P<name>\w+)\s*$", re.MULTILINE)

_PART = "part_"
_DEPTH = 3  # a part may name parts

_PLACEHOLDER = re.compile(rb"%\((\w+)\)s")


def load(package: str, file: str, **parts: bytes) -> MappingProxyType[str, bytes]:
    """The statements of `file` in `package` by name. Each starts with a line `-- name: verb`.

    parts: what else stands for a name in braces.
    """
    blocks = _blocks(package, file)
    known = {**{name: text for name, text in blocks.items() if name.startswith(_PART)}, **parts}
    return MappingProxyType(
        {name: _filled(text, known) for name, text in blocks.items() if not name.startswith(_PART)}
    )


def parts_of(package: str, file: str) -> MappingProxyType[str, bytes]:
    """The parts of `file` as they stand there, for statements of another file."""
    return MappingProxyType({n: text for n, text in _blocks(package, file).items() if n.startswith(_PART)})


def _blocks(package: str, file: str) -> dict[str, bytes]:
    text = resources.files(package).joinpath(file).read_text(encoding="utf-8")
    split = _HEADER.split(text)[1:]
    blocks = {name: _bare(body) for name, body in zip(split[::2], split[1::2], strict=True)}
    if len(blocks) != len(split) // 2:
        raise ValueError(f"{package}/{file}: a name stands twice")
    return blocks


def _filled(text: bytes, parts: Mapping[str, bytes]) -> bytes:
    for _ in range(_DEPTH):
        for name, part in parts.items():
            text = text.replace(b"{%s}" % name.encode(), part)
    return text


class Numbered(NamedTuple):
    """A statement as Postgres takes it, for a psycopg.RawCursor: `$1` for the first of the names."""

    text: bytes
    names: tuple[str, ...]

    def values(self, arguments: Mapping[str, Any]) -> list[Any]:
        """The values in the statement's order. Raises KeyError where one is missing."""
        return [arguments[name] for name in self.names]


def numbered(statement: bytes) -> Numbered:
    """A statement with its `%(name)s` numbered.

    Done once and here: psycopg remembers it only for statements of up to 4,096 bytes, and else takes them apart at
    each call (0.2 ms for `complete`).
    """
    names: dict[bytes, int] = {}
    text = _PLACEHOLDER.sub(lambda found: b"$%d" % names.setdefault(found[1], len(names) + 1), statement)
    return Numbered(text.replace(b"%%", b"%"), tuple(name.decode() for name in names))


def _bare(body: str) -> bytes:
    """The statement without comments and indentation: they are for readers, not for the wire."""
    lines = (" ".join(line.split("-- ", 1)[0].split()) for line in body.splitlines())
    return "\n".join(line for line in lines if line).encode()
