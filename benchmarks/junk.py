"""Noise: what is left of many writes that say nothing new.

The law: a scope that knows some facts is told them again, in ways that agents and people do: in another spelling, in
other words, as a list that was recalled, marked as recalled or not, as a fact or as an entry of an episode. Each way
has the same share of the writes. What ought to be left is the facts; every other row is junk, and is counted under
the way in which it came. Three other scopes (another agent, all agents, another tenant) are asked the same before and
after, and have to answer the same.

The texts are embedded beforehand and in batches, so that `writes_s` is what the memory takes, and `embed_ms` a text
is what the model takes beside it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import psycopg

from trellis.memory import HybridMemory, Scope
from trellis.memory.connections import MemoryDatabase
from trellis.memory.embedders import Embedder

SCOPE = Scope("acme", "ann")
OTHERS = (Scope("acme", "bob"), Scope("acme"), Scope("umbrella", "ann"))
QUERIES = 100  # asked of each scope, before and after
K = 10
AT_ONCE = 256  # texts of one call of the embedder

NAMES = ("Ann", "Boris", "Chidi", "Dolores", "Emre", "Farah", "Goran", "Hanako", "Ines", "Jamal")
SAID = (
    "{} works as a {}", "{} is afraid of the {} next door", "{} once wrote a song about a {}",
    "{} wants to become a {}", "{} has a meeting with the {} on Monday", "{} was taught to swim by a {}",
    "{} sold the old car to a {}", "{} lives above the shop of a {}", "{} lost a bet against a {}",
    "{} is married to a {}",
)  # fmt: skip
TRADES = (
    "baker", "surgeon", "plumber", "violinist", "judge", "fisherman", "florist", "pilot", "carpenter", "chemist",
    "barber", "librarian", "farmer", "locksmith", "dentist", "photographer", "translator", "beekeeper", "welder",
    "tailor",
)  # fmt: skip

Say = Callable[[str], None]


class Noise(NamedTuple):
    """One write: how it came, what it says, and whether it is an entry of an episode."""

    kind: str
    text: str
    key: str
    entry: bool = False
    marked: bool = False


class Foreseen:
    """An embedder that has the vectors of all texts beforehand."""

    def __init__(self, embedder: Embedder, texts: Iterable[str]) -> None:
        self.model = embedder.model
        self.dims = embedder.dims
        found = list(dict.fromkeys(texts))
        began = time.perf_counter()
        parts = [embedder.embed(found[at : at + AT_ONCE]) for at in range(0, len(found), AT_ONCE)]
        self.ms = (time.perf_counter() - began) * 1000 / len(found)
        self._embedder = embedder
        self._vectors = dict(zip(found, np.concatenate(parts), strict=True))

    def embed(self, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        for text in texts:
            if text not in self._vectors:  # an entry is embedded with the one before it
                self._vectors[text] = self._embedder.embed([text])[0]
        return np.stack([self._vectors[text] for text in texts])


def facts(count: int) -> list[str]:
    """Sentences that say different things, 2,000 at most: first of all names, then of all trades."""
    every = (said.format(name, trade) for trade in TRADES for said in SAID for name in NAMES)
    return [text for text, _ in zip(every, range(count), strict=False)]


SPELLINGS: tuple[Callable[[str], str], ...] = (
    str.upper,
    lambda text: f"  {text.replace(' ', '  ')}\n",
    lambda text: f"- {text}",
    lambda text: f"3. {text}",
    lambda text: f'"{text}"',
    lambda text: f"{text}.",
    lambda text: f"{text}!!",
    lambda text: f"* {text.lower()} …",
)
WORDINGS: tuple[Callable[[str], str], ...] = (
    lambda text: f"Note: {text}",
    lambda text: f"I know that {text}",
    lambda text: f"{text}, indeed",
    lambda text: text.replace(" a ", " some ", 1),
    lambda text: f"Remember: {text}",
    lambda text: f"It is true that {text}",
)


def noise(known: Sequence[str], count: int, rng: np.random.Generator) -> list[Noise]:
    """Writes in all ways, by turns."""
    kinds = ("same", "spelled", "worded", "marked", "line", "list", "listed entry")
    return [_one(kinds[n % len(kinds)], known, n, rng) for n in range(count)]


def _one(kind: str, known: Sequence[str], n: int, rng: np.random.Generator) -> Noise:
    number = int(rng.integers(len(known)))
    text, key = known[number], f"noise{n}"
    if kind == "same":
        return Noise(kind, text, f"fact{number}")
    if kind in ("spelled", "worded"):
        ways = SPELLINGS if kind == "spelled" else WORDINGS
        return Noise(kind, ways[rng.integers(len(ways))](text), key)
    if kind == "marked":
        return Noise(kind, f"As I remember, {text}", key, entry=n % 2 == 0, marked=True)
    if kind == "line":
        return Noise(kind, f"- {text}", key)
    lines = [known[i] for i in rng.choice(len(known), int(rng.integers(2, 9)), replace=False)]
    mark = ("- ", "* ", "", "{}. ")[rng.integers(4)]
    text = "\n".join(mark.format(place + 1) + line for place, line in enumerate(lines))
    return Noise(kind, text, key, entry=kind == "listed entry")


def measure(count: int, embedder: Embedder, database: MemoryDatabase, say: Say) -> dict[str, Any]:
    """What is left of `count` writes; shares are of all rows of the scope."""
    rng = np.random.default_rng(5)
    known = facts(min(2_000, max(20, count // 10)))
    writes = noise(known, count, rng)
    foreseen = Foreseen(embedder, [*known, *(each.text for each in writes)])
    say(f"{count:,} writes about {len(known):,} facts; {foreseen.ms:.1f} ms a text to embed")
    for scope in (SCOPE, *OTHERS):
        with HybridMemory(foreseen, scope, database=database) as memory:
            for n, text in enumerate(known if scope is SCOPE else known[:: len(known) // 20]):
                memory.store(f"fact{n}", text)
    asked = [known[i] for i in rng.integers(len(known), size=QUERIES)]
    before = {scope: _answers(foreseen, scope, asked, database) for scope in (SCOPE, *OTHERS)}
    first = _rows(database)
    began = time.perf_counter()
    outcomes = _written(HybridMemory(foreseen, SCOPE, database=database), writes)
    took = time.perf_counter() - began
    last = _rows(database)
    junk = last - first
    came = Counter(each.kind for each in writes if each.key in junk)
    after = {scope: _answers(foreseen, scope, asked, database) for scope in (SCOPE, *OTHERS)}
    return {
        "writes": count,
        "facts": len(known),
        "rows": len(last),
        "junk_rows": len(junk),
        "junk_share": round(len(junk) / len(last), 4),
        "junk_of_writes": round(len(junk) / count, 4),
        "by_kind": {
            kind: {"writes": sum(each.kind == kind for each in writes), "junk": came[kind]}
            for kind in dict.fromkeys(each.kind for each in writes)
        },
        "outcomes": dict(outcomes),
        "links": _links(database),
        "own_first_hit": [_first(asked, found[SCOPE]) for found in (before, after)],
        "others_unchanged": all(before[scope] == after[scope] for scope in OTHERS),
        "writes_s": round(count / took),
        "embed_ms": round(foreseen.ms, 2),
        "model": embedder.model,
    }


def _written(memory: HybridMemory, writes: Sequence[Noise]) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for each in writes:
        if each.entry:
            stored = memory.append(each.key, each.text, source="recalled" if each.marked else "user")
        else:
            stored = memory.store(each.key, each.text, source="recalled" if each.marked else "user")
        outcomes[stored.outcome] += 1
    memory.flush()
    return outcomes


def _answers(
    embedder: Embedder, scope: Scope, asked: Sequence[str], database: MemoryDatabase
) -> list[list[str]]:
    """The first hits of each query, as texts."""
    with HybridMemory(embedder, scope, database=database) as memory:
        return [[hit.text for hit in memory.search(query, K)] for query in asked]


def _first(asked: Sequence[str], found: Sequence[Sequence[str]]) -> float:
    """Of how many queries the fact that they repeat is the first hit."""
    return round(sum(hits[0] == query for query, hits in zip(asked, found, strict=True)) / len(asked), 4)


def _rows(database: MemoryDatabase) -> set[str]:
    """The keys of the scope's rows; that of an entry is the name of its episode."""
    with psycopg.connect(database.url) as connection:
        found = connection.execute(
            "SELECT coalesce(episode, key) FROM memory WHERE tenant = %s AND agent = %s",
            (SCOPE.tenant, SCOPE.agent),
        )
        return {key for (key,) in found}


def _links(database: MemoryDatabase) -> int:
    """Keys of the scope that are answered and take no row."""
    with psycopg.connect(database.url) as connection:
        [[count]] = connection.execute(
            "SELECT count(*) FROM memory_link WHERE tenant = %s AND agent = %s", (SCOPE.tenant, SCOPE.agent)
        ).fetchall()
        return int(count)
