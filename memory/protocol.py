"""What every memory does: keep a value under a key, answer the key, find values, forget them.

The law: who holds a memory of any class can use it by these four verbs, from plain code and from coroutines, and they
mean the same everywhere. A class may take more than is named here, and never asks for more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Unpack

from .drafts import Options
from .entries import Entry, Filters, Hit, Json, Stored
from .scope import Scope


class MemoryProtocol(Protocol):
    """A memory of a tenant's agent, or of what its agents share: `scope` says whose.

    A value is any JSON value. Its text is what is searched: a text is its own, anything else a line for each leaf
    (`likes: tea`), and `text=` says something else.
    """

    scope: Scope

    def store(self, key: str, value: Json, **options: Unpack[Options]) -> Stored:
        """Keep a value under a key, with what `Options` says of it: `ttl`, `importance`, `metadata` and more.

        Another value under the key takes its place; the same one stays, with what is said of it now.
        Raises EntryError or ValueTooLarge for what cannot be kept.
        """
        ...

    def retrieve(self, key: str) -> Entry | None:
        """What the key has; None where there is nothing, or its time is over. Raises EntryError."""
        ...

    def search(self, query: str, limit: int = 10, filters: Filters | None = None) -> list[Hit]:
        """The best hits, `limit` of them wherever the filters leave as many; each text once, each with its score.

        A query without a word gives the newest. Raises EntryError.
        """
        ...

    def forget(self, key: str | None = None, *, filters: Filters | None = None) -> int:
        """Delete a key, or all that the filters name; how many went.

        Raises EntryError where neither a key nor a filter is given, or both are.
        """
        ...

    async def astore(self, key: str, value: Json, **options: Unpack[Options]) -> Stored:
        """`store` without holding up the event loop."""
        ...

    async def aretrieve(self, key: str) -> Entry | None:
        """`retrieve` without holding up the event loop."""
        ...

    async def asearch(self, query: str, limit: int = 10, filters: Filters | None = None) -> list[Hit]:
        """`search` without holding up the event loop."""
        ...

    async def aforget(self, key: str | None = None, *, filters: Filters | None = None) -> int:
        """`forget` without holding up the event loop."""
        ...


if TYPE_CHECKING:  # mypy holds the classes to it
    from .episodic import EpisodicMemory
    from .hybrid import HybridMemory
    from .vector import VectorMemory
    from .working import WorkingMemory

    _vector: type[MemoryProtocol] = VectorMemory
    _episodic: type[MemoryProtocol] = EpisodicMemory
    _hybrid: type[MemoryProtocol] = HybridMemory
    _working: type[MemoryProtocol] = WorkingMemory
