"""How much a tenant remembers, and what it takes.

The law: it only reads. What belongs to one tenant is counted for that tenant; sizes are those of tables and indexes,
which all tenants share.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from .connections import MemoryDatabase, statements

_SQL = statements("stats.sql")


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one model, agent and kind: `past` were replaced, `bare` wait for a vector."""

    model: str
    agent: str
    kind: str
    live: int
    past: int
    expired: int
    bare: int
    newest: datetime | None


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of a model's partition, of all tenants. `indexed`: whether its index of vectors is there."""

    model: str
    dims: int
    table: int
    vectors: int  # of the index of vectors
    indexes: int  # of the other indexes
    indexed: bool


@dataclass(frozen=True, slots=True)
class Open:
    """An import that was cut off, or goes on."""

    name: str
    agent: str
    offset: int
    size: int
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Stats:
    """What there is. `used` rows were found `hits` times in all; `tasks` hold `values` in working memory."""

    rows: list[Rows]
    links: int
    used: int
    hits: int
    last_hit: datetime | None
    tasks: int
    values: int
    imports: list[Open]
    sizes: list[Size]


def stats(database: MemoryDatabase, tenant: str, agent: str | None = None) -> Stats:
    """The figures of a tenant, or of one of its agents ("" is what they share). Raises CommunicationError."""
    given = {"tenant": tenant, "agent": agent}
    with database.piped(tenant) as asker:
        names = ("rows", "links", "uses", "working", "imports", "sizes")
        cursors = {name: asker(_SQL[name], given) for name in names}
    found = {name: cursor.fetchall() for name, cursor in cursors.items()}
    [[links]] = found["links"]
    [[used, hits, last_hit]] = found["uses"]
    [[tasks, values]] = found["working"]
    return Stats(
        [Rows(*row) for row in found["rows"]],
        links,
        used,
        hits,
        last_hit,
        tasks,
        values,
        [Open(*row) for row in found["imports"]],
        [Size(*row) for row in found["sizes"]],
    )


def keys(database: MemoryDatabase, tenant: str, agents: list[str]) -> list[str]:
    """Keys of facts that may have been meant, some thousand at most."""
    return [row[0] for row in database.ask(tenant, _SQL["keys"], {"tenant": tenant, "agents": agents})]


def agents(database: MemoryDatabase, tenant: str) -> list[str]:
    """The agents of a tenant that have memories; "" is what they share."""
    return [row[0] for row in database.ask(tenant, _SQL["agents"], {"tenant": tenant})]
