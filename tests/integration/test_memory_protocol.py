"""What holds of every memory, from plain code and from coroutines: the laws of `MemoryProtocol`, on real Postgres."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from memories import EMBEDDER
from stack import Stack, eventually

from trellis.memory import (
    EpisodicMemory,
    Filters,
    HybridMemory,
    MemoryProtocol,
    Scope,
    VectorMemory,
    WorkingMemory,
)
from trellis.memory.connections import MemoryDatabase
from trellis.memory.ranking import PARTS
from trellis.tasks.errors import EntryError, ValueTooLarge

ANN = Scope("acme", "ann")
VERBS = ("store", "retrieve", "search", "forget")
BLOCKED = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"

Make = Callable[[MemoryDatabase, Scope], MemoryProtocol]
KINDS: dict[str, Make] = {
    "vector": lambda database, scope: VectorMemory(EMBEDDER, scope, database=database),
    "episodic": lambda database, scope: EpisodicMemory(EMBEDDER, scope, database=database),
    "hybrid": lambda database, scope: HybridMemory(EMBEDDER, scope, database=database),
    "hybrid of a task": lambda database, scope: HybridMemory(EMBEDDER, scope, task="run", database=database),
    "working": lambda database, scope: WorkingMemory(database, scope, "run", capacity=100),
}


class Awaited:
    """A memory whose verbs are called as coroutines, each in a loop of its own."""

    def __init__(self, memory: MemoryProtocol) -> None:
        self.memory, self.scope = memory, memory.scope

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self.memory, f"a{name}")

        async def call(*given: Any, **named: Any) -> Any:
            return await verb(*given, **named)

        return lambda *given, **named: asyncio.run(call(*given, **named))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Make:
    return KINDS[request.param]


@pytest.fixture(params=["sync", "async"])
def memory(request: pytest.FixtureRequest, kind: Make, database: MemoryDatabase) -> Any:
    made = kind(database, ANN)
    return made if request.param == "sync" else Awaited(made)


def expire(stack: Stack) -> None:
    for table in ("memory", "working"):
        stack.rows(
            f"UPDATE {table} SET expires_at = now() - interval '1 second' WHERE expires_at IS NOT NULL"
        )


def keys(memory: Any, query: str, limit: int = 10, filters: Filters | None = None) -> list[str]:
    return [hit.key for hit in memory.search(query, limit, filters)]


def test_a_value_is_any_json_and_comes_back_under_its_key_with_what_was_said(memory: Any) -> None:
    values = [None, True, -1.5, 2**60, "", "Grüße 'x'); DROP TABLE working;--", [], {"a": [{"b": None}]}]
    for number, value in enumerate(values):
        metadata = {"number": number, "deep": {"x": [1]}}
        stored = memory.store(f"key {number}", value, importance=0.75, metadata=metadata, source="tool")
        found = memory.retrieve(f"key {number}")
        assert (stored.key, stored.id) == (f"key {number}", found.id)
        assert stored.outcome in ("added", "linked")  # None, "" and [] have the same text
        assert (found.key, found.value, found.metadata) == (f"key {number}", value, metadata)
        assert (found.importance, found.source, found.trust, found.agent) == (0.75, "tool", 1, "ann")
        assert found.expires_at is None
    assert memory.retrieve("another") is None


def test_the_text_of_a_value_is_itself_or_a_line_for_each_leaf_or_what_is_said(memory: Any) -> None:
    memory.store("pet", {"animal": {"name": "Pickle"}, "likes": ["walks"]})
    memory.store("form", {"id": 17}, text="the holiday request of Bob")
    memory.store("plain", "nothing of interest")
    [first] = memory.search("Pickle walks", 1)
    assert (first.key, first.text) == ("pet", "animal.name: Pickle\nlikes: walks")
    assert keys(memory, "holiday of Bob", 1) == ["form"]


def test_the_same_value_again_is_the_same_with_what_is_said_now(memory: Any) -> None:
    first = memory.store("city", "Ann lives in Lisbon", importance=0.9, metadata={"a": 1}, ttl=60)
    assert memory.store("city", "Ann lives in Lisbon") == type(first)("city", first.id, "same")
    found = memory.retrieve("city")
    assert (round(found.importance, 3), found.metadata, found.expires_at) == (0.9, {"a": 1}, None)
    memory.store("city", "Ann lives in Lisbon", importance=0.1, metadata={"b": 2}, ttl=60)
    found = memory.retrieve("city")
    assert (round(found.importance, 3), found.metadata) == (0.1, {"b": 2})
    assert found.expires_at is not None
    assert keys(memory, "Lisbon") == ["city"]


def test_another_value_takes_the_place_of_the_old_one(memory: Any) -> None:
    first = memory.store("city", "Ann lives in Lisbon", metadata={"a": 1}, importance=0.9)
    second = memory.store("city", "Now it is Porto")
    assert (second.outcome, second.id == first.id) == ("replaced", False)
    found = memory.retrieve("city")
    assert (found.value, found.metadata, found.importance) == ("Now it is Porto", {}, 0.5)
    assert [hit.value for hit in memory.search("Lisbon Porto")] == ["Now it is Porto"]
    assert memory.search("Lisbon", filters=Filters(metadata={"a": 1})) == []


def test_what_has_expired_never_comes_back(memory: Any, stack: Stack) -> None:
    memory.store("soon", "the parcel is on its way", ttl=60)
    memory.store("later", "the parcel has come")
    assert memory.retrieve("soon").expires_at is not None
    expire(stack)
    assert memory.retrieve("soon") is None
    assert keys(memory, "parcel on its way") == keys(memory, "") == ["later"]
    assert memory.store("soon", "the parcel is on its way").outcome == "added"
    assert memory.retrieve("soon").expires_at is None


def test_what_is_forgotten_is_gone_by_key_and_by_filters(memory: Any) -> None:
    for key, topic in (("tea", "food"), ("rye bread", "food"), ("train", "travel")):
        memory.store(key, f"a note on {key}", metadata={"topic": topic})
    assert memory.forget("tea") == 1
    assert memory.forget("tea") == 0
    assert memory.retrieve("tea") is None
    assert set(keys(memory, "note on tea")) == {"rye bread", "train"}
    assert memory.forget(filters=Filters(metadata={"topic": "food"})) == 1
    assert keys(memory, "note") == ["train"]
    for wrong in ({}, {"filters": Filters()}, {"key": "train", "filters": Filters(min_trust=1)}):
        with pytest.raises(EntryError, match="either a key or filters"):
            memory.forget(**wrong)
    assert memory.retrieve("train") is not None


def test_a_search_gives_the_best_first_as_many_as_there_are_up_to_the_limit(memory: Any) -> None:
    notes = {
        "pet": "Ann has a greyhound named Pickle",
        "drink": "Bob likes coffee in the morning",
        "trip": "the night train to Vienna leaves at ten",
        "work": "the report is due on Monday",
    }
    for key, text in notes.items():
        memory.store(key, text)
    for key, query in (("pet", "greyhound Pickle"), ("trip", "night train"), ("work", "report on Monday")):
        assert keys(memory, query, 1) == [key]
    hits = memory.search("greyhound Pickle coffee", 3)
    assert len(hits) == 3
    assert {hit.key for hit in hits} > {"pet", "drink"}
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert set(keys(memory, "greyhound")) == set(notes)
    assert keys(memory, "") == list(notes)[::-1]
    assert keys(memory, " ", 2) == ["work", "trip"]


def test_a_hit_says_its_kind_and_what_its_score_is_the_sum_of(memory: Any) -> None:
    memory.store("pet", "Ann has a greyhound", importance=1.0)
    memory.store("drink", "Bob likes coffee")
    for hit in memory.search("greyhound"):
        assert hit.kind in ("fact", "episode", "working")
        assert hit.score == pytest.approx(sum(hit.parts.get(name, 0) for name in PARTS))


def test_a_text_is_one_hit(memory: Any) -> None:
    memory.store("one", "Ann has a greyhound")
    memory.store("two", "ann has a  GREYHOUND!")
    assert len(memory.search("greyhound")) == 1
    assert memory.retrieve("one").value == "Ann has a greyhound"
    assert memory.retrieve("two").value == "ann has a  GREYHOUND!"


def test_filters_leave_what_fulfils_all_of_them(memory: Any) -> None:
    memory.store("a", "note one", metadata={"topic": "food", "tags": ["x", "y"]}, actor="Ann")
    memory.store("b", "note two hundred", metadata={"topic": "food"}, source="web")
    memory.store("c", "note on all the rest", metadata={"topic": "travel"}, source="tool")
    asked = {
        "a b": Filters(metadata={"topic": "food"}),
        "a": Filters(metadata={"tags": ["y"]}),
        "a c": Filters(min_trust=1),
        "b": Filters(sources=["web"]),
        "": Filters(metadata={"topic": "food"}, sources=["tool"]),
        "a ": Filters(actors=["Ann"]),
        "a b c": Filters(metadata={}),
    }
    for expected, filters in asked.items():
        for query in ("note", ""):
            assert sorted(keys(memory, query, filters=filters)) == expected.split(), filters
    assert len(keys(memory, "note", 1, asked["a b"])) == 1


def test_what_is_marked_as_recalled_is_not_stored(memory: Any) -> None:
    stored = memory.store("memo", "whatever", source="recalled")
    assert (stored.key, stored.id, stored.outcome) == ("memo", None, "recalled")
    assert memory.retrieve("memo") is None
    assert memory.search("whatever") == []


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("key", lambda memory: memory.store("", 1)),
        ("key", lambda memory: memory.retrieve("a\0b")),
        ("key", lambda memory: memory.forget("x" * 513)),
        ("value", lambda memory: memory.store("k", object())),
        ("value.a.b", lambda memory: memory.store("k", {"a": [{"b": "x\0"}]})),
        ("ttl", lambda memory: memory.store("k", 1, ttl=0)),
        ("importance", lambda memory: memory.store("k", 1, importance=1.1)),
        ("metadata", lambda memory: memory.store("k", 1, metadata=[1])),
        ("colour", lambda memory: memory.store("k", 1, colour="red")),
        ("query", lambda memory: memory.search(1)),
        ("limit", lambda memory: memory.search("x", 0)),
        ("filters.min_trust", lambda memory: memory.search("x", 1, Filters(min_trust=7))),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_by_name(
    kind: Make, database: MemoryDatabase, field: str, call: Callable[[Any], object]
) -> None:
    memory = kind(database, ANN)
    with pytest.raises(EntryError) as refused:
        call(memory)
    assert refused.value.field == field
    with pytest.raises(ValueTooLarge):
        memory.store("k", "x" * database.settings.value_max_bytes)
    assert memory.search("") == []


def test_a_memory_is_that_of_its_tenant_and_agent(kind: Make, database: MemoryDatabase) -> None:
    """What agents share has a scope of its own, without an agent."""
    scopes = [ANN, Scope("acme", "bob"), Scope("acme"), Scope("other", "ann")]
    memories = [kind(database, scope) for scope in scopes]
    for number, memory in enumerate(memories):
        assert memory.retrieve("key") is None
        assert memory.search("note") == []
        memory.store("key", f"note number {number}")
    for number, memory in enumerate(memories):
        found = memory.retrieve("key")
        assert found is not None
        assert (found.value, found.agent) == (f"note number {number}", memory.scope.agent)
        assert [hit.value for hit in memory.search("note")] == [f"note number {number}"]
    assert memories[0].forget("key") == 1
    assert [memory.retrieve("key") is None for memory in memories] == [True, False, False, False]


def test_every_verb_has_a_coroutine_that_takes_the_same(kind: Make, database: MemoryDatabase) -> None:
    """But for `hand`, with which a memory of all kinds gives a task what a fact says."""
    memory = kind(database, ANN)
    verbs = [
        name
        for name, each in inspect.getmembers(type(memory), inspect.isfunction)
        if not name.startswith("_") and not inspect.iscoroutinefunction(each) and name != "hand"
    ]
    assert set(VERBS) < set(verbs)
    for name in verbs:
        own, edge = getattr(type(memory), name), getattr(type(memory), f"a{name}")
        assert inspect.iscoroutinefunction(edge)
        assert inspect.signature(edge) == inspect.signature(own), name


@pytest.mark.parametrize("kind", [VectorMemory, EpisodicMemory, HybridMemory])
def test_a_block_ends_with_what_was_used_written_down(
    kind: type[Any], database: MemoryDatabase, stack: Stack
) -> None:
    """From coroutines as well."""

    async def use() -> None:
        async with kind(EMBEDDER, ANN, database=database) as memory:
            await memory.astore("pet", "Ann has a greyhound")
            await memory.aretrieve("pet")

    asyncio.run(use())
    with kind(EMBEDDER, ANN, database=database) as memory:
        memory.retrieve("pet")
    assert stack.rows("SELECT hits FROM memory_use") == [(2,)]


@pytest.mark.parametrize("verb", [*VERBS, *(f"a{verb}" for verb in VERBS)])
@pytest.mark.parametrize("kind", [VectorMemory, EpisodicMemory, HybridMemory, WorkingMemory])
def test_a_class_takes_what_the_protocol_names(kind: type[Any], verb: str) -> None:
    """By the same names, in the same order and with the same defaults; what it takes besides may be left out.

    mypy compares the types, and lets other names of arguments pass.
    """
    wanted = inspect.signature(getattr(MemoryProtocol, verb)).parameters
    taken = inspect.signature(getattr(kind, verb)).parameters
    assert [name for name in taken if name in wanted] == list(wanted)
    assert all(taken[name] == each for name, each in wanted.items())
    more = [each for name, each in taken.items() if name not in wanted]
    assert all(each.kind is each.KEYWORD_ONLY and each.default is not each.empty for each in more)


def test_a_cancelled_store_is_heard_at_once_and_written_whole(
    kind: Make, database: MemoryDatabase, stack: Stack
) -> None:
    """The memory stays fit for use."""
    memory = kind(database, ANN)
    memory.store("first", "a note that was there")

    async def use(admin: psycopg.Connection) -> None:
        storing = asyncio.create_task(memory.astore("second", "the night train to Vienna"))
        await asyncio.to_thread(eventually, lambda: stack.rows(BLOCKED))
        storing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await storing
        admin.rollback()

    with psycopg.connect(stack.database_url) as admin:
        admin.execute("LOCK TABLE memory, working IN SHARE MODE")
        asyncio.run(use(admin))
    found = memory.retrieve("second")
    assert found is not None
    assert [hit.value for hit in memory.search("train Vienna", 1)] == ["the night train to Vienna"]
