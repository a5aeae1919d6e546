"""What goes into a memory and what comes out of it.

The law: arguments are checked here, by name, before anything is embedded or asked of Postgres. What comes out is a
copy: changing it changes no memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple, Self
from uuid import UUID

from ..tasks.errors import EntryError
from .scope import NAME_BYTES, Kind, Source
from .texts import QUERY, json_of, name_of, storable

Json = Any
Seconds = float | timedelta
Outcome = Literal["added", "same", "replaced", "linked", "recalled"]

LIMIT = 1_000  # hits of one search
METADATA = 65_536  # bytes of metadata that filters ask for
_YEARS = 100 * 366 * 86400.0


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a value.

    `added`; `same` (the key had this value already); `replaced` (the key's old value is history now, or of a task
    gone); `linked` (another key says the same, and no filter tells them apart: this one is answered, but is no second
    hit of a search); `recalled` (it says nothing but what was recalled, and was not stored: `id` is None). `evicted`:
    the keys of a task that made room, the least used first.
    """

    key: str
    id: UUID | None
    outcome: Outcome
    evicted: tuple[str, ...] = ()


class Entry(NamedTuple):
    """One row of a memory. `valid_to` is set on what was replaced; `seq` counts the entries of an episode."""

    id: UUID
    key: str
    kind: Kind
    agent: str
    value: Json
    text: str
    metadata: dict[str, Json]
    importance: float
    source: Source
    trust: int
    actor: str | None
    episode: str | None
    seq: int | None
    at: datetime
    valid_from: datetime
    valid_to: datetime | None
    expires_at: datetime | None
    run_id: UUID | None
    step: int | None

    @classmethod
    def of(cls, row: Sequence[Any]) -> Self:
        """From the columns that every statement shows."""
        return cls._make(row[:19])


@dataclass(frozen=True, slots=True)
class Hit:
    """An entry that was found, its `score` (larger is better, comparable within one search) and the parts of it."""

    entry: Entry
    score: float
    parts: Mapping[str, float]

    key = property(lambda self: self.entry.key)
    kind = property(lambda self: self.entry.kind)
    value = property(lambda self: self.entry.value)
    text = property(lambda self: self.entry.text)
    source = property(lambda self: self.entry.source)
    trust = property(lambda self: self.entry.trust)
    at = property(lambda self: self.entry.at)
    metadata = property(lambda self: self.entry.metadata)


@dataclass(frozen=True, slots=True)
class Filters:
    """What hits have to fulfil, all of it at once.

    `metadata`: contained in theirs; `sources`, `actors`: one of these; `min_trust`; `episode`; `run`; `since` (at or
    after) and `until` (before) say when it happened.
    """

    metadata: Mapping[str, Json] | None = None
    sources: Sequence[str] | None = None
    min_trust: int | None = None
    actors: Sequence[str] | None = None
    episode: str | None = None
    run: UUID | str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def empty(self) -> bool:
        """Whether every row fulfils it."""
        return all(getattr(self, name) is None for name in self.__slots__)

    def arguments(self) -> dict[str, Any]:
        """For the statements. Raises EntryError for what cannot be asked."""
        metadata = None
        if self.metadata is not None:
            asked = mapping_of("filters.metadata", self.metadata)
            metadata = json_of("filters.metadata", asked, METADATA, "ask for less metadata")
        return {
            "metadata": metadata,
            "sources": names_of("filters.sources", self.sources),
            "trust": None if self.min_trust is None else trust_of("filters.min_trust", self.min_trust),
            "by": names_of("filters.actors", self.actors),
            "episode": None if self.episode is None else name_of("filters.episode", self.episode, NAME_BYTES),
            "run": run_id_of("filters.run", self.run),
            "since": moment_of("filters.since", self.since),
            "until": moment_of("filters.until", self.until),
        }


def seconds_of(name: str, value: Seconds | None) -> float | None:
    """A time to live in seconds. Raises EntryError."""
    if value is None:
        return None
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
        raise EntryError(name, f"is {value!r}: needs seconds or a timedelta")
    if not 0 < seconds <= _YEARS:
        raise EntryError(name, f"is {seconds:g} s: needs more than nothing and less than a century")
    return float(seconds)


def limit_of(limit: int) -> int:
    """How many hits are wanted. Raises EntryError."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= LIMIT:
        raise EntryError("limit", f"is {limit!r}: needs a number from 1 to {LIMIT:,}")
    return limit


def query_of(query: str) -> str:
    """What is searched for; a longer query is cut. Raises EntryError."""
    if not isinstance(query, str):
        raise EntryError("query", f"is a {type(query).__name__}: needs a text")
    return storable("query", query)[:QUERY].strip()


def named_once(key: str | None, filters: Filters | None) -> None:
    """Whether it is said what to forget. Raises EntryError."""
    if (key is None) == (filters is None or filters.empty):
        raise EntryError("key", "give either a key or filters that are not empty")


def mapping_of(name: str, value: object) -> Mapping[str, Json]:
    if not isinstance(value, Mapping):
        raise EntryError(name, f"is a {type(value).__name__}: needs a mapping")
    return value


def names_of(name: str, values: Sequence[str] | None) -> list[str] | None:
    if values is None:
        return None
    if isinstance(values, str):
        raise EntryError(name, f"is the text {values!r}: needs a list of texts")
    return [name_of(name, each, NAME_BYTES) for each in values]


def trust_of(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 3:
        raise EntryError(name, f"is {value!r}: needs 0 (none) to 3 (the operator's)")
    return value


def run_id_of(name: str, value: UUID | str | None) -> str | None:
    if value is None:
        return None
    try:
        return str(UUID(str(value)))
    except ValueError:
        raise EntryError(name, f"is {value!r}: needs a run's id") from None


def moment_of(name: str, value: datetime | None) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise EntryError(name, f"is a {type(value).__name__}: needs a datetime")
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)
