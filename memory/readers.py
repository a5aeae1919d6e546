"""Files of memories, read from any place on: JSON Lines and parquet.

The law: a reader answers with each row's record, or with what is wrong with it, and with the position behind it;
begun at that position it goes on with the next row. A file is known by its content, not by its name or date: moved it
is the same, and changed in one byte it is another. No more than one batch of it is in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pydantic_core import from_json

from ..tasks.errors import ConfigurationError, EntryError, MissingExtra, ValueTooLarge
from .records import Record, Target, Wrong, parse

LINE_MAX = 67_108_864  # bytes: a text of 1 MB with a vector of 4,000 numbers takes a fiftieth
_ROWS = 1000  # of a parquet file at once


class Position(NamedTuple):
    """A place in a file: what is left of it begins here."""

    offset: int = 0  # bytes of JSON Lines, rows of parquet
    line: int = 0  # lines, or rows, before it


class Row(NamedTuple):
    """One row: `record`, or what is `wrong` with it."""

    line: int  # from 1
    end: Position
    record: Record | None
    wrong: Wrong | None
    raw: str  # for whoever has to mend it


class Source(Protocol):
    """A file of memories."""

    path: Path

    @property
    def size(self) -> int:
        """The offset of its end."""

    @property
    def identity(self) -> bytes:
        """The hash of its content."""

    def rows(self, begin: Position, target: Target) -> Iterator[Row]:
        """The rows from a position on."""


class JsonLines:
    """A record a line, as UTF-8. Empty lines are passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity = _hash(path)
        self.size = path.stat().st_size

    def rows(self, begin: Position, target: Target) -> Iterator[Row]:
        """The lines from a position on."""
        offset, number = begin
        with self.path.open("rb") as file:
            file.seek(offset)
            while raw := file.readline(LINE_MAX):
                offset += len(raw)
                number += 1
                too_long = len(raw) == LINE_MAX and not raw.endswith(b"\n")
                while too_long and (rest := file.readline(LINE_MAX)):
                    offset += len(rest)
                    if rest.endswith(b"\n"):
                        break
                bare = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                if not bare.strip():
                    continue
                wrong: Wrong | None = None
                if too_long:
                    wrong = EntryError("record", f"is longer than {LINE_MAX:,} bytes")
                record = None
                if wrong is None:
                    try:
                        record = parse(_loads(bare), target, number)
                    except (EntryError, ValueTooLarge) as error:
                        wrong = error
                text = "" if wrong is None else bare.decode(errors="replace").rstrip("\r\n")
                yield Row(number, Position(offset, number), record, wrong, text)


class Parquet:
    """A record a row, its fields as columns. Needs pyarrow: the extra `parquet`.

    Columns whose field says so (`trellis: json`, as `export` writes it) hold JSON; others hold what they say.
    """

    def __init__(self, path: Path) -> None:
        _, parquet = arrow()
        self.path = path
        self.identity = _hash(path)
        try:
            self._file = parquet.ParquetFile(path)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path} is no parquet file: {error}") from error
        self.size = int(self._file.metadata.num_rows)
        self._json = {
            field.name
            for field in self._file.schema_arrow
            if (field.metadata or {}).get(b"trellis") == b"json"
        }

    def rows(self, begin: Position, target: Target) -> Iterator[Row]:
        """The rows from a position on."""
        number = 0
        for group in range(self._file.num_row_groups):
            within = int(self._file.metadata.row_group(group).num_rows)
            if number + within <= begin.line:
                number += within
                continue
            for batch in self._file.iter_batches(_ROWS, row_groups=[group]):
                for data in self._dicts(batch):
                    number += 1
                    if number > begin.line:
                        yield self._row(number, data, target)

    def _dicts(self, batch: Any) -> Iterator[dict[str, Any]]:
        """The rows of a batch; vectors stay arrays, since a list of 384 floats costs more than all the rest."""
        columns: dict[str, Any] = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            vectors = name == "embedding" and hasattr(column, "value_lengths")
            columns[name] = _arrays(column) if vectors else column.to_pylist()
        for number in range(batch.num_rows):
            yield {name: column[number] for name, column in columns.items()}

    def _row(self, number: int, data: dict[str, Any], target: Target) -> Row:
        end = Position(number, number)
        try:
            for name in self._json & data.keys():
                if data[name] is not None:
                    data[name] = _loads(data[name].encode(), name)
            return Row(number, end, parse(data, target, number), None, "")
        except (EntryError, ValueTooLarge) as error:
            shown = {name: value for name, value in data.items() if name != "embedding" and value is not None}
            return Row(number, end, None, error, json.dumps(shown, default=str, ensure_ascii=False))


def arrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet. Raises MissingExtra."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("parquet", "Reading and writing parquet") from error
    return pyarrow, parquet


def _arrays(column: Any) -> list[Any]:
    """A column of lists as arrays; None where there is none."""
    values = column.flatten().to_numpy(zero_copy_only=False)
    found, begin = [], 0
    for length in column.value_lengths().to_pylist():
        found.append(None if length is None else values[begin : begin + length])
        begin += length or 0
    return found


def _loads(text: bytes, field: str = "record") -> Any:
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise EntryError(
            field, f"is no JSON: {str(error).replace(' at line 1 column ', ' at character ')}"
        ) from None


def _hash(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
