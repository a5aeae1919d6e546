"""Links: keys that say what another one says. No search misses them, and their history is as any other key's."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from memories import EMBEDDER
from stack import Stack

from trellis.memory import Filters, Scope, VectorMemory, import_jsonl
from trellis.memory.connections import MemoryDatabase
from trellis.memory.entries import Entry

ANN = Scope("acme", "ann")
RUN, DAY = uuid4(), datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def facts(database: MemoryDatabase) -> VectorMemory:
    return VectorMemory(EMBEDDER, ANN, database=database)


def links(stack: Stack) -> list[str]:
    return [key for (key,) in stack.rows("SELECT key FROM memory_link ORDER BY key")]


# --- history


def closed(history: list[Entry]) -> list[Any]:
    """The values of a history, after a look at its times."""
    assert all(one.valid_to is not None and one.valid_to <= two.valid_from for one, two in pairwise(history))
    assert all(each.valid_from <= each.valid_to for each in history if each.valid_to is not None)
    assert [each.valid_to is None for each in history] == [False] * (len(history) - 1) + [True]
    return [each.value for each in history]


def test_a_key_keeps_all_that_it_said_whether_or_not_another_one_said_it_too(
    facts: VectorMemory, stack: Stack
) -> None:
    """A row, a link, a link to another row, a row: and it can be forgotten whole."""
    facts.store("tea", "Ann likes tea")
    facts.store("jazz", "Ann likes jazz")
    values = ["Ann likes rain", "ann likes TEA", "ANN likes jazz", "Ann likes chess"]
    outcomes = [facts.store("k", value).outcome for value in values]
    assert outcomes == ["added", "linked", "linked", "replaced"]
    assert closed(facts.history("k")) == values
    assert [hit.key for hit in facts.search("Ann likes", limit=9)].count("k") == 1
    assert stack.rows("SELECT count(*) FROM memory WHERE embedding IS NULL") == [(0,)]
    assert facts.forget("k") == 4
    assert facts.history("k") == []


def test_the_history_of_a_linked_key_has_what_it_says_now(facts: VectorMemory) -> None:
    """Since when it does, whenever it happened; also after the row that it pointed to has gone."""
    facts.store("tea", "Ann likes tea")
    before = datetime.now(UTC) - timedelta(minutes=1)
    facts.store("copy", "ann likes tea!", metadata={})
    [entry] = facts.history("copy")
    assert (entry.value, entry.valid_to, entry.valid_from > before) == ("ann likes tea!", None, True)
    assert entry == facts.retrieve("copy")
    facts.forget("tea")
    assert facts.history("copy") == [entry]
    assert [hit.key for hit in facts.search("tea")] == ["copy"]


def test_what_was_told_of_long_ago_is_in_the_history_since_it_was_stored(facts: VectorMemory) -> None:
    facts.store("tea", "Ann likes tea", at=DAY)
    facts.store("k", "Ann likes rain")
    assert facts.store("k", "ann likes tea", at=DAY).outcome == "linked"
    facts.store("k", "Ann likes chess")
    assert closed(facts.history("k")) == ["Ann likes rain", "ann likes tea", "Ann likes chess"]


def test_a_link_that_has_expired_is_no_history(facts: VectorMemory, stack: Stack) -> None:
    facts.store("tea", "Ann likes tea")
    for value, outcome in (("Ann likes rain", "added"), ("ann likes TEA", "linked")):
        facts.store("k", "ann likes tea", ttl=60)
        stack.rows("UPDATE memory_link SET expires_at = now() - interval '1 second'")
        assert facts.store("k", value).outcome == outcome
        assert [each.value for each in facts.history("k")] == [value]
        facts.forget("k")


@pytest.mark.parametrize("value", ["Ann likes chess", "ANN likes jazz"], ids=["row", "link"])
def test_an_import_keeps_what_a_linked_key_said(
    facts: VectorMemory, database: MemoryDatabase, tmp_path: Path, value: str
) -> None:
    """Its outcome is that of `store`; and links that it makes are history later."""
    facts.store("tea", "Ann likes tea")
    facts.store("jazz", "Ann likes jazz")
    facts.store("k", "ann likes tea")
    done = imported(database, tmp_path, {"key": "k", "value": value})
    assert (done.replaced, done.linked) == ((1, 0) if value == "Ann likes chess" else (0, 1))
    assert closed(facts.history("k")) == ["ann likes tea", value]
    facts.store("k", "Ann likes maps")
    assert closed(facts.history("k")) == ["ann likes tea", value, "Ann likes maps"]


def imported(database: MemoryDatabase, folder: Path, *records: dict[str, Any]) -> Any:
    path = folder / f"{uuid4().hex}.jsonl"
    path.write_text("".join(f"{json.dumps(each)}\n" for each in records))
    return import_jsonl(path, EMBEDDER, ANN, database=database)


# --- what searches find

OTHER: list[tuple[dict[str, Any], dict[str, Any], Filters]] = [
    ({"metadata": {"trip": 8}}, {"metadata": {"trip": 7}}, Filters(metadata={"trip": 7})),
    ({}, {"metadata": {"trip": 7}}, Filters(metadata={"trip": 7})),
    ({}, {"run": RUN}, Filters(run=RUN)),
    ({"run": uuid4()}, {"run": RUN}, Filters(run=RUN)),
    ({}, {"actor": "Ann"}, Filters(actors=["Ann"])),
    ({"actor": "Bob"}, {"actor": "Ann"}, Filters(actors=["Ann"])),
    ({}, {"source": "tool", "trust": 2}, Filters(sources=["tool"])),
    ({"trust": 1}, {"trust": 3}, Filters(min_trust=2)),
    ({"at": DAY}, {"at": DAY + timedelta(days=3)}, Filters(since=DAY + timedelta(days=2))),
    ({}, {"at": DAY}, Filters(until=DAY + timedelta(days=2))),
]
COVERED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"metadata": {"trip": 7, "tags": ["a", "b"]}}, {"metadata": {"tags": ["b"]}}),
    ({"run": RUN, "actor": "Ann"}, {}),
    ({"run": RUN, "actor": "Ann", "at": DAY}, {"run": RUN, "actor": "Ann", "at": DAY}),
    ({"trust": 3}, {"trust": 1}),
]


@pytest.mark.parametrize(("first", "second", "filters"), OTHER, ids=[str(each[2])[8:30] for each in OTHER])
@pytest.mark.parametrize("text", ["Green tea!", "green: tea"], ids=["same text", "near"])
def test_what_a_filter_asks_for_is_found_whoever_said_the_same_before(
    facts: VectorMemory, first: dict[str, Any], second: dict[str, Any], filters: Filters, text: str
) -> None:
    """And a search without a filter gives a text once."""
    facts.store("drink", "green tea", **first)
    assert facts.store("drink2", text, **second).outcome == "added"
    assert [hit.key for hit in facts.search("tea", filters=filters)] == ["drink2"]
    if text == "Green tea!":
        assert len(facts.search("tea")) == 1
    assert facts.store("drink3", text, **second).outcome == "linked"


@pytest.mark.parametrize(("first", "second"), COVERED)
def test_what_no_filter_tells_apart_is_one_row(
    facts: VectorMemory, stack: Stack, first: dict[str, Any], second: dict[str, Any]
) -> None:
    facts.store("drink", "green tea", **first)
    assert facts.store("drink2", "Green tea", **second).outcome == "linked"
    assert facts.store("drink3", "green: tea", **second).outcome == "linked"
    assert stack.rows("SELECT count(*) FROM memory") == [(1,)]


@pytest.mark.parametrize("again", ["row", "link"])
def test_metadata_that_is_told_anew_hides_no_other_key(
    facts: VectorMemory, database: MemoryDatabase, stack: Stack, tmp_path: Path, again: str
) -> None:
    """A link becomes a row where the two are told apart now, by a store or by a file, and keeps its id and time."""
    for how in ("store", "file"):
        facts.store("drink", "tea", metadata={"trip": 7})
        ids = [facts.store(f"drink{n}", "Tea", metadata={"trip": 7}).id for n in (2, 3)]
        since = facts.history("drink2")[0].valid_from
        key, value = ("drink", "tea") if again == "row" else ("drink2", "Tea")
        if how == "store":
            assert facts.store(key, value, metadata={"trip": 8}).outcome == "same"
        else:
            done = imported(database, tmp_path, {"key": key, "value": value, "metadata": {"trip": 8}})
            assert done.same == 1
        for trip in (7, 8):
            [hit] = facts.search("tea", filters=Filters(metadata={"trip": trip}))
            assert hit.metadata == {"trip": trip}
        assert [facts.retrieve(f"drink{n}").id for n in (2, 3)] == ids  # type: ignore[union-attr]
        assert facts.history("drink2")[0].valid_from == since
        assert stack.rows("SELECT count(*) FROM memory") == [(2,)]
        assert len(links(stack)) == 1
        for gone in ("drink", "drink2", "drink3"):
            facts.forget(gone)


def test_a_link_becomes_a_row_when_the_row_it_pointed_to_goes(facts: VectorMemory) -> None:
    facts.store("city", "Ann lives in Lisbon")
    facts.store("home", "Ann lives in Lisbon!")
    facts.store("place", "ann lives in lisbon")
    assert facts.forget("city") == 1
    assert facts.retrieve("city") is None
    [hit] = facts.search("Lisbon")
    assert hit.key == "place"  # the newest
    facts.store("place", "Ann is in Porto now")
    assert {hit.key for hit in facts.search("Ann")} == {"home", "place"}


def test_links_that_lose_their_row_hide_nothing_of_one_another(facts: VectorMemory, stack: Stack) -> None:
    """The most trusted is the next row; which it does not stand for is a row of its own."""
    facts.store("drink", "tea", metadata={"trip": 7, "day": 1}, trust=3)
    facts.store("low", "Tea", trust=1)
    facts.store("high", "TEA", trust=3)
    facts.store("trip", "tea!", metadata={"trip": 7}, trust=2)
    facts.store("late", "tea.", trust=1)
    assert links(stack) == ["high", "late", "low", "trip"]
    facts.forget("drink")
    assert links(stack) == ["late", "low"]
    assert [hit.key for hit in facts.search("tea", filters=Filters(min_trust=3))] == ["high"]
    assert [hit.key for hit in facts.search("tea", filters=Filters(metadata={"trip": 7}))] == ["trip"]


def test_a_text_is_given_by_the_row_that_is_trusted_most(facts: VectorMemory) -> None:
    for n in range(6):
        facts.store(f"page{n}", "the office opens at nine", source="web", run=uuid4())
    facts.store("said", "The office opens at NINE", source="user")
    for n in range(6, 12):
        facts.store(f"page{n}", "the office opens at nine", source="web", run=uuid4())
    assert [hit.key for hit in facts.search("office", limit=3)] == ["said"]
