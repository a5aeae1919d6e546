"""Episodes: what happened in order, found by words, meaning and neighbours; and what goes leaves nothing behind."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from threading import Barrier
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from memories import EMBEDDER
from stack import Stack

from trellis.memory import EpisodicMemory, Filters, Scope, Stored, VectorMemory
from trellis.memory.connections import MemoryDatabase
from trellis.memory.embedders.hashing import HashingEmbedder

ANN = Scope("acme", "ann")
NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
TALK = [
    ("Ann", "I adopted a greyhound from the shelter"),
    ("Bob", "What is the name?"),
    ("Ann", "Pickle, like the cucumber"),
    ("Bob", "My sister plays the cello"),
    ("Ann", "I would love to hear that"),
]


@pytest.fixture
def episodes(database: MemoryDatabase) -> EpisodicMemory:
    return EpisodicMemory(EMBEDDER, ANN, database=database)


def talk(episodes: EpisodicMemory, name: str = "talk", **more: Any) -> list[str]:
    stored = episodes.extend(
        name,
        [
            (text, {"actor": who, "at": NOON + timedelta(minutes=n), **more})
            for n, (who, text) in enumerate(TALK)
        ],
    )
    return [each.key for each in stored]


def test_entries_are_numbered_as_they_came(episodes: EpisodicMemory) -> None:
    talk(episodes)
    episodes.append("talk", "the last word")
    recent = episodes.recent(10)
    assert [(entry.seq, entry.text) for entry in recent] == [
        (6, "the last word"), *((n, TALK[n - 1][1]) for n in range(5, 0, -1)),
    ]  # fmt: skip
    assert [entry.seq for entry in episodes.recent(2)] == [6, 5]
    assert [entry.text for entry in episodes.recent(10, within=3600)] == ["the last word"]


def test_an_entry_is_found_by_the_words_of_the_one_before_it(episodes: EpisodicMemory) -> None:
    """The answer to a question does not repeat it: that the name is Pickle says nothing of a name."""
    talk(episodes)
    texts = [hit.text for hit in episodes.search("name of the greyhound", limit=3)]
    assert "Pickle, like the cucumber" in texts


def test_whoever_is_named_in_a_query_comes_first(episodes: EpisodicMemory) -> None:
    """By a field: the same words of others come behind."""
    for who in ("Ann", "Bob", "Cy"):
        episodes.append(f"of {who}", f"I went to the lake and swam there {who == 'Bob'}", actor=who)
    assert episodes.search("Did Bob swim in the lake?")[0].entry.actor == "Bob"
    assert episodes.search("what about cy's swim in the lake")[0].entry.actor == "Cy"


def test_a_hit_says_what_its_score_is_made_of(episodes: EpisodicMemory) -> None:
    talk(episodes)
    hits = episodes.search("greyhound shelter", limit=5)
    assert len(hits) == 5
    for hit in hits:
        total = sum(hit.parts[part] for part in ("text", "dense", "recency", "importance", "trust"))
        assert hit.score == pytest.approx(total)
    assert all(one.score >= two.score for one, two in pairwise(hits))
    assert hits[0].parts["text_rank"] == 1
    assert hits[0].parts["dense"] == pytest.approx(1 / 21)


def test_recent_important_and_trusted_entries_come_first_among_equals(episodes: EpisodicMemory) -> None:
    def first(**options: Any) -> str:
        name = uuid4().hex
        episodes.append(
            name, f"the report on {name} is ready", at=NOON - timedelta(days=90), text="plain report"
        )
        episodes.append(
            f"{name}2", f"the report on {name} is ready!", at=NOON - timedelta(days=90), **options
        )
        episodes.append(f"{name}3", f"the report on {name} is ready?", at=NOON - timedelta(days=90))
        return str(episodes.search(f"the report on {name} is ready", limit=1)[0].text[-1])

    assert first(importance=1.0) == "!"
    assert first(trust=3) == "!"
    assert first(source="web") == "?"


def test_search_by_time_episode_and_run(episodes: EpisodicMemory) -> None:
    run = uuid4()
    talk(episodes)
    talk(episodes, "other", run=run, step=3)
    late = Filters(since=NOON + timedelta(minutes=3), episode="talk")
    assert {hit.entry.seq for hit in episodes.search("cello name", filters=late)} == {4, 5}
    hits = episodes.search("cello", limit=50, filters=Filters(run=run))
    assert {hit.entry.episode for hit in hits} == {"other"}
    assert {(hit.entry.run_id, hit.entry.step) for hit in hits} == {(run, 3)}


def test_one_episode_from_many_threads_has_one_order(database: MemoryDatabase) -> None:
    """No number twice, none left out, and each entry embedded with the one that is before it."""
    memories = [EpisodicMemory(EMBEDDER, ANN, database=database) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: memories[n % 8].append("talk", f"entry number {n}"), range(48)))
    entries = memories[0].recent(100)
    assert sorted(entry.seq or 0 for entry in entries) == list(range(1, 49))


def vectors(stack: Stack) -> dict[int, np.ndarray]:
    return {
        seq: np.array([float(x) for x in text[1:-1].split(",")])
        for seq, text in stack.rows("SELECT seq, embedding::text FROM memory ORDER BY seq")
    }


@pytest.mark.parametrize("how", ["forget", "expire", "evict"])
def test_what_goes_leaves_no_word_in_its_neighbours(
    episodes: EpisodicMemory, database: MemoryDatabase, stack: Stack, how: str
) -> None:
    """The text, the words and the vectors of the two behind it are as if it had never been there."""
    keys = talk(episodes)
    if how == "forget":
        assert episodes.forget(keys[2]) == 1
    elif how == "expire":
        stack.rows("UPDATE memory SET expires_at = now() - interval '1 second' WHERE key = %s", keys[2])
        assert episodes.sweep() == 1
    else:
        stack.rows("UPDATE memory SET valid_from = now() - interval '1 year' WHERE key = %s", keys[2])
        small = EpisodicMemory(EMBEDDER, ANN, database=database, capacity=5)
        small.append("other", "one more")
        stack.rows("DELETE FROM memory WHERE episode = 'other'")
    left = stack.rows("SELECT tsv::text || text FROM memory")
    assert len(left) == 4
    assert not [text for (text,) in left if "pickl" in text.lower()]
    got = vectors(stack)
    texts = {n + 1: text for n, (_, text) in enumerate(TALK)}
    wanted = EMBEDDER.embed([f"{texts[4]}\n{texts[2]}", f"{texts[5]}\n{texts[4]}"])
    assert np.allclose(got[4], wanted[0], atol=1e-3)
    assert np.allclose(got[5], wanted[1], atol=1e-3)
    assert [hit.text for hit in episodes.search("cucumber pickle", limit=1)] != [texts[3]]


def test_context_stays_within_its_episode_and_agent(
    episodes: EpisodicMemory, database: MemoryDatabase, stack: Stack
) -> None:
    other = EpisodicMemory(EMBEDDER, Scope("acme", "bob"), database=database)
    episodes.append("talk", "the vault code is zebra")
    other.append("talk", "good morning")
    episodes.append("walk", "good evening")
    words = stack.rows("SELECT tsv::text FROM memory WHERE text LIKE 'good%%'")
    assert not [text for (text,) in words if "zebra" in text]


def test_recalled_entries_are_not_appended(episodes: EpisodicMemory) -> None:
    stored = episodes.extend("talk", [("one", {}), ("two", {"source": "recalled"}), ("three", {})])
    assert [each.outcome for each in stored] == ["added", "recalled", "added"]
    assert [(entry.seq, entry.text) for entry in episodes.recent(5)] == [(2, "three"), (1, "one")]


def test_a_list_of_recalled_lines_is_not_appended(episodes: EpisodicMemory, database: MemoryDatabase) -> None:
    """Of entries, of facts, and of entries of the same call. One line more, or one line alone, is said anew."""
    talk(episodes)
    VectorMemory(EMBEDDER, ANN, database=database).store("drink", "Ann likes green tea")
    fed_back = "- My sister plays the cello\n2. ann likes  GREEN tea"
    assert episodes.append("talk", fed_back).outcome == "recalled"
    stored = episodes.extend(
        "talk",
        [
            ("the harbour is closed", {}),
            ("* The harbour is closed\n* What is the name?", {}),
            (fed_back + "\n- and she is good at it", {}),
            ("My sister plays the cello", {}),
            (fed_back, {}),
        ],
    )
    assert [each.outcome for each in stored] == ["added", "recalled", "added", "added", "recalled"]
    assert [each.id is None for each in stored] == [False, True, False, False, True]
    assert [entry.seq for entry in episodes.recent(4)] == [8, 7, 6, 5]
    assert (
        EpisodicMemory(EMBEDDER, Scope("acme", "bob"), database=database).append("talk", fed_back).outcome
        == "added"
    )


def test_a_sentence_that_an_agent_recalled_is_not_appended(
    episodes: EpisodicMemory, database: MemoryDatabase
) -> None:
    """Of a fact, of a link, of what somebody said; by a tool as well. What people say again is said again."""
    talk(episodes)
    facts = VectorMemory(EMBEDDER, ANN, database=database)
    facts.store("drink", "Ann likes green tea")
    facts.store("again", "Ann: likes green tea")
    lines = ("My sister plays the cello", "- ann likes GREEN tea", "Ann: likes green tea.")
    for source in ("agent", "tool"):
        assert {episodes.append("talk", line, source=source).outcome for line in lines} == {"recalled"}
        assert episodes.append("talk", "I shall book a table", source=source).outcome == (
            "added" if source == "agent" else "recalled"
        )
    assert {episodes.append("talk", line).outcome for line in lines} == {"added"}
    assert episodes.append("walk", "I shall book a table", source="agent").outcome == "added"
    bob = EpisodicMemory(EMBEDDER, Scope("acme", "bob"), database=database)
    assert bob.append("talk", "My sister plays the cello", source="agent").outcome == "added"


def test_a_list_of_what_is_gone_is_no_recalled_one(episodes: EpisodicMemory, stack: Stack) -> None:
    """Else what has expired could not be said again."""
    talk(episodes)
    stack.rows("UPDATE memory SET expires_at = now() - interval '1 second' WHERE seq = 4")
    assert episodes.append("walk", "My sister plays the cello\nWhat is the name?").outcome == "added"


def test_the_least_used_entries_make_room_whoever_was_recalled_last(
    database: MemoryDatabase, stack: Stack
) -> None:
    """All entries of a call count."""
    small = EpisodicMemory(EMBEDDER, ANN, database=database, capacity=4)
    small.extend("talk", [*((f"entry number {n}", {}) for n in range(9)), ("again", {"source": "recalled"})])
    assert stack.rows("SELECT array_agg(seq ORDER BY seq) FROM memory") == [([6, 7, 8, 9],)]


def test_the_same_text_is_given_once(episodes: EpisodicMemory) -> None:
    """However often it was said, `limit` other texts are found wherever there are as many."""
    episodes.extend("talk", [("thank you very much", {}) for _ in range(300)])
    episodes.extend("talk", [(f"thank you for {thing}", {}) for thing in ("tea", "jazz", "rain", "maps")])
    hits = episodes.search("thank you", limit=5)
    assert len({hit.text for hit in hits}) == len(hits) == 5


class Slow(HashingEmbedder):
    """Lets somebody else append while it embeds."""

    def __init__(self, meanwhile: EpisodicMemory, times: int) -> None:
        super().__init__(64)
        self.meanwhile = meanwhile
        self.times = times
        self.seen: list[list[str]] = []

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.seen.append(list(texts))
        if self.times > 0:
            self.times -= 1
            self.meanwhile.append("talk", f"in between {self.times}")
        return super().embed(texts)


@pytest.mark.parametrize("times", [1, 50])
def test_an_entry_is_embedded_anew_when_another_came_before_it(
    episodes: EpisodicMemory, database: MemoryDatabase, times: int
) -> None:
    """And after some tries without context, so that it never carries the text of one that is not before it."""
    episodes.append("talk", "first")
    slow = Slow(episodes, times)
    EpisodicMemory(slow, ANN, database=database).append("talk", "mine")
    last = slow.seen[-1][0]
    assert last == ("mine\nin between 0" if times == 1 else "mine")


class Together(HashingEmbedder):
    """Lets nobody go on before eight have come."""

    def __init__(self) -> None:
        super().__init__(64)
        self.barrier = Barrier(8)

    def embed(self, texts: Sequence[str]) -> Any:
        self.barrier.wait(30)
        return super().embed(texts)


def test_an_entry_that_was_given_a_key_is_once_and_is_what_the_key_has(
    episodes: EpisodicMemory, database: MemoryDatabase
) -> None:
    """However many store it at once, to whatever episode: so a step whose body runs twice has said a thing once."""
    together = Together()

    def said(number: int) -> Stored:
        memory = EpisodicMemory(together, ANN, database=database)
        return memory.store("order-7", "Bob orders tea", episode=f"talk {number}")

    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(said, range(8)))
    assert sorted(each.outcome for each in stored) == ["added"] + ["same"] * 7
    assert len({each.id for each in stored}) == 1
    found = episodes.retrieve("order-7")
    assert found is not None
    assert (found.id, found.key, found.value) == (stored[0].id, "order-7", "Bob orders tea")
    assert [entry.id for entry in episodes.recent()] == [found.id]
    alone = episodes.store("note", "an entry on its own")
    assert alone.key == "note"
    assert [entry.key for entry in episodes.recent(filters=Filters(episode="note"))] == ["note"]


def test_another_value_under_the_key_of_an_entry_is_appended_and_the_old_one_is_history(
    episodes: EpisodicMemory,
) -> None:
    """What the old one lent to those behind it stays theirs, until it is forgotten."""
    episodes.store("order-7", "Bob orders tea", episode="talk")
    episodes.append("talk", "And some cake")
    assert episodes.store("order-7", "Bob orders coffee", episode="talk").outcome == "replaced"
    found = episodes.retrieve("order-7")
    assert found is not None
    assert (found.value, found.seq) == ("Bob orders coffee", 3)
    assert [entry.text for entry in episodes.recent()] == ["Bob orders coffee", "And some cake"]
    assert [(entry.text, entry.valid_to is None) for entry in episodes.history("order-7")] == [
        ("Bob orders tea", False),
        ("Bob orders coffee", True),
    ]
    assert episodes.search("tea", limit=1)[0].text == "And some cake"
    assert episodes.forget("order-7") == 2
    assert episodes.history("order-7") == []
    assert episodes.search("tea", limit=1)[0].parts["text"] == 0
