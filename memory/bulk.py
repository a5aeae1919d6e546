"""Files of memories: imports that go on where they were cut off.

The law: what a batch adds and how far the file is are one commit. So an import that is cut off anywhere is done again,
and nothing is in twice and nothing is lost. A file is known by its content; one that is through is not read again
unless that is asked for. A row that cannot be taken stops the import and is named, or is put aside and counted.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from psycopg.errors import DiskFull, OutOfMemory

from ..tasks.errors import BadRecord, ConfigurationError, ConflictError
from ..tasks.settings import Settings
from . import models
from .connections import Asker, MemoryDatabase, shared
from .embedders.protocol import Embedder
from .loading import AT_ONCE, Loader, Refused, bulk
from .readers import JsonLines, Parquet, Position, Row, Source
from .records import Target, Wrong
from .scope import Scope

# Of what an index of vectors is built in. Less than its graph takes makes the build several times as slow; it is taken
# as it is needed, so that small indexes take little.
_GRAPH_BYTES = 2_000_000_000
_PER_ROW = 500  # bytes of links and heads beside the vector


@dataclass(frozen=True, slots=True)
class Imported:
    """How far an import is: rows by what became of them.

    `added`; `replaced` (the key's old value is history now); `same` (it was there); `linked` (another key says the
    same); `expired` (its time was over); `bad` (put aside). `offset` of `size`: bytes of JSON Lines, rows of parquet.
    """

    name: str
    size: int
    offset: int = 0
    line: int = 0
    added: int = 0
    replaced: int = 0
    same: int = 0
    linked: int = 0
    expired: int = 0
    bad: int = 0
    rejected: int = 0  # bytes of the file of rejects
    finished_at: datetime | None = None  # of an earlier import, which left nothing to do
    rejects: Path | None = None

    @property
    def rows(self) -> int:
        """All rows that were read."""
        return self.added + self.replaced + self.same + self.linked + self.expired + self.bad


_STATE = (
    "offset",
    "line",
    "added",
    "replaced",
    "same",
    "linked",
    "expired",
    "bad",
    "rejected",
    "finished_at",
)

Telling = Callable[[Imported], None]


def import_jsonl(
    path: Path | str,
    embedder: Embedder,
    scope: Scope | None = None,
    *,
    skip_bad: bool = False,
    rejects: Path | str | None = None,
    again: bool = False,
    progress: Telling | None = None,
    settings: Settings | None = None,
    database: MemoryDatabase | None = None,
) -> Imported:
    """Import a file with a record a line; one that was cut off goes on, one that is through is left alone.

    embedder: whose vectors the rows have. A record with an `embedding` of this model keeps it, at length 1.
    skip_bad: put lines that cannot be taken into `rejects` (FILE.rejects.jsonl without it), and go on.
    again: from the beginning, whatever was imported of it. progress: called after each batch.

    Raises BadRecord with file, line and field; ConfigurationError, ConflictError where the same file is being imported
    by somebody else, EmbeddingError, CommunicationError.
    """
    return _Import(
        JsonLines(Path(path)), embedder, scope, settings, database, skip_bad, rejects, progress
    ).run(again)


def import_parquet(
    path: Path | str,
    embedder: Embedder,
    scope: Scope | None = None,
    *,
    skip_bad: bool = False,
    rejects: Path | str | None = None,
    again: bool = False,
    progress: Telling | None = None,
    settings: Settings | None = None,
    database: MemoryDatabase | None = None,
) -> Imported:
    """Import a parquet file, whose columns are the fields of records; the rest as `import_jsonl`.

    Raises MissingExtra without the extra `parquet` as well.
    """
    return _Import(Parquet(Path(path)), embedder, scope, settings, database, skip_bad, rejects, progress).run(
        again
    )


class _Import:
    """One file on its way into one scope."""

    def __init__(
        self,
        source: Source,
        embedder: Embedder,
        scope: Scope | None,
        settings: Settings | None,
        database: MemoryDatabase | None,
        skip_bad: bool,
        rejects: Path | str | None,
        progress: Telling | None,
    ) -> None:
        self._source = source
        self._scope = scope or Scope()
        self._database = database or shared(settings)
        self._embedder = embedder
        self._skip_bad = skip_bad
        self._rejects = (
            Path(rejects) if rejects else source.path.with_name(f"{source.path.name}.rejects.jsonl")
        )
        self._tell = progress or (lambda _: None)
        self._sql = bulk()

    def run(self, again: bool) -> Imported:
        """From where it was to the end."""
        model = models.need(self._database, self._scope.tenant, self._embedder.model, self._embedder.dims)
        self._given = {
            "tenant": self._scope.tenant, "agent": self._scope.agent, "model": model.id,
            "file": self._source.identity, "name": self._source.path.name, "size": self._source.size,
            "owner": uuid4(),
        }  # fmt: skip
        self._target = Target(model.name, model.dims, self._database.settings.value_max_bytes)
        self._loader = Loader(self._database, self._scope, self._embedder, model)
        state = self._begun(again)
        self._tell(state)
        if state.finished_at is not None:
            return state
        self._ask("unindex")
        with Aside(self._rejects, state.rejected) as aside:
            rows = self._source.rows(Position(state.offset, state.line), self._target)
            while batch := list(islice(rows, AT_ONCE)):
                state = self._batch(state, batch, aside)
                self._tell(state)
        self._index(model, state)
        return self._end(state)

    def _batch(self, state: Imported, batch: list[Row], aside: Aside) -> Imported:
        """Load a batch and advance. Raises BadRecord, with all in that stands before it, unless rows are put aside."""
        bad: dict[int, Wrong] = {row.line: row.wrong for row in batch if row.wrong is not None}
        while True:
            first = min(bad, default=None)
            stop = None if self._skip_bad else first
            rows = batch if stop is None else [row for row in batch if row.line < stop]
            try:
                new = self._load(state, rows, bad, aside) if rows else state
            except Refused as refused:  # its problem shows only beside the other rows
                bad[refused.n] = refused.error
                continue
            if stop is not None:
                raise BadRecord(self._source.path.name, stop, bad[stop])
            return new

    def _load(self, state: Imported, batch: list[Row], bad: Mapping[int, Wrong], aside: Aside) -> Imported:
        good = [(row.line, row.record) for row in batch if row.record is not None and row.line not in bad]
        put_aside = [(row, bad[row.line]) for row in batch if row.line in bad]
        written = aside.write(state.rejected, put_aside)
        found: list[Imported] = []

        def advance(asker: Asker, outcomes: Counter[str]) -> None:
            end = batch[-1].end
            new = replace(
                state,
                offset=end.offset,
                line=end.line,
                bad=state.bad + len(put_aside),
                rejected=written,
                **{name: getattr(state, name) + count for name, count in outcomes.items()},
            )
            found[:] = [self._advance(asker, state, new, False)]

        self._loader.load(good, advance)
        return found[0]

    def _begun(self, again: bool) -> Imported:
        if again:
            self._ask("restart")
        [row] = self._ask("begin")
        state = Imported(self._source.path.name, self._source.size, **dict(zip(_STATE, row, strict=True)))
        return replace(state, rejects=self._rejects if state.bad else None)

    def _end(self, state: Imported) -> Imported:
        done = replace(state, offset=self._source.size, rejects=self._rejects if state.bad else None)
        with self._database.writing(self._scope.tenant) as asker:
            self._advance(asker, state, done, True)
        self._tell(done)
        return done

    def _advance(self, asker: Asker, old: Imported, new: Imported, done: bool) -> Imported:
        given = {**self._given, **asdict(new), "from": old.offset, "done": done}
        if asker(self._sql["advance"], given).rowcount:
            return new
        rows = asker.rows(self._sql["look"], given)
        if not rows:
            raise ConflictError(f"{new.name} is being imported by somebody else now: let that import go on")
        return replace(new, **dict(zip(_STATE, rows[0], strict=True)))  # the commit before went unheard

    def _index(self, model: models.Model, state: Imported) -> None:
        """Build the index of vectors, if this import, or one that was cut off, began without it."""
        memory = min(_GRAPH_BYTES, max(67_108_864, (state.rows + 1000) * (2 * model.dims + _PER_ROW)))
        for workers in ("", "0"):
            try:
                with self._database.writing(self._scope.tenant) as asker:
                    local = "SELECT set_config(%s, %s, true)"
                    asker.connection.execute(local, ("maintenance_work_mem", f"{memory // 1024}kB"))
                    if workers:
                        asker.connection.execute(local, ("max_parallel_maintenance_workers", workers))
                    asker(self._sql["index"], self._given)
                return
            except (DiskFull, OutOfMemory):  # several processes share memory, of which containers have little
                if workers:
                    raise

    def _ask(self, name: str) -> list[tuple[Any, ...]]:
        return self._database.ask(self._scope.tenant, self._sql[name], self._given)


class Aside:
    """The file of rows that cannot be taken, up to what is committed of it."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        if size:
            self._open(size)

    def write(self, size: int, rows: list[tuple[Row, Wrong]]) -> int:
        """Write behind the first `size` bytes; answers with the new size."""
        if not rows:
            return size
        file = self._open(size)
        for row, error in rows:
            told = {"line": row.line, "problem": str(error), "record": row.raw}
            file.write(json.dumps(told, ensure_ascii=False).encode(errors="replace") + b"\n")
        file.flush()
        os.fsync(file.fileno())  # what the database says of it must not be more than there is
        return file.tell()

    def _open(self, size: int) -> BinaryIO:
        if self._file is None:
            try:
                self._file = self._path.open("r+b" if size else "wb")
            except OSError as error:
                raise ConfigurationError(
                    f"the rejects {self._path} cannot be written: {error.strerror}"
                ) from error
        self._file.truncate(size)
        self._file.seek(size)
        return self._file

    def __enter__(self) -> Aside:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
