"""From episodes to facts, by a language model, a window of an episode at a time.

The law: a turn either asks the model or stores what it has said, so that a call whose answer was recorded is not paid
for twice. Every turn may be done again after a crash: facts have the same keys then, and nothing is stored twice. What
is stored says from which rows it comes, and is trusted no further than the least of what the model was shown
(extraction.py). What is less trusted, or older, replaces nothing; what was forgotten meanwhile is not brought back.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Any, TypedDict
from uuid import UUID

from ..tasks.errors import AnswerUnusable
from ..tasks.queries import Numbered
from ..tasks.settings import Settings
from . import ranking
from .connections import MemoryDatabase, Rows, statements
from .embedders.protocol import Embedder
from .entries import trust_of
from .extraction import INSTRUCTIONS, PREFIX, Answer, Fact, Turn, document, levels, shown, taken, window
from .language import LanguageModel
from .scope import NAME_BYTES, Scope
from .texts import array_of, name_of
from .vector import VectorMemory

TURNS = 200  # of an episode that are read together at most
NAMES = 60  # of known facts that the model is told


class Window(TypedDict):
    """Entries of an episode that are read together, and the levels of trust at which that is still to be done."""

    episode: str
    first: int
    last: int
    until: str
    rows: int
    levels: list[int]


class State(TypedDict):
    """How far it is; plain data, for a journal.

    `rows` that were unread when it `began`, of which so many are `read`; `calls` of the model; `outcomes`: how often a
    fact was added, the same, replaced, linked, recalled, outranked (a more trusted one has its key), outdated (a later
    one has), forgotten (its rows are gone), or an answer unusable. `facts` are those that the next turn stores.
    """

    began: str
    rows: int
    read: int
    calls: int
    outcomes: dict[str, int]
    episode: str
    after: int
    window: Window | None
    facts: list[Fact]
    done: bool


@cache
def _sql(dims: int) -> dict[str, Numbered]:
    return statements("distilling.sql", dims=b"%d" % dims)


class Distilling(VectorMemory):
    """Makes facts of the episodes of one scope."""

    def __init__(
        self,
        settings: Settings,
        embedder: Embedder,
        language: LanguageModel,
        scope: Scope,
        *,
        only: str | None = None,
        min_trust: int = 0,
        database: MemoryDatabase | None = None,
    ) -> None:
        """language: who is asked. only: an episode, in place of all. min_trust: what is trusted less is left out, and
        counts as read.

        Raises EntryError.
        """
        super().__init__(embedder, scope, settings=settings, database=database)
        self._language = language
        self._characters = settings.llm_characters
        self._only = None if only is None else name_of("episode", only, NAME_BYTES)
        self._least = trust_of("min_trust", min_trust)

    def begin(self) -> State:
        """What there is to do."""
        self._distil("tidy")
        [[began]] = self._distil("now")
        [[rows]] = self._distil("count", began=began, only=self._only)
        return State(
            began=began.isoformat(), rows=rows, read=0, calls=0, outcomes={}, episode=self._only or "", after=-1,
            window=None, facts=[], done=rows == 0,
        )  # fmt: skip

    def turn(
        self, state: State, *, calls: int | None = None, run: str | None = None, skip: bool = False
    ) -> State:
        """Ask the model once, or store what it said; how far it is then.

        calls: of the model at most, in all turns (a window that was begun is read to its end); without it any number.
        run: whose facts these are. skip: go on where the model gives no usable answer.

        Raises CompletionError, EmbeddingError, CommunicationError: the same turn may be tried again.
        """
        new: State = {**state, "outcomes": {**state["outcomes"]}}
        if state["done"]:
            return new
        if state["facts"] and state["window"] is not None:
            for fact in state["facts"]:
                _count(new, self._keep(fact, state["window"]["episode"], run))
            new["facts"] = []
        else:
            if new["window"] is None:
                spent = calls is not None and new["calls"] >= calls
                new["window"] = None if spent else self._next(new)
            if new["window"] is None:
                new["done"] = True
                return new
            if new["window"]["levels"]:
                self._ask_model(new, new["window"], skip)
        if not new["facts"] and new["window"] is not None and not new["window"]["levels"]:
            self._mark(new, new["window"])
        return new

    def _next(self, state: State) -> Window | None:
        """The next entries that were not read, in the order of episodes; None where there are none."""
        began = state["began"]
        rows: Rows = []
        while not rows:  # what was found may be forgotten before it is read
            found = self._distil("next", began=began, episode=state["episode"], after=state["after"])
            if not found or self._only not in (None, found[0][0]):
                return None
            [[episode]] = found
            if episode != state["episode"]:
                state["episode"], state["after"] = episode, -1
            rows = self._distil(
                "turns", began=began, episode=episode, after=state["after"], last=None, most=TURNS
            )
        turns = [Turn(*row[:7]) for row in rows]
        count = window(turns, self._characters)
        return Window(
            episode=episode, first=rows[0][7], last=rows[count - 1][7],
            until=max(row[8] for row in rows[:count]).isoformat(), rows=count,
            levels=levels(turns[:count], self._least),
        )  # fmt: skip

    def _ask_model(self, state: State, part: Window, skip: bool) -> None:
        """Read a window at its next level; the facts are left to the next turn."""
        level, *rest = part["levels"]
        state["window"] = {**part, "levels": rest}
        episode, first, last = part["episode"], part["first"], part["last"]
        before = [Turn(*row) for row in self._distil("before", episode=episode, first=first)]
        after, began = first - 1, state["began"]
        rows = self._distil("turns", began=began, episode=episode, after=after, last=last, most=TURNS)
        turns = shown([*reversed(before), *(Turn(*row[:7]) for row in rows)], level)
        if not turns:
            return  # forgotten meanwhile
        told = document(turns, level, self._names(turns, level))
        state["calls"] += 1
        try:
            answer = self._language.answer(INSTRUCTIONS, told, Answer)
        except AnswerUnusable:
            if not skip:
                raise
            _count(state, "unusable")
            return
        state["facts"] = taken(answer, turns, level)

    def _names(self, turns: list[Turn], level: int) -> list[str]:
        reach = {**self._own(), "agents": array_of([self.scope.agent]), "model": self._number()}
        near = "names_exact" if self._size(reach) <= ranking.NEAR_ROWS else "names_index"
        ids = [turn.id for turn in turns]
        return [row[0] for row in self._distil(near, ids=ids, trust=level, prefix=PREFIX, most=NAMES)]

    def _keep(self, fact: Fact, episode: str, run: str | None) -> str:
        """Store a fact; what became of it."""
        alive = {str(row[0]) for row in self._distil("alive", ids=[UUID(each) for each in fact["entries"]])}
        if not alive.issuperset(fact["entries"]):
            return "forgotten"
        at = datetime.fromisoformat(fact["at"])
        for trust, since in self._distil("held", key=fact["key"]):
            if trust > fact["trust"]:
                return "outranked"
            if since > at:
                return "outdated"
        metadata = {"episode": episode, "entries": fact["entries"], "distilled_by": self._language.model}
        stored = self.store(
            fact["key"], fact["text"], source="agent", trust=fact["trust"], actor=fact["actor"], at=at, run=run,
            importance=fact["importance"], metadata=metadata,
        )  # fmt: skip
        return stored.outcome

    def _mark(self, state: State, part: Window) -> None:
        self._distil("mark", episode=part["episode"], seq=part["last"], until=part["until"])
        state["window"] = None
        state["after"] = part["last"]
        state["read"] += part["rows"]

    def _distil(self, block: str, **arguments: Any) -> Rows:
        model = self._found()
        numbers = {
            "tenant": self.scope.tenant,
            "agent": self.scope.agent,
            "model": -1 if model is None else model.id,
        }
        statement = _sql(self.embedder.dims)[block]
        return self.database.ask(self.scope.tenant, statement, {**numbers, **arguments})


def _count(state: State, outcome: str) -> None:
    state["outcomes"][outcome] = state["outcomes"].get(outcome, 0) + 1
