"""Batches of records on their way into the tables.

The law: a batch is in with all of its rows, or with none, and whatever the caller wants to know of it is written in the
same transaction. It does what `store` and `append` would have done with its records one by one: what is trusted less
never stands in the place of what is trusted more, what a linked key said is history, and a link is only where no search
tells the two apart. But for two things: texts that are merely alike are not looked for (each would cost a search, and a
million rows are loaded in the time of some thousand), and what was recalled is not asked, since a file was written by
somebody. An entry of an episode that is there, trusted less, is refused, as one with another value is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import Any
from uuid import UUID, uuid4

from psycopg.errors import InsufficientPrivilege, UniqueViolation

from ..tasks.errors import ConfigurationError, ConflictError, EntryError, ModelMismatch
from ..tasks.queries import Numbered, load
from .base import in_context
from .connections import Asker, MemoryDatabase, statements
from .covering import covers
from .embedders.protocol import Embedder
from .going import EPISODE_LOCK, hand_back, sql
from .halves import Half
from .models import Model
from .records import Record
from .scope import Scope

AT_ONCE = 1_000  # rows of one transaction
EMBED = 256  # texts of one call of the embedder
TRIES = 5

_COPY = load("trellis.memory.sql", "bulk.sql")["copy"]
_TYPES = (
    "int8", "uuid", "text", "text", "text", "text", "bytea", "halfvec", "text", "float4", "text", "int2", "text",
    "text", "int8", "timestamptz", "timestamptz", "timestamptz", "timestamptz", "uuid", "int4", "text", "text", "int8",
    "text", "timestamptz",
)  # fmt: skip
_LAST = 2**63 - 1


class Refused(Exception):  # the caller tells where the row stands
    """Row `n` of a batch cannot be taken."""

    def __init__(self, n: int, error: EntryError) -> None:
        self.n = n
        self.error = error
        super().__init__(n)


class _Moved(Exception):
    """Somebody changed what the batch counted on while it was embedded."""


@dataclass(slots=True)
class _Staged:
    """A record with what the batch adds to it."""

    n: int
    record: Record
    id: UUID
    valid_to: datetime | None
    seq: int | None = None
    before: tuple[str, str] = ("", "")  # the texts of the two entries before it, the newer one first
    twin: int | None = None  # an earlier row of the batch that says the same
    vector: Half | None = None

    def row(self) -> tuple[Any, ...]:
        record, each = self.record, self.record.draft
        run = None if each.run is None else UUID(each.run)
        return (
            self.n, self.id, record.kind, each.key, each.json, each.text, each.hash, self.vector, each.metadata,
            each.importance, each.source, each.trust, each.actor, record.episode, self.seq, each.at, record.valid_from,
            self.valid_to, record.expires_at, run, each.step, *self.before, self.twin, record.linked,
            self.said_at,
        )  # fmt: skip

    @property
    def said_at(self) -> datetime | None:
        """The time by which it has to be found, if it is not linked as the file says."""
        return None if self.record.linked is not None else self.record.draft.said_at


Before = dict[
    str, tuple[list[str], int]
]  # an episode's texts before the batch, newest first, and its last number


@cache
def bulk() -> dict[str, Numbered]:
    """The statements of bulk.sql."""
    return statements("bulk.sql", "links.sql")


class Loader:
    """Loads batches into one scope, for one model."""

    def __init__(self, database: MemoryDatabase, scope: Scope, embedder: Embedder, model: Model) -> None:
        self._database = database
        self._scope = scope
        self._embedder = embedder
        self._given = {"tenant": scope.tenant, "agent": scope.agent, "model": model.id}
        self._sql = bulk()
        self._memory = sql(embedder.dims)

    def load(
        self, records: Sequence[tuple[int, Record]], also: Callable[[Asker, Counter[str]], None]
    ) -> Counter[str]:
        """Load a batch, and do `also` in its transaction; how many were added, replaced, same, linked and expired.

        Raises Refused for a row that cannot be taken: then none was. EmbeddingError, ConflictError.
        """
        for attempt in range(TRIES):
            found, gone = _arranged(records)
            before = self._before(found)
            _placed(found, before)
            self._embed(found, known=attempt == 0)
            try:
                return self._database.again(partial(self._write, found, before, gone, also))
            except (
                _Moved,
                UniqueViolation,
            ):  # somebody stored the same key or appended meanwhile: look again
                continue
        raise ConflictError(
            f"others store the same memories all the time: {TRIES} attempts did not get between them"
        )

    def _write(
        self,
        staged: Sequence[_Staged],
        before: Before,
        gone: int,
        also: Callable[[Asker, Counter[str]], None],
    ) -> Counter[str]:
        with self._database.writing(self._scope.tenant) as asker:
            self._lock(asker, before)
            if self._before(staged, asker) != before:
                raise _Moved
            self._copy(asker, staged)
            self._match(asker)
            taken = asker.rows(self._sql["taken"], {})
            if taken:
                raise Refused(taken[0][0], EntryError("key", "is that of another entry of an episode"))
            if asker.rows(self._sql["naked"], {}):
                raise _Moved
            told = asker.rows(self._sql["refresh"], self._given)
            told += asker.rows(self._sql["refresh_links"], self._given)
            unlinked = asker.rows(self._sql["close_links"], self._given)
            asker(self._sql["link"], self._given)
            closed = asker.rows(self._sql["close"], self._given)
            for rows, staying in ((closed, False), (told, True)):
                if rows:
                    ids = [row[0] for row in rows]
                    asker(self._memory["promote"], {**self._given, "ids": ids, "staying": staying})
            hand_back(asker, self._scope.tenant, unlinked + [row[1:] for row in told + closed])
            asker(self._sql["insert"], self._given)
            asker(self._sql["actors"], self._given)
            outcomes: Counter[str] = Counter(dict(asker.rows(self._sql["outcomes"], {})))
            outcomes["expired"] += gone
            also(asker, outcomes)
        return outcomes

    def _copy(self, asker: Asker, staged: Sequence[_Staged]) -> None:
        try:
            asker(self._sql["stage"], {})
        except InsufficientPrivilege as error:
            raise ConfigurationError(
                "an import needs a temporary table: as the database's owner run GRANT TEMPORARY ON DATABASE … TO "
                f"trellis_memory ({str(error).strip()})"
            ) from error
        with asker.connection.cursor() as cursor, cursor.copy(_COPY) as copy:
            copy.set_types(_TYPES)
            for each in staged:
                copy.write_row(each.row())

    def _match(self, asker: Asker) -> None:
        """What becomes of each row; a new key of a new text has no outcome, and is inserted."""
        for name in ("match_keys", "match_past", "match_links", "match_texts", "match_named", "match_twins"):
            asker(self._sql[name], self._given)

    def _lock(self, asker: Asker, before: Before) -> None:
        for episode in sorted(before):
            name = "\n".join((self._scope.tenant, self._scope.agent, episode))
            asker(self._memory["lock"], {"level": EPISODE_LOCK, "what": name})

    def _before(self, staged: Sequence[_Staged], asker: Asker | None = None) -> Before:
        firsts: dict[str, int] = {}
        for each in staged:
            if each.record.episode is not None:
                seq = _LAST if each.record.seq is None else each.record.seq
                firsts[each.record.episode] = min(seq, firsts.get(each.record.episode, _LAST))
        if not firsts:
            return {}
        given = {**self._given, "episodes": list(firsts), "firsts": list(firsts.values())}
        if asker is None:
            rows = self._database.ask(self._scope.tenant, self._sql["before"], given)
        else:
            rows = asker.rows(self._sql["before"], given)
        found: Before = {}
        for episode, text, last in rows:
            texts, _ = found.setdefault(episode, ([], last or 0))
            if text is not None:
                texts.append(text)
        return found

    def _embed(self, staged: Sequence[_Staged], known: bool) -> None:
        """A vector for each row that has a text: its own, or one that is made now.

        known: leave out what needs none, as far as can be seen: what is there already, and links.
        """
        bare = []
        for each in staged:
            if each.record.vector is not None:
                each.vector = Half(each.record.vector)
            elif each.record.draft.text.strip() and each.vector is None:
                bare.append(each)
        if not bare:
            return
        there = self._known(bare) if known else set()
        wanted = [each for each in bare if each.n not in there]
        for start in range(0, len(wanted), EMBED):
            part = wanted[start : start + EMBED]
            texts = [in_context(each.record.draft.text, each.before[0]) for each in part]
            made = self._embedder.embed(texts)
            if made.shape != (len(part), self._embedder.dims):
                size = made.shape[-1] if made.ndim else 0
                raise ModelMismatch(self._embedder.model, self._embedder.dims, size)
            for each, vector in zip(part, made, strict=True):
                each.vector = Half(vector)

    def _known(self, bare: Sequence[_Staged]) -> set[int]:
        links = {each.n for each in bare if each.twin is not None or each.record.linked is not None}
        live = [each for each in bare if each.valid_to is None]
        given = {
            **self._given,
            "numbers": [each.n for each in live],
            "kinds": [each.record.kind for each in live],
            "keys": [each.record.draft.key for each in live],
            "values": [each.record.draft.json for each in live],
            "texts": [each.record.draft.text for each in live],
            "trusts": [each.record.draft.trust for each in live],
        }
        return links | {row[0] for row in self._database.ask(self._scope.tenant, self._sql["known"], given)}


def _arranged(records: Sequence[tuple[int, Record]]) -> tuple[list[_Staged], int]:
    """The rows of a batch, and how many are none, since their time is over: pure but for new ids.

    Of several values of one key the last one holds, and the others are its history. The same value again is one row.
    Of several keys with one text the first that covers the others is the row.
    """
    now = datetime.now(UTC)
    alive = [(n, each) for n, each in records if each.expires_at is None or each.expires_at > now]
    staged: list[_Staged] = []
    live: dict[tuple[str, str], _Staged] = {}
    for n, record in alive:
        new = _Staged(n, record, uuid4(), record.valid_to, record.seq)
        if record.valid_to is None:
            key = (record.kind, record.draft.key)
            old = live.get(key)
            if old is not None and _says_the_same(old.record, record):
                old.record = _told_anew(old.record, record)
                continue
            if old is not None and record.kind == "episode":
                raise Refused(n, EntryError("key", f"is that of line {old.n:,} as well"))
            if old is not None:
                old.valid_to = now + timedelta(microseconds=len(staged))  # in the order of the file
            live[key] = new
        staged.append(new)
    _twinned([each for each in staged if each.record.kind == "fact" and each.valid_to is None])
    return staged, len(records) - len(alive)


def _says_the_same(old: Record, new: Record) -> bool:
    """What is trusted less says nothing in the place of what is trusted more."""
    same = (old.draft.json, old.draft.text, old.episode) == (new.draft.json, new.draft.text, new.episode)
    return same and old.draft.trust >= new.draft.trust


def _told_anew(old: Record, new: Record) -> Record:
    """The old one, with what the same value again says of it."""
    told = replace(old.draft, metadata=new.draft.metadata, importance=new.draft.importance)
    vector = new.vector if old.vector is None else old.vector
    return replace(old, draft=told, expires_at=new.expires_at, vector=vector)


def _twinned(facts: Sequence[_Staged]) -> None:
    """Tell each fact the earlier one that has its text, or that it names, and covers it; that one is linked to none."""
    named = {each.record.draft.key: each for each in facts}
    numbered = {each.n: each for each in facts}
    rows: dict[bytes, list[_Staged]] = {}
    for each in facts:
        candidates = list(rows.setdefault(each.record.draft.hash, []))
        said = named.get(each.record.linked or "")
        if said is not None and said.n < each.n:
            candidates.append(said if said.twin is None else numbered[said.twin])
        for row in candidates:
            if covers(row.record.draft, each.record.draft, each.said_at):
                each.twin = row.n
                break
        else:
            rows[each.record.draft.hash].append(each)


def _placed(staged: Sequence[_Staged], before: Before) -> None:
    """Give entries without a number the next one of their episode, and each the texts before it."""
    texts = {episode: list(found) for episode, (found, _) in before.items()}
    last = {episode: number for episode, (_, number) in before.items()}
    for each in staged:
        episode = each.record.episode
        if episode is None:
            continue
        if each.seq is None:
            each.seq = last[episode] + 1
        last[episode] = max(last[episode], each.seq)
    for each in sorted(staged, key=lambda each: (each.record.episode or "", each.seq or 0)):
        episode = each.record.episode
        if episode is not None:
            earlier = [*texts[episode], "", ""]
            each.before = (earlier[0], earlier[1])
            texts[episode].insert(0, each.record.draft.text)
