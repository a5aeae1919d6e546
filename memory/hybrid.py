"""HybridMemory: the task at hand, facts and episodes behind one door.

The law: a key is looked for where that is quickest, in the working memory of the task, then among the facts, and what
was found further away is put nearer. A search is one statement over facts, episodes and what the task holds by itself:
what a fact gave it is that fact's hit, or it would be found twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Unpack

from ..tasks.settings import Settings
from .aio import threaded
from .connections import MemoryDatabase, shared
from .drafts import Options
from .embedders.protocol import Embedder
from .entries import Entry, Filters, Json, Seconds, Stored
from .episodic import EpisodicMemory
from .fusion import Fusing
from .scope import Scope
from .vector import VectorMemory
from .working import WorkingMemory


class HybridMemory(Fusing):
    """All memories of a tenant's agent: `facts`, `episodes`, and with a `task` its `working` memory.

    embedder: whose vectors these are. scope: whose memories; those that agents share are read as well with
    `include_shared`. capacity: live facts, and apart from them entries, at most. ttl: seconds for which both live.
    task: a run's id, or any text that its workers share.
    """

    kinds = ("fact", "episode")

    def __init__(
        self,
        embedder: Embedder,
        scope: Scope | None = None,
        *,
        task: str | None = None,
        include_shared: bool = False,
        capacity: int | None = None,
        ttl: Seconds | None = None,
        settings: Settings | None = None,
        database: MemoryDatabase | None = None,
    ) -> None:
        whole: dict[str, Any] = {"include_shared": include_shared, "capacity": capacity, "ttl": ttl}
        whole["database"] = database or shared(settings)
        super().__init__(embedder, scope, **whole)
        self.facts = VectorMemory(embedder, scope, **whole)
        self.episodes = EpisodicMemory(embedder, scope, **whole)
        self.working = None if task is None else WorkingMemory(whole["database"], self.scope, task)
        self._task = task

    def store(self, key: str, value: Json, **options: Unpack[Options]) -> Stored:
        """Keep a fact under a key, and in the working memory of the task for as long.

        Raises as `VectorMemory.store`.
        """
        stored = self.facts.store(key, value, **options)
        if self.working is not None and stored.id is not None and not self.working.hand(key, stored.id):
            self.working.forget(key)
        return stored

    def append(self, episode: str, value: Json, **options: Unpack[Options]) -> Stored:
        """Add what happened to the end of an episode. Raises as `EpisodicMemory.append`."""
        return self.episodes.append(episode, value, **options)

    def extend(self, episode: str, entries: Iterable[tuple[Json, Options]]) -> list[Stored]:
        """Add many to the end of an episode, in order. Raises as `EpisodicMemory.append`."""
        return self.episodes.extend(episode, entries)

    def recent(
        self,
        limit: int = 10,
        *,
        within: Seconds | None = None,
        filters: Filters | None = None,
        include_shared: bool | None = None,
    ) -> list[Entry]:
        """The last entries of episodes, newest first; of the last `within` seconds."""
        return self.episodes.recent(limit, within=within, filters=filters, include_shared=include_shared)

    def retrieve(self, key: str, *, include_shared: bool | None = None) -> Entry | None:
        """The entry of a key from wherever it is nearest; what was found among the facts is put into the task as well.

        An entry of the task has the kind `working`; all else that it tells is what the fact tells.
        """
        entry = None if self.working is None else self.working.retrieve(key)
        if entry is not None:
            return entry
        entry = super().retrieve(key, include_shared=include_shared)
        if entry is not None and entry.kind == "fact" and self.working is not None:
            self.working.hand(key, entry.id)
        return entry

    def history(self, key: str) -> list[Entry]:
        """What this agent has had under a key, the oldest first."""
        return self.facts.history(key)

    def forget(self, key: str | None = None, *, filters: Filters | None = None) -> int:
        """Delete a key everywhere, or what the filters name; how many rows, links and values of the task's own went.

        What tasks were handed of facts goes with those, and counts with them.
        """
        gone = super().forget(key, filters=filters)
        return (
            gone if self.working is None else gone + self.working.forget(key, filters=filters, own_only=True)
        )

    def flush(self) -> None:
        """Write the use counts that were gathered."""
        super().flush()
        self.facts.flush()
        self.episodes.flush()

    astore = threaded(store)
    aappend = threaded(append)
    aextend = threaded(extend)
    arecent = threaded(recent)
