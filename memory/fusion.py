"""Search by meaning and by words at once: one statement, whatever the size of the scope.

The law: names of people are taken out of what is embedded and lift the rows of these people instead, since a vector
of "What did Ann cook?" is near to all that says Ann. Up to 20,000 live rows all of them are looked at; of more, the
nearest by the HNSW index and those with the rarest words; and where conditions leave few rows, all of these. Fewer
than `limit` hits are given only where there are no more.
"""

from __future__ import annotations

import time
from typing import Any

from . import ranking
from .aio import threaded
from .base import SIZES, Memory
from .connections import Rows
from .entries import Entry, Filters, Hit
from .texts import named, without


class Fusing(Memory):
    """A memory whose search fuses two lists."""

    def search(
        self,
        query: str,
        limit: int = 10,
        filters: Filters | None = None,
        *,
        include_shared: bool | None = None,
    ) -> list[Hit]:
        """The best hits by meaning, words, recency, importance and trust; `limit` of them wherever there are as many.

        A query without a word gives the newest. Each text is given once. `parts` of a hit has what its score is the sum
        of (`text`, `dense`, `recency`, `importance`, `trust`), and the ranks behind that.
        Raises EntryError, EmbeddingError, ModelMismatch.
        """
        text, reach, filtered = self._asked(query, limit, filters, include_shared)
        if reach is None:
            return []
        if not text:
            return self._newest(reach, limit)
        actors = named(text, [row[0] for row in self._ask("people", {**reach, "query": text})])
        bare = without(text, actors)
        asked = {
            **reach,
            **self._desk(),
            **ranking.CONSTANTS,
            "text": bare,
            "vector": self._vectors([bare])[0],
            "actors": actors,
        }
        asked |= {"limit": limit, "depth": max(ranking.DEPTH, 2 * limit)}
        rows = self._fused(asked, self._size(reach), filtered)
        hits = [Hit(Entry.of(row), row[20], ranking.parts(row[21:29])) for row in rows]
        self._uses.add(hit.entry.id for hit in hits if hit.kind != "working")
        return hits

    asearch = threaded(search)

    def _fused(self, asked: dict[str, Any], size: int, filtered: bool) -> Rows:
        limit = asked["limit"]
        if size <= ranking.EXACT_ROWS:
            rows = self._ask(self._named("search_exact"), asked)
            if len(rows) >= limit or size <= asked["depth"]:
                return rows
            # Many rows of one text may have filled the lists.
            return self._ask(self._named("search_exact"), {**asked, "depth": ranking.EXACT_ROWS})
        self._count_words(asked)
        if filtered:
            among = self._among(self._named("search_among"), asked, _conditions(asked))
            if among is not None:
                return self._whole(asked, among)
        return self._whole(asked, self._ask(self._named("search_index"), asked))

    def _named(self, search: str) -> str:
        """The statement of a search, which reads the values of a task besides where there is one."""
        return search if self._task is None else f"{search}_task"

    def _whole(self, asked: dict[str, Any], rows: Rows) -> Rows:
        """The rows, or those of a look at everything where they are too few."""
        if len(rows) >= asked["limit"]:
            return rows
        return self._ask(self._named("search_among"), {**asked, "most": None, "depth": ranking.EXACT_ROWS})

    def _count_words(self, asked: dict[str, Any]) -> None:
        """Count the words of large scopes, where nobody has for a day; looked at once a minute."""
        key = ("words", str(asked["model"]), asked["agents"])
        if self._sizes.get(key, (0, 0.0))[1] > time.monotonic():
            return
        for agent, kind in self._ask("counted", asked):
            self._ask("count_words", {**asked, "agent": agent, "kind": kind, "sample": ranking.SAMPLE})
        self._sizes[key] = (0, time.monotonic() + SIZES)


def _conditions(asked: dict[str, Any]) -> dict[str, Any]:
    """What of a search decides how many rows it leaves: neither its words nor its vector."""
    hidden = {*ranking.CONSTANTS, "text", "vector", "actors", "limit", "depth", "most", "task", "owner"}
    return {name: value for name, value in asked.items() if name not in hidden}
