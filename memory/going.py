"""How rows of a tenant go, whatever the reason: with their links, their use counts, and what was made of them.

The law: a batch goes in one transaction, in which a link takes the place of a row that had some, tasks give back what
they were handed, and the entries behind one that goes are given new context. They lose their vectors by that, since
nothing is embedded here: who deletes says whether some did (`followed`), and embeds them (`Memory.mend`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

from ..tasks.queries import Numbered
from .connections import Asker, MemoryDatabase, Rows, statements

BATCH = 1_000  # rows that go in one transaction
KEY_LOCK, TEXT_LOCK, EPISODE_LOCK = 1, 2, 3  # always taken in this order


def conditions_of(names: tuple[str, ...]) -> bytes:
    """Conditions on rows that a statement calls `m`, by the names of their parts in memory.sql."""
    return b" ".join(b"{part_if_%s}" % name.encode() for name in names)


@cache
def sql(dims: int = 0, conditions: tuple[str, ...] = ()) -> dict[str, Numbered]:
    """The statements with these conditions, for vectors of so many dimensions.

    Only those that name the HNSW index have to know the dimensions.
    """
    parts = {"dims": b"%d" % dims, "part_filters": conditions_of(conditions)}
    return statements("memory.sql", "links.sql", **parts) | statements("links.sql", "memory.sql", **parts)


_WORKING = statements("working.sql")


class Gone(NamedTuple):
    """A row that is to go."""

    id: UUID
    agent: str
    episode: str | None
    linked: bool = False  # it is a key that points to a row


class Batch(NamedTuple):
    """What became of a batch: how many rows and links went, and whether entries behind them lost their vectors."""

    gone: int
    followed: bool


class Going:
    """Deletes rows of one tenant."""

    def __init__(self, database: MemoryDatabase, tenant: str) -> None:
        self._database = database
        self._tenant = tenant

    def links(self, which: Numbered, arguments: Mapping[str, Any]) -> int:
        """Delete the links that a statement names; how many."""

        def once() -> int:
            with self._database.writing(self._tenant) as asker:
                unlinked = asker.rows(which, arguments)
                hand_back(asker, self._tenant, unlinked)
            return len(unlinked)

        return self._database.again(once)

    def batch(self, which: Numbered, arguments: Mapping[str, Any], most: int | None = None) -> Batch:
        """Delete rows that a statement names, `most` of them, BATCH without it."""
        room = BATCH if most is None else min(most, BATCH)

        def once() -> Batch:
            with self._database.writing(self._tenant) as asker:
                rows = asker.rows(which, {**arguments, "most": room})
                return self._all(asker, [Gone(*row) for row in rows], arguments)

        return self._database.again(once)

    def values(self) -> int:
        """Delete values of tasks whose time is over, some at a time; how many."""
        arguments, gone = {"tenant": self._tenant, "most": BATCH}, BATCH
        total = 0
        while gone == BATCH:
            [[gone]] = self._database.ask(self._tenant, _WORKING["expired"], arguments)
            total += gone
        return total

    def _all(self, asker: Asker, doomed: list[Gone], arguments: Mapping[str, Any]) -> Batch:
        if not doomed:
            return Batch(0, False)
        for agent, episode in sorted({(row.agent, row.episode) for row in doomed if row.episode is not None}):
            lock(asker, EPISODE_LOCK, self._tenant, agent, str(episode))
        links = [row.id for row in doomed if row.linked]
        if links:
            ended = asker.rows(sql()["unlink_ids"], {**arguments, "ids": links})
            hand_back(asker, self._tenant, ended)
        count, followed = self._rows(asker, list({row.id for row in doomed if not row.linked}))
        return Batch(count + len(links), followed)

    def _rows(self, asker: Asker, ids: list[UUID]) -> tuple[int, bool]:
        given = {"ids": ids, "tenant": self._tenant}
        hand_back(asker, self._tenant, asker.rows(sql()["hold"], given))
        asker(sql()["promote"], {**given, "staying": False})
        followers = [row[0] for row in asker.rows(sql()["followers"], given)]
        [[count]] = asker.rows(sql()["delete"], given)
        if followers:
            asker(sql()["rebuild"], {**given, "ids": followers})
        return count, bool(followers)


def lock(asker: Asker, level: int, *what: str) -> None:
    """Take turns, until the end of the transaction, with all who lock the same."""
    asker(sql()["lock"], {"level": level, "what": "\n".join(what)})


def hand_back(asker: Asker, tenant: str, ended: Rows) -> None:
    """Take from the working memories what tasks were handed of facts and links, given as `part_handed` shows them."""
    if ended:
        owners, keys, prints = (list(column) for column in zip(*ended, strict=True))
        asker(sql()["hand_back"], {"tenant": tenant, "owners": owners, "keys": keys, "prints": prints})


def sweep(database: MemoryDatabase, tenant: str, batches: int) -> tuple[int, bool]:
    """Delete what has expired of a tenant, so many batches at most, without an embedder.

    Of an episode the two entries before one that lives stay, which are its context: `Memory.sweep` deletes them and
    embeds that one anew. Answers with how many rows and links went, and whether that was all.
    """
    going, given = Going(database, tenant), {"tenant": tenant}
    gone = going.links(sql()["unlink_expired"], given)
    going.values()
    for _ in range(batches):
        batch = going.batch(sql()["expired_alone"], given)
        gone += batch.gone
        if batch.gone < BATCH:
            return gone, True
    return gone, False
