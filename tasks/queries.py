"""Named SQL blocks: one file of statements, read once.

The law: a statement lives in a .sql file under its name, with the reason for its shape beside it; Python
refers to it by that name and never assembles SQL from strings.
"""

from __future__ import annotations

import re
from importlib import resources
from types import MappingProxyType

_HEADER = re.compile(r"^-- name: (?P<name>\w+)\s*$", re.MULTILINE)


def load(package: str, file: str) -> MappingProxyType[str, bytes]:
    """The blocks of `file` in `package` by name. Each starts with a line `-- name: verb`."""
    text = resources.files(package).joinpath(file).read_text(encoding="utf-8")
    parts = _HEADER.split(text)[1:]
    blocks = {name: _bare(body) for name, body in zip(parts[::2], parts[1::2], strict=True)}
    if len(blocks) != len(parts) // 2:
        raise ValueError(f"{package}/{file}: a name stands twice")
    return MappingProxyType(blocks)


def _bare(body: str) -> bytes:
    """The statement without comments and indentation: they are for readers, not for the wire.

    psycopg remembers how to prepare a statement only up to 4,096 bytes; `complete` is longer with them, and
    working it out again costs 0.2 ms a call.
    """
    lines = (" ".join(line.split("-- ", 1)[0].split()) for line in body.splitlines())
    return "\n".join(line for line in lines if line).encode()
