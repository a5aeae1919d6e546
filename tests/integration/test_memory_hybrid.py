"""All memories behind one door: keys from the nearest place, one search over facts and episodes."""

from __future__ import annotations

import pytest
from memories import EMBEDDER
from stack import Stack

from trellis.memory import Filters, HybridMemory, Scope, ranking
from trellis.memory.connections import MemoryDatabase

ANN = Scope("acme", "ann")


def hybrid(database: MemoryDatabase, task: str | None = None) -> HybridMemory:
    return HybridMemory(EMBEDDER, ANN, task=task, database=database)


def test_a_key_is_found_where_it_is_nearest_and_put_nearer(database: MemoryDatabase) -> None:
    """What one task stored is a fact for the next one, and from then on in its working memory."""
    hybrid(database, "run-1").store(
        "city",
        "Ann lives in Lisbon",
        metadata={"of": "Ann"},
        importance=0.75,
        source="tool",
        actor="Ann",
        step=3,
    )
    memory = hybrid(database, "run-2")
    first, second = memory.retrieve("city"), memory.retrieve("city")
    assert first is not None
    assert second is not None
    assert (first.kind, first.value) == ("fact", "Ann lives in Lisbon")
    assert (second.kind, second.value) == ("working", "Ann lives in Lisbon")
    assert second == first._replace(kind="working", valid_from=second.valid_from)
    assert memory.retrieve("nothing") is None
    alone = hybrid(database).retrieve("city")
    assert alone is not None
    assert alone.kind == "fact"


def test_one_search_finds_facts_and_entries(database: MemoryDatabase) -> None:
    memory = hybrid(database)
    memory.store("pet", "Ann has a greyhound")
    memory.append("call", "The greyhound ran away today")
    memory.append("call", "We found it in the park")
    memory.store("drink", "Ann likes green tea")
    hits = memory.search("greyhound", limit=2)
    assert {hit.kind for hit in hits} == {"fact", "episode"}
    assert all("greyhound" in hit.text for hit in hits)
    assert len(memory.search("greyhound", limit=10)) == 4
    assert {hit.kind for hit in memory.search("greyhound", filters=Filters(episode="call"))} == {"episode"}


def test_what_is_a_fact_and_an_entry_is_given_once(database: MemoryDatabase) -> None:
    memory = hybrid(database)
    memory.store("pet", "Ann has a greyhound")
    memory.append("call", "ann has a  greyhound")
    assert len(memory.search("greyhound", limit=10)) == 1


def test_forgetting_reaches_every_place(database: MemoryDatabase, stack: Stack) -> None:
    """Also the working memories of other tasks, which were handed the value."""
    memory, other = hybrid(database, "run-1"), hybrid(database, "run-2")
    memory.store("city", "Ann lives in Lisbon", metadata={"private": True})
    memory.store("pet", "Ann has a greyhound", metadata={"private": True})
    assert other.retrieve("city") is not None
    assert other.retrieve("pet") is not None
    assert memory.forget("city") == 1
    assert memory.retrieve("city") is None
    assert other.retrieve("city") is None
    assert memory.forget(filters=Filters(metadata={"private": True})) == 1
    assert other.retrieve("pet") is None
    assert stack.rows("SELECT count(*) FROM working") == [(0,)]


def test_another_value_is_seen_by_every_task(database: MemoryDatabase) -> None:
    """A fact that is replaced is no longer what other tasks have been handed."""
    memory, other = hybrid(database, "run-1"), hybrid(database, "run-2")
    memory.store("city", "Ann lives in Lisbon")
    other.retrieve("city")
    memory.store("city", "Ann lives in Porto")
    for each in (memory, other):
        found = each.retrieve("city")
        assert found is not None
        assert found.value == "Ann lives in Porto"


def test_recalled_text_does_not_get_into_the_task(database: MemoryDatabase) -> None:
    memory = hybrid(database, "run-1")
    assert memory.store("memo", "whatever", source="recalled").outcome == "recalled"
    assert memory.retrieve("memo") is None


@pytest.mark.parametrize("rows", [ranking.EXACT_ROWS, 1], ids=["exact", "large"])
def test_a_search_finds_what_only_the_task_holds(
    database: MemoryDatabase, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """In the one statement, beside facts and entries; what a fact gave the task is that fact's hit alone."""
    monkeypatch.setattr(ranking, "EXACT_ROWS", rows)
    memory, other = hybrid(database, "run-1"), hybrid(database, "run-2")
    assert memory.working is not None
    memory.store("pet", "Ann has a greyhound", metadata={"topic": "dogs"})
    memory.append("call", "The greyhound ran away today")
    memory.store("drink", "Ann likes green tea")
    memory.working.store(
        "plan", "call the shelter about the greyhound", metadata={"topic": "dogs"}, source="web"
    )
    memory.working.store("copy", "ann likes  GREEN tea!")
    hits = {hit.key: hit for hit in memory.search("greyhound shelter", limit=3)}
    assert sorted(hit.kind for hit in hits.values()) == ["episode", "fact", "working"]
    plan = hits["plan"]
    assert (plan.text, plan.source) == ("call the shelter about the greyhound", "web")
    assert plan.metadata == {"topic": "dogs"}
    assert plan.parts["text_rank"] == 1
    assert plan.score == pytest.approx(sum(plan.parts[name] for name in ranking.PARTS))
    teas = [hit.kind for hit in memory.search("green tea", limit=3) if "tea" in hit.text]
    assert teas == ["fact"]
    dogs = Filters(metadata={"topic": "dogs"})
    assert {hit.key for hit in memory.search("greyhound", filters=dogs)} == {"pet", "plan"}
    assert {hit.key for hit in memory.search("greyhound", filters=Filters(sources=["web"]))} == {"plan"}
    assert [hit.key for hit in memory.search("", limit=2)] == ["copy", "plan"]
    assert "plan" not in {hit.key for hit in other.search("greyhound shelter", limit=10)}
    assert "plan" not in {hit.key for hit in hybrid(database).search("greyhound shelter", limit=10)}


def test_a_search_needs_no_fact_to_find_what_the_task_holds(database: MemoryDatabase) -> None:
    memory = hybrid(database, "run-1")
    assert memory.search("shelter") == memory.search("") == []
    assert memory.working is not None
    memory.working.store("plan", "call the shelter")
    memory.working.store("other", "wash the car")
    assert [hit.key for hit in memory.search("shelter")] == ["plan", "other"]
    assert [hit.key for hit in memory.search("", limit=1)] == ["other"]


def test_what_the_task_holds_is_forgotten_with_the_rest(database: MemoryDatabase) -> None:
    memory = hybrid(database, "run-1")
    assert memory.working is not None
    private = Filters(metadata={"private": True})
    memory.store("city", "Ann lives in Lisbon", metadata={"private": True})
    memory.working.store("plan", "call the shelter", metadata={"private": True})
    memory.working.store("car", "wash the car")
    assert memory.forget(filters=private) == 2
    assert memory.forget("car") == 1
    assert memory.search("", limit=10) == memory.working.items() == []


def test_forgetting_leaves_what_all_agents_share(database: MemoryDatabase) -> None:
    HybridMemory(EMBEDDER, Scope("acme"), database=database).store("wifi", "The password is on the board")
    memory = HybridMemory(EMBEDDER, ANN, task="run-1", include_shared=True, database=database)
    assert memory.retrieve("wifi") is not None
    assert memory.forget("wifi") == 0
    found = memory.retrieve("wifi")
    assert found is not None
    assert found.agent == ""
