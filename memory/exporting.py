"""Memories as a file.

The law: what is imported from an export is what was exported: keys, values, metadata, importance, times, source,
trust, the order of episodes, links, and with `vectors` the vectors to the last bit. Neither tenant nor agent stands in
the file, so it goes into any scope. The file appears under its name when it is whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO
from uuid import UUID

from psycopg import RawServerCursor

from ..tasks.errors import ConfigurationError, EntryError
from ..tasks.settings import Settings
from .connections import MemoryDatabase, shared
from .entries import Entry
from .loading import bulk
from .readers import arrow
from .records import FIELDS, document
from .scope import Scope

Form = Literal["jsonl", "parquet"]

_AT_ONCE = 1000  # rows in memory
_KINDS = ("fact", "episode")


class _Writer(Protocol):
    def write(self, records: list[dict[str, Any]]) -> None:
        """Write some records."""


def export(
    path: Path | str,
    scope: Scope | None = None,
    *,
    form: Form | None = None,
    kinds: tuple[str, ...] = _KINDS,
    vectors: bool = False,
    history: bool = False,
    settings: Settings | None = None,
    database: MemoryDatabase | None = None,
) -> int:
    """Write the memories of one tenant's agent (or of the shared scope) to a file; answers with how many.

    form: "jsonl" (a record a line), or "parquet" (needs the extra of that name); by the file's suffix without it.
    kinds: "fact", "episode". vectors: with their embeddings. history: with the values that were replaced.

    Raises EntryError, ConfigurationError where the file cannot be written, MissingExtra, CommunicationError.
    """
    target = Path(path)
    given = form or ("parquet" if target.suffix.lower() == ".parquet" else "jsonl")
    if given not in _WRITERS:
        raise EntryError("form", f"is {given!r}: needs one of {', '.join(_WRITERS)}")
    strange = set(kinds) - set(_KINDS)
    if strange or not kinds:
        raise EntryError("kinds", f"has {sorted(strange)}: needs {', '.join(_KINDS)}, or one of them")
    part = target.with_name(f"{target.name}.part")
    records = _records(database or shared(settings), scope or Scope(), kinds, vectors, history)
    count = 0
    try:
        with _WRITERS[given](part) as writer:
            while some := list(islice(records, _AT_ONCE)):
                writer.write(some)
                count += len(some)
        part.replace(target)
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    return count


def write_lines(records: Iterator[dict[str, Any]], out: TextIO) -> int:
    """Write records as JSON Lines; how many."""
    count = 0
    for record in records:
        out.write(_line(record))
        count += 1
    return count


def exported(
    scope: Scope,
    *,
    kinds: tuple[str, ...] = _KINDS,
    vectors: bool = False,
    history: bool = False,
    settings: Settings | None = None,
    database: MemoryDatabase | None = None,
) -> Iterator[dict[str, Any]]:
    """The records of a scope, as `export` writes them."""
    return _records(database or shared(settings), scope, kinds, vectors, history)


def _records(
    database: MemoryDatabase, scope: Scope, kinds: tuple[str, ...], vectors: bool, history: bool
) -> Iterator[dict[str, Any]]:
    given = {
        "tenant": scope.tenant, "agent": scope.agent, "kinds": list(kinds), "vectors": vectors, "history": history,
    }  # fmt: skip
    with database.writing(scope.tenant) as asker:
        for name in ("exported", "exported_links"):
            statement = bulk()[name]
            with RawServerCursor(asker.connection, name) as cursor:
                cursor.itersize = _AT_ONCE
                cursor.execute(statement.text, statement.values(given))
                for row in cursor:
                    vector = None if row[21] is None else json.loads(row[21])
                    yield document(Entry.of(row), row[19], row[20], vector)


# --- forms


class _Lines:
    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, records: list[dict[str, Any]]) -> None:
        self._out.writelines(map(_line, records))


@contextmanager
def _lines(path: Path) -> Iterator[_Writer]:
    with path.open("w", encoding="utf-8") as file:
        yield _Lines(file)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, separators=(", ", ": "), default=_plain) + "\n"


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    assert isinstance(value, UUID)
    return str(value)


class _Columns:
    """Parquet: the fields as columns; value and metadata as JSON, which their columns say."""

    def __init__(self, path: Path) -> None:
        pa, self._parquet = arrow()
        self._table = pa.Table
        types = {
            "importance": pa.float64(), "trust": pa.int8(), "seq": pa.int64(), "step": pa.int32(),
            "embedding": pa.list_(pa.float32()),
            **dict.fromkeys(("at", "valid_from", "valid_to", "expires_at"), pa.timestamp("us", tz="UTC")),
        }  # fmt: skip
        said = {name: {"trellis": "json"} for name in ("value", "metadata")}
        self._schema = pa.schema(
            [pa.field(name, types.get(name, pa.string()), metadata=said.get(name)) for name in FIELDS]
        )
        self.file = self._parquet.ParquetWriter(path, self._schema, compression="zstd")

    def write(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            for name in ("value", "metadata"):
                if name in record:
                    record[name] = json.dumps(record[name], ensure_ascii=False)
            if "run_id" in record:
                record["run_id"] = str(record["run_id"])
        self.file.write_table(self._table.from_pylist(records, schema=self._schema))


@contextmanager
def _columns(path: Path) -> Iterator[_Writer]:
    writer = _Columns(path)
    with writer.file:
        yield writer


_WRITERS: dict[str, Any] = {"jsonl": _lines, "parquet": _columns}
