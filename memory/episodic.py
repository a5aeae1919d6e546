"""EpisodicMemory: what happened, in order.

The law: entries of an episode are numbered as they were appended, whoever appends. An entry is found by its own words
first, and by those of the two entries before it, of the same episode of the same agent; nothing that comes later
changes it. When an entry goes, what it lent to the two behind it goes with it. An entry that was given a key is what
the key has until another value comes under it: that one is appended, and the old one is history.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Unpack
from uuid import UUID, uuid4

from psycopg.errors import UniqueViolation

from .aio import threaded
from .base import in_context
from .connections import Asker
from .drafts import Draft, Options, draft
from .entries import Entry, Filters, Json, Seconds, Stored, limit_of, seconds_of
from .fusion import Fusing
from .going import EPISODE_LOCK, KEY_LOCK
from .halves import Half
from .recalled import asked, kept
from .scope import NAME_BYTES
from .texts import name_of

TRIES = 4  # times that an entry is embedded anew because others were appended meanwhile
AT_ONCE = 500  # entries of one transaction

_Last = list[tuple[UUID, int, str]]  # the last two entries of an episode, newest first


class EpisodicMemory(Fusing):
    """The episodes of a tenant's agent: conversations, runs, whatever has an order.

    embedder: whose vectors these are. scope: whose episodes; those that agents share are read as well with
    `include_shared`. capacity: entries of this scope at most; the least used go first. ttl: seconds for which they
    live.
    """

    kinds = ("episode",)

    def append(self, episode: str, value: Json, **options: Unpack[Options]) -> Stored:
        """Add what happened to the end of an episode, with what `Options` says of it; `at` is its time.

        Raises EntryError or ValueTooLarge for what cannot be kept, EmbeddingError, ModelMismatch.
        """
        return self.extend(episode, [(value, options)])[0]

    def extend(self, episode: str, entries: Iterable[tuple[Json, Options]]) -> list[Stored]:
        """Add many, in order; faster than one by one, and some hundred at a time become visible together.

        What says nothing but what was recalled is not added: its outcome is `recalled`.
        Raises as `append`; then nothing of those that follow is added.
        """
        name_of("episode", episode, NAME_BYTES)
        most = self.database.settings.value_max_bytes
        wanted: list[tuple[UUID, Draft]] = []
        for value, options in entries:
            new = uuid4()
            wanted.append((new, draft(str(new), value, most, self.ttl, options)))
        stored: list[Stored] = []
        for start in range(0, len(wanted), AT_ONCE):
            stored += self._append(episode, wanted[start : start + AT_ONCE])
        added = [each.id for each in stored if each.id is not None]
        if added:
            self._evict(added[-1], len(added))
        return stored

    def store(
        self, key: str, value: Json, *, episode: str | None = None, **options: Unpack[Options]
    ) -> Stored:
        """Append an entry that has a key of its own: `retrieve(key)` answers it, and the same value again is no second.

        Another value under the key is appended and takes its place; the old one is history. episode: to which it
        belongs; without it, to one that has the key for a name. Raises as `append`.
        """
        name = key if episode is None else name_of("episode", episode, NAME_BYTES)
        new = uuid4(), draft(key, value, self.database.settings.value_max_bytes, self.ttl, options)
        try:
            [stored] = self._append(name, [new])
        except UniqueViolation:  # an import, which takes no lock on a key, has stored it meanwhile
            [stored] = self._append(name, [new])
        if stored.id == new[0]:
            self._evict(new[0])
        return stored

    def recent(
        self,
        limit: int = 10,
        *,
        within: Seconds | None = None,
        filters: Filters | None = None,
        include_shared: bool | None = None,
    ) -> list[Entry]:
        """The last entries, newest first; of the last `within` seconds, and of one episode or run by the filters."""
        seconds = seconds_of("within", within)
        limit_of(limit)
        _, reach, _ = self._asked("", limit, filters, include_shared)
        if reach is None:
            return []
        if seconds is not None:
            since = datetime.now(UTC) - timedelta(seconds=seconds)
            reach["since"] = since if reach["since"] is None else max(reach["since"], since)
        return [hit.entry for hit in self._newest(reach, limit)]

    astore = threaded(store)
    aappend = threaded(append)
    aextend = threaded(extend)
    arecent = threaded(recent)

    def _append(self, episode: str, wanted: Sequence[tuple[UUID, Draft]]) -> list[Stored]:
        new_ones = self._new(wanted)
        stored = {new: Stored(each.key, new, "added") for new, each in new_ones}
        model = self._needed()
        given = {**self._own(), "model": model.id, "episode": episode, "kind": "episode"}
        for attempt in range(TRIES + 1):
            last: _Last = self._last(given) if attempt < TRIES else []
            vectors = self._embedded(new_ones, last)
            write = partial(self._write, given, new_ones, vectors, last, attempt == TRIES, stored)
            if not new_ones or self.database.again(write):
                break
        return [stored.get(new, Stored(each.key, None, "recalled")) for new, each in wanted]

    def _new(self, wanted: Sequence[tuple[UUID, Draft]]) -> list[tuple[UUID, Draft]]:
        """Those that say more than what was recalled."""
        lines = asked(each for _, each in wanted)
        known: dict[bytes, set[str]] = {}
        if lines:
            with self.database.writing(self.scope.tenant) as asker:
                known = self._known(asker, lines)
        new = kept([each for _, each in wanted], known)
        return [each for each, is_new in zip(wanted, new, strict=True) if is_new]

    def _last(self, given: dict[str, Any]) -> _Last:
        return [(row[0], row[1], row[2]) for row in self._ask("last", given)]

    def _embedded(self, new: Sequence[tuple[UUID, Draft]], last: _Last) -> list[Half | None]:
        texts, before = [], last[0][2] if last else ""
        for _, each in new:
            texts.append(in_context(each.text, before))
            before = each.text
        spoken = [n for n, (_, each) in enumerate(new) if each.text.strip()]
        found: list[Half | None] = [None] * len(new)
        for n, vector in zip(spoken, self._vectors([texts[n] for n in spoken]), strict=True):
            found[n] = vector
        return found

    def _write(
        self,
        given: dict[str, Any],
        new: Sequence[tuple[UUID, Draft]],
        vectors: Sequence[Half | None],
        seen: _Last,
        alone: bool,
        stored: dict[UUID, Stored],
    ) -> bool:
        """Insert the entries behind the last one; False where that is not the one whose text was embedded.

        `alone`: the first was embedded without context, so that it does not matter. `stored`: what became of each.
        """
        keyed = [(name, each) for name, each in new if each.key != str(name)]
        with self.database.writing(self.scope.tenant) as asker:
            for _, each in keyed:
                self._lock(asker, KEY_LOCK, self.scope.agent, each.key)
            with asker.connection.pipeline():
                self._lock(asker, EPISODE_LOCK, self.scope.agent, given["episode"])
                cursor = asker(self._sql["last"], given)
            last: _Last = [(row[0], row[1], row[2]) for row in cursor.fetchall()]
            if any(row[0] == new[-1][0] for row in last):
                return True  # the commit of the last attempt went unheard
            if not alone and [row[0] for row in last[:1]] != [row[0] for row in seen[:1]]:
                return False
            for name, each in keyed:
                stored[name] = self._decide(asker, {**given, **each.arguments(), **each.told}, name)
            pairs = [
                (name, each, vector)
                for (name, each), vector in zip(new, vectors, strict=True)
                if stored[name].id == name
            ]
            before = [row[2] for row in last] + ["", ""]
            seq = last[0][1] if last else 0
            with asker.connection.pipeline():
                for name, each, vector in pairs:
                    seq += 1
                    self._insert(
                        asker, {**given, **each.arguments(), "id": name, "seq": seq, "vector": vector}, before
                    )
                    before.insert(0, each.text)
                for actor in sorted({each.actor for _, each, _ in pairs if each.actor is not None}):
                    asker(self._sql["actor"], {**given, "actor": actor})
        return True

    def _decide(self, asker: Asker, given: dict[str, Any], new: UUID) -> Stored:
        """What becomes of a value under a key that it was given; another value that the key had is closed."""
        for row, model, same, alive in asker.rows(self._sql["entry"], given):
            if same and alive and model == given["model"]:
                asker(self._sql["refresh"], {**given, "id": row})
                return Stored(given["key"], row, "same")
            asker(self._sql["close"], given)
            return Stored(given["key"], new, "replaced" if alive else "added")
        return Stored(given["key"], new, "added")

    def _insert(self, asker: Asker, given: dict[str, Any], before: list[str]) -> None:
        asker(self._sql["insert"], {**given, "before": before[0], "before_that": before[1]})
