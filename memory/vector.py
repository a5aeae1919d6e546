"""VectorMemory: facts by key, found by meaning.

The law: a key has one value at a time; another value closes it and keeps it as history. A scope says a thing once:
what comes again under another key, letter for letter or nearly so, is linked to what is there, if whatever search would
find the one finds the other (links.sql). Text that was recalled is not stored again.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack
from uuid import UUID, uuid4

from psycopg.errors import UniqueViolation

from . import ranking
from .aio import threaded
from .base import Memory
from .connections import Asker, Rows
from .drafts import Draft, Options, draft
from .entries import Filters, Hit, Json, Stored
from .going import KEY_LOCK, TEXT_LOCK
from .models import Model
from .recalled import lines_of, recalled
from .texts import alike, array_of, hash_of, restated, unlisted


class _Found(NamedTuple):
    """What is there already: the key's row and link, a row with the same text, all lines of a list."""

    row: UUID | None
    model: int | None
    row_same: bool | None
    row_alive: bool | None  # not expired
    link: UUID | None
    target: UUID | None  # what the link points to
    link_same: bool | None
    link_alive: bool | None
    twin: UUID | None
    recalled: bool = False


class VectorMemory(Memory):
    """Facts of a tenant's agent, or of all its agents, found by meaning.

    embedder: whose vectors these are; rows of other models are in reach by key alone.
    scope: whose facts; those that agents share are read as well with `include_shared`.
    capacity: live facts of this scope at most, and keys that are linked to one; the least used go first.
    ttl: seconds for which facts live.
    """

    kinds = ("fact",)

    def store(self, key: str, value: Json, **options: Unpack[Options]) -> Stored:
        """Keep a value under a key, with what `Options` says of it.

        Raises EntryError or ValueTooLarge for what cannot be kept, EmbeddingError, ModelMismatch.
        """
        wanted = draft(key, value, self.database.settings.value_max_bytes, self.ttl, options)
        if wanted.source == "recalled":
            return Stored(key, None, "recalled")
        vector = self._vectors([wanted.text])[0] if wanted.text.strip() else None
        model = self._needed()
        reach = {**self._own(), "agents": array_of([self.scope.agent]), "model": model.id}
        near = "near_exact" if self._size(reach) <= ranking.NEAR_ROWS else "near_index"
        lines = lines_of(wanted.text)
        unmarked = hash_of(unlisted(wanted.text))  # a line of a list that was recalled

        def once() -> Stored:
            with self.database.writing(self.scope.tenant) as asker:
                given = {**reach, **wanted.arguments(), "vector": vector, "hashes": [unmarked, wanted.hash]}
                found, nearest = self._look(asker, given, near if vector is not None else None)
                if lines:
                    found = found._replace(recalled=recalled(lines, self._known(asker, lines)))
                return self._decide(asker, wanted, given, found, nearest, model)

        try:
            stored = self.database.again(once)
        except UniqueViolation:  # an import, which takes no lock on a key, has stored it meanwhile
            stored = self.database.again(once)
        if stored.outcome in ("added", "replaced", "linked") and stored.id is not None:
            self._evict(stored.id)
        return stored

    def search(
        self,
        query: str,
        limit: int = 10,
        filters: Filters | None = None,
        *,
        include_shared: bool | None = None,
    ) -> list[Hit]:
        """The facts nearest in meaning to a text; `limit` of them wherever the filters leave as many.

        A query without a word gives the newest. Scores are cosines, -1 to 1. Raises EntryError, EmbeddingError.
        """
        text, reach, filtered = self._asked(query, limit, filters, include_shared)
        if reach is None:
            return []
        if not text:
            return self._newest(reach, limit)
        hits = self._nearest(reach, self._vectors([text])[0], limit, filtered)
        self._uses.add(hit.entry.id for hit in hits)
        return hits

    astore = threaded(store)
    asearch = threaded(search)

    def _look(self, asker: Asker, given: dict[str, Any], near: str | None) -> tuple[_Found, Rows]:
        """What is there, under locks of the key and of the text: who stores either meanwhile waits."""
        with asker.connection.pipeline():
            self._lock(asker, KEY_LOCK, self.scope.agent, given["key"])
            self._lock(asker, TEXT_LOCK, self.scope.agent, given["hashes"][0].hex())
            looked = asker(self._sql["look"], given)
            nearest = asker(self._statement(near, {}), given) if near is not None else None
        return _Found(*looked.fetchone()), [] if nearest is None else nearest.fetchall()  # type: ignore[misc]

    def _decide(
        self, asker: Asker, wanted: Draft, given: dict[str, Any], found: _Found, nearest: Rows, model: Model
    ) -> Stored:
        told = {**given, **wanted.told}
        if found.row is not None and found.row_alive and found.row_same and found.model == model.id:
            self._hand_back(asker, asker.rows(self._sql["refresh"], {**told, "id": found.row}))
            self._part(asker, told, found.row)
            return Stored(wanted.key, found.row, "same")
        if found.link is not None and found.link_same:
            self._hand_back(asker, asker.rows(self._sql["refresh_link"], {**told, "id": found.link}))
            self._part(asker, told, found.target)
            return Stored(wanted.key, found.link, "same")
        if found.recalled:
            return Stored(wanted.key, None, "recalled")
        twin = found.twin
        for row, text, similarity in nearest:
            same = similarity > ranking.SAME and alike(text, wanted.text)
            if twin is None and (same or (similarity > ranking.RESTATED and restated(text, wanted.text))):
                twin = row
        given["id"] = uuid4()
        if found.row is not None:
            self._hand_back(asker, asker.rows(self._sql["close"], given))
            asker(self._sql["promote"], {**given, "ids": [found.row], "staying": False})
        if found.link is not None:
            self._hand_back(asker, asker.rows(self._sql["close_link"], given))
        if twin is not None:
            asker(self._sql["link"], {**given, "target": twin})
            return Stored(wanted.key, given["id"], "linked")
        with asker.connection.pipeline():
            self._insert(asker, given)
        changed = found.row_alive or found.link_alive
        return Stored(wanted.key, given["id"], "replaced" if changed else "added")

    def _part(self, asker: Asker, told: dict[str, Any], row: UUID | None) -> None:
        """Make rows of a row's links that it covers no more, since the metadata of one of them were told anew."""
        if told["metadata"] is not None:
            asker(self._sql["promote"], {**told, "ids": [row], "staying": True})

    def _insert(self, asker: Asker, given: dict[str, Any]) -> None:
        whole: dict[str, Any] = {
            "before": "",
            "before_that": "",
            "episode": None,
            "seq": None,
            "kind": "fact",
        }
        asker(self._sql["insert"], {**given, **whole})
        if given["actor"] is not None:
            asker(self._sql["actor"], given)
