"""HybridMemory: the task at hand, facts and episodes behind one door.

The law: a key is looked for where that is quickest, in the working memory of the task, then among the facts, and what
was found further away is put nearer. A search is one statement over facts and episodes. What a task holds is few: it is
listed (`working.items()`), not searched.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Unpack

from ..tasks.settings import Settings
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

    def store(self, key: str, value: Json, **options: Unpack[Options]) -> Stored:
        """Keep a fact under a key, and in the working memory of the task for as long. Raises as `VectorMemory.store`.

        What is trusted less than agents are (a tool's, the web's) is a fact alone: values of a task have no source.
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
        self, limit: int = 10, *, within: Seconds | None = None, filters: Filters | None = None
    ) -> list[Entry]:
        """The last entries of episodes, newest first; of the last `within` seconds."""
        return self.episodes.recent(limit, within=within, filters=filters)

    def retrieve(self, key: str, *, include_shared: bool | None = None) -> Entry | None:
        """The entry of a key from wherever it is nearest; what was found among the facts is put into the task as well.

        An entry of the task has the kind `working`, its value, and no more history than that.
        """
        if self.working is not None:
            value = self.working.retrieve(key, _MISSING)
            if value is not _MISSING:
                return Entry.working(key, self.scope.agent, value)
        entry = super().retrieve(key, include_shared=include_shared)
        if entry is not None and entry.kind == "fact" and self.working is not None:
            self.working.hand(key, entry.id)
        return entry

    def history(self, key: str) -> list[Entry]:
        """What this agent has had under a key, the oldest first."""
        return self.facts.history(key)

    def forget(self, key: str | None = None, *, filters: Filters | None = None) -> int:
        """Delete a key everywhere, or what the filters name among facts and episodes; how many rows and links went."""
        gone = super().forget(key, filters=filters)
        if key is not None and self.working is not None:
            self.working.forget(key)
        return gone

    def flush(self) -> None:
        """Write the use counts that were gathered."""
        super().flush()
        self.facts.flush()
        self.episodes.flush()


_MISSING: Any = object()
