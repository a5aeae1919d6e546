"""Facts: by key, by meaning, with their history, on real Postgres."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import uuid4

import numpy as np
import psycopg
import pytest
from memories import EMBEDDER
from stack import Stack

from trellis.memory import EpisodicMemory, Filters, HybridMemory, Scope, VectorMemory
from trellis.memory.connections import MemoryDatabase
from trellis.memory.embedders.hashing import HashingEmbedder
from trellis.tasks import schema
from trellis.tasks.errors import EmbeddingError, EntryError, MissingExtension, ModelMismatch, ValueTooLarge
from trellis.tasks.settings import Settings

ANN = Scope("acme", "ann")
PAST = "UPDATE memory SET expires_at = now() - interval '1 second' WHERE expires_at IS NOT NULL"


@pytest.fixture
def facts(database: MemoryDatabase) -> VectorMemory:
    return VectorMemory(EMBEDDER, ANN, database=database)


def test_what_is_trusted_less_hides_nothing_that_is_trusted_more(facts: VectorMemory) -> None:
    """A page that says a thing first: the same words of a person are a fact of their own, under any key."""
    facts.store("page", "the office opens at nine", source="web")
    facts.store("alias", "the office opens at NINE", source="web")
    trusted = Filters(min_trust=1)
    assert facts.search("office", filters=trusted) == []
    assert facts.store("said", "The office opens  at nine").outcome == "added"
    assert [hit.key for hit in facts.search("office", filters=trusted)] == ["said"]
    assert facts.store("page", "the office opens at nine").outcome == "linked"
    assert facts.store("alias", "the office opens at NINE", source="web").outcome == "same"
    assert facts.store("other", "THE office opens at nine", source="web").outcome == "linked"
    facts.store("shop", "the shop is closed", source="web")
    assert facts.store("shop", "the shop is closed").outcome == "replaced"
    assert [entry.trust for entry in facts.history("shop")] == [0, 2]


def test_what_is_stored_is_answered_by_its_key_and_found_by_its_text(facts: VectorMemory) -> None:
    at = datetime(2026, 5, 4, 12, tzinfo=UTC)
    run = uuid4()
    stored = facts.store(
        "drink", {"likes": ["green tea", 2, None]}, metadata={"topic": "food"}, importance=0.9, source="tool",
        trust=3, actor="Ann", at=at, run=run, step=4,
    )  # fmt: skip
    assert stored.outcome == "added"
    entry = facts.retrieve("drink")
    assert entry is not None
    assert (entry.id, entry.value, entry.text) == (
        stored.id,
        {"likes": ["green tea", 2, None]},
        "likes: green tea\nlikes: 2",
    )
    assert (entry.metadata, entry.source, entry.trust, entry.actor) == ({"topic": "food"}, "tool", 3, "Ann")
    assert (entry.at, entry.run_id, entry.step, entry.importance) == (at, run, 4, pytest.approx(0.9))
    facts.store("city", "Ann lives in Lisbon")
    assert [hit.key for hit in facts.search("who likes green tea?", limit=1)] == ["drink"]
    assert facts.retrieve("nothing") is None


def test_another_value_closes_the_old_one_and_keeps_it(facts: VectorMemory) -> None:
    """Contradiction: the old fact ends when the new one begins, and is found no more."""
    facts.store("city", "Ann lives in Lisbon")
    assert facts.store("city", "Ann has moved to Porto").outcome == "replaced"
    old, new = facts.history("city")
    assert (old.value, new.value, new.valid_to) == ("Ann lives in Lisbon", "Ann has moved to Porto", None)
    assert old.valid_to is not None
    assert old.valid_to <= new.valid_from
    assert [hit.value for hit in facts.search("Lisbon")] == ["Ann has moved to Porto"]


def test_the_same_again_changes_nothing_but_its_time(facts: VectorMemory) -> None:
    first = facts.store("city", "Lisbon", ttl=60)
    again = facts.store("city", "Lisbon")
    assert (again.outcome, again.id) == ("same", first.id)
    [entry] = facts.history("city")
    assert entry.expires_at is None


@pytest.mark.parametrize(
    "again", ["  ANN lives in\nLisbon ", "3. \u201cAnn lives in Lisbon!\u201d", "Ann: lives in Lisbon"]
)
def test_what_is_said_twice_is_found_once_and_answered_twice(facts: VectorMemory, again: str) -> None:
    """Other case, spaces and marks around it are the same hash, marks in it the same vector."""
    facts.store("city", "Ann lives in Lisbon")
    assert facts.store("home", again).outcome == "linked"
    entry = facts.retrieve("home")
    assert entry is not None
    assert entry.value == again
    assert [hit.key for hit in facts.search("where does Ann live")] == ["city"]
    assert facts.store("home", again).outcome == "same"
    assert facts.store("home", "Ann owns a house in Porto").outcome == "replaced"
    assert {hit.key for hit in facts.search("Ann")} == {"city", "home"}


@pytest.mark.parametrize("other", ["the ticket costs 11 euros", "the ticket does not cost 10 euros"])
def test_other_numbers_and_denials_are_no_duplicates(database: MemoryDatabase, other: str) -> None:
    """However near a model puts them: here it puts all texts in one place."""

    class Flat(HashingEmbedder):
        def embed(self, texts: list[str]) -> np.ndarray:
            return np.tile(np.eye(1, 64, dtype=np.float32), (len(texts), 1))

    facts = VectorMemory(Flat(64), ANN, database=database)
    facts.store("one", "the ticket costs 10 euros")
    assert facts.store("two", other).outcome == "added"
    assert facts.store("three", "a ticket for 10 euros").outcome == "linked"


def test_what_was_recalled_is_not_stored_again(facts: VectorMemory) -> None:
    facts.store("city", "Ann lives in Lisbon")
    facts.store("drink", "Ann likes green tea")
    assert facts.store("memo", "whatever", source="recalled").outcome == "recalled"
    fed_back = "- Ann lives in Lisbon\n- Ann likes green tea\n"
    assert facts.store("memo", fed_back).outcome == "recalled"
    assert facts.retrieve("memo") is None
    facts.store("other", "Ann: lives in Lisbon")
    facts.store("mine", "Ann: likes green tea")  # both are links
    assert facts.store("memo", "- Ann: lives in Lisbon\n- Ann: likes green tea").outcome == "recalled"
    assert facts.store("memo", fed_back + "- Ann has a dog").outcome == "added"


def test_what_is_shared_is_recalled_by_those_who_read_it(database: MemoryDatabase) -> None:
    shared = VectorMemory(EMBEDDER, Scope("acme"), database=database)
    shared.store("wifi", "The password is on the board")
    shared.store("door", "The door closes at nine")
    fed_back = "- The password is on the board\n- The door closes at nine"
    reader = VectorMemory(EMBEDDER, ANN, include_shared=True, database=database)
    assert reader.store("memo", fed_back).outcome == "recalled"
    assert VectorMemory(EMBEDDER, ANN, database=database).store("memo", fed_back).outcome == "added"


def test_what_has_expired_never_comes_back(facts: VectorMemory, stack: Stack) -> None:
    """By no method, swept or not; and its key is free."""
    facts.store("city", "Ann lives in Lisbon", ttl=3600)
    facts.store("home", "Ann lives in Lisbon!", ttl=timedelta(hours=1))
    facts.store("drink", "Ann likes green tea")
    stack.rows(PAST)
    stack.rows(PAST.replace("memory", "memory_link"))
    for _ in range(2):
        assert facts.retrieve("city") is None
        assert facts.retrieve("home") is None
        assert facts.history("city") == []
        assert [hit.key for hit in facts.search("Ann lives in Lisbon")] == ["drink"]
        assert [hit.key for hit in facts.search("")] == ["drink"]
        facts.sweep()
    assert stack.rows("SELECT count(*) FROM memory") == [(1,)]
    assert stack.rows("SELECT count(*) FROM memory_link") == [(0,)]
    assert facts.store("city", "Ann lives in Lisbon", ttl=3600).outcome == "added"
    stack.rows(PAST)
    assert facts.store("city", "Ann lives in Lisbon").outcome in ("added", "replaced")
    assert facts.retrieve("city") is not None


def test_the_least_used_makes_room(database: MemoryDatabase) -> None:
    facts = VectorMemory(EMBEDDER, ANN, database=database, capacity=5)
    for n in range(5):
        facts.store(f"k{n}", f"fact number {n} of {n}")
    facts.retrieve("k0")
    facts.search("fact number 3 of 3", limit=1)
    facts.flush()
    for n in range(5, 8):
        facts.store(f"k{n}", f"fact number {n} of {n}")
    left = {hit.key for hit in facts.search("fact", limit=50)}
    assert len(left) == 5
    assert {"k0", "k3", "k7"} <= left
    assert facts.retrieve("k1") is None


def test_keys_that_say_the_same_take_room_as_well(database: MemoryDatabase, stack: Stack) -> None:
    """And what they say outlives the key that said it first."""
    facts = VectorMemory(EMBEDDER, ANN, database=database, capacity=5)
    facts.store("drink", "Ann likes green tea")
    facts.retrieve("drink")
    facts.flush()
    outcomes = Counter(facts.store(f"tea{n}", f"Ann likes{' ' * n} green tea").outcome for n in range(30))
    assert outcomes == {"linked": 30}
    assert stack.rows("SELECT (SELECT count(*) FROM memory), (SELECT count(*) FROM memory_link)") == [(1, 4)]
    assert facts.retrieve("drink") is not None  # it was used
    assert facts.retrieve("tea29") is not None  # it came last
    stack.rows("UPDATE memory SET valid_from = now() - interval '1 year'")
    stack.rows("UPDATE memory_use SET last_hit = now() - interval '1 year'")
    facts.store("tea30", "ann likes green tea")
    assert facts.retrieve("drink") is None
    assert len(facts.search("green tea")) == 1
    assert stack.rows("SELECT (SELECT count(*) FROM memory), (SELECT count(*) FROM memory_link)") == [(1, 4)]


def test_what_has_expired_makes_room_before_what_lives(database: MemoryDatabase, stack: Stack) -> None:
    facts = VectorMemory(EMBEDDER, ANN, database=database, capacity=5)
    for n in range(5):
        facts.store(f"old{n}", f"an old fact number {n}", ttl=60)
    stack.rows(PAST)
    for n in range(5):
        facts.store(f"new{n}", f"a new fact number {n}")
    assert {hit.key for hit in facts.search("fact", limit=50)} == {f"new{n}" for n in range(5)}


def test_forgetting_takes_history_links_and_counts_along(facts: VectorMemory, stack: Stack) -> None:
    facts.store("city", "Lisbon", metadata={"trip": 7})
    facts.store("city", "Porto", metadata={"trip": 7})
    facts.store("drink", "tea", metadata={"trip": 8})
    facts.store("drink2", "Tea", metadata={"trip": 7})
    facts.retrieve("city")
    facts.flush()
    assert facts.forget(filters=Filters(metadata={"trip": 7})) == 3
    assert facts.forget("city") == 0
    assert facts.history("city") == []
    assert facts.retrieve("drink2") is None
    assert stack.rows("SELECT key FROM memory") == [("drink",)]
    assert stack.rows("SELECT count(*) FROM memory_use") == [(0,)]
    with pytest.raises(EntryError, match="either a key or filters"):
        facts.forget(filters=Filters())


def test_filters_hold_all_at_once(facts: VectorMemory) -> None:
    day = datetime(2026, 1, 1, tzinfo=UTC)
    for n in range(8):
        facts.store(
            f"k{n}", f"note about item {n}", metadata={"even": n % 2 == 0, "tags": {"n": n}},
            source="web" if n < 4 else "user", at=day + timedelta(days=n), actor="Ann" if n in (4, 6) else None,
        )  # fmt: skip

    def found(filters: Filters) -> set[str]:
        return {hit.key for hit in facts.search("note", limit=50, filters=filters)}

    assert found(Filters(metadata={"even": True})) == {"k0", "k2", "k4", "k6"}
    assert found(Filters(metadata={"tags": {"n": 3}})) == {"k3"}
    assert found(Filters(sources=["web"], metadata={"even": True})) == {"k0", "k2"}
    assert found(Filters(min_trust=2)) == {"k4", "k5", "k6", "k7"}
    assert found(Filters(since=day + timedelta(days=2), until=day + timedelta(days=4))) == {"k2", "k3"}
    assert found(Filters(actors=["Ann"])) == {"k4", "k6"}


def test_one_key_from_many_threads_has_one_value(database: MemoryDatabase) -> None:
    """Whoever comes last closes what came before: one live row, and the whole history."""
    memories = [VectorMemory(EMBEDDER, ANN, database=database) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        outcomes = Counter(
            pool.map(lambda n: memories[n % 8].store("key", f"value number {n}").outcome, range(40))
        )
    assert outcomes == {"added": 1, "replaced": 39}
    history = memories[0].history("key")
    assert len(history) == 40
    assert [entry.valid_to is None for entry in history].count(True) == 1
    assert all(one.valid_to <= two.valid_from for one, two in pairwise(history) if one.valid_to)


def test_one_text_from_many_threads_is_one_row(database: MemoryDatabase, stack: Stack) -> None:
    memories = [VectorMemory(EMBEDDER, ANN, database=database) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        outcomes = Counter(
            pool.map(lambda n: memories[n % 8].store(f"key{n}", "the same text").outcome, range(24))
        )
    assert outcomes == {"added": 1, "linked": 23}
    assert stack.rows("SELECT count(*) FROM memory") == [(1,)]


def _store_in_a_process(url: str, n: int) -> str:
    database = MemoryDatabase(Settings(database_url=url))
    try:
        return VectorMemory(EMBEDDER, ANN, database=database).store("key", f"value number {n}").outcome
    finally:
        database.close()


def test_one_key_from_eight_processes_has_one_value(facts: VectorMemory, stack: Stack) -> None:
    """Also when they meet at the very first use, and each would make the model's partition."""
    with multiprocessing.get_context("fork").Pool(8) as pool:
        outcomes = Counter(pool.starmap(_store_in_a_process, [(stack.database_url, n) for n in range(8)]))
    assert outcomes == {"added": 1, "replaced": 7}
    assert len(facts.history("key")) == 8
    assert len(facts.search("value", limit=50)) == 1


def test_a_search_never_mixes_models(database: MemoryDatabase) -> None:
    """A row of another model is in reach by key, and is found by no search; stored again, it moves."""
    one = VectorMemory(EMBEDDER, ANN, database=database)
    two = VectorMemory(HashingEmbedder(32), ANN, database=database)
    one.store("city", "Ann lives in Lisbon")
    two.store("drink", "Ann likes green tea")
    assert [hit.key for hit in one.search("Ann", limit=50)] == ["city"]
    assert [hit.key for hit in two.search("Ann", limit=50)] == ["drink"]
    assert two.retrieve("city") is not None
    assert two.store("city", "Ann lives in Lisbon").outcome == "replaced"
    assert one.search("Ann") == []


def test_a_model_that_changes_its_dimensions_is_refused(database: MemoryDatabase) -> None:
    class Grown(HashingEmbedder):
        def __init__(self) -> None:
            super().__init__(32)
            self.model = EMBEDDER.model

    VectorMemory(EMBEDDER, ANN, database=database).store("a", "b")
    with pytest.raises(ModelMismatch, match="32 dimensions, its memories have 64"):
        VectorMemory(Grown(), ANN, database=database).store("c", "d")

    class Short(HashingEmbedder):
        def embed(self, texts: list[str]) -> np.ndarray:
            return super().embed(texts)[:, :8]

    with pytest.raises(EmbeddingError, match="shape"):
        VectorMemory(Short(64), ANN, database=database).search("x")


def test_what_postgres_cannot_keep_is_refused_by_name(facts: VectorMemory) -> None:
    """NUL, lone surrogates, what JSON has no word for; in keys, values, metadata, queries and filters."""
    nul, lone = "a\0b", "a\ud800b"
    for bad in (nul, lone):
        for call, field in (
            (lambda bad=bad: facts.store(bad, "x"), "key"),
            (lambda bad=bad: facts.store("k", {"in": [{"deep": bad}]}), "value.in.deep"),
            (lambda bad=bad: facts.store("k", {bad: 1}), "value"),
            (lambda bad=bad: facts.store("k", "x", metadata={"m": bad}), "metadata.m"),
            (lambda bad=bad: facts.store("k", "x", actor=bad), "actor"),
            (lambda bad=bad: facts.store("k", "x", text=bad), "text"),
            (lambda bad=bad: facts.search(bad), "query"),
            (lambda bad=bad: facts.search("x", filters=Filters(metadata={"m": bad})), "filters.metadata.m"),
            (lambda bad=bad: facts.retrieve(bad), "key"),
            (lambda bad=bad: Scope(bad, "a"), "tenant"),
        ):
            with pytest.raises(EntryError) as caught:
                call()
            assert caught.value.field == field
    for value in (float("nan"), {"x": float("inf")}, {1: 2}, {"x": object()}, b"bytes"):
        with pytest.raises(EntryError):
            facts.store("k", value)
    for too_large, remedy in (
        (lambda: facts.store("k", "x" * 2_000_000), "keep less of it.*TRELLIS_VALUE_MAX_BYTES$"),
        (lambda: facts.store("k", "x", metadata={"m": "x" * 2_000_000}), "^metadata is.*keep less of it"),
        (
            lambda: facts.search("x", filters=Filters(metadata={"m": "x" * 70_000})),
            r"^filters\.metadata is .*, the limit is 65,536: ask for less metadata$",
        ),
    ):
        with pytest.raises(ValueTooLarge, match=remedy):
            too_large()
    for options in (
        {"importance": 2},
        {"ttl": 0},
        {"trust": 4},
        {"source": "rumour"},
        {"step": -1},
        {"color": 1},
    ):
        with pytest.raises(EntryError):
            facts.store("k", "x", **options)
    assert facts.search("x") == []


def test_a_megabyte_of_text_is_kept_and_found_by_its_beginning(stack: Stack) -> None:
    settings = stack.settings.model_copy(update={"value_max_bytes": 4_000_000})
    database = MemoryDatabase(settings)
    facts = VectorMemory(EMBEDDER, ANN, database=database)
    text = "the whale hunts giant squid in the deep\n" + " ".join(f"word{n:x}" for n in range(120_000))
    assert len(text) > 1_000_000
    assert facts.store("long", text).outcome == "added"
    assert facts.store("short", "tea").outcome == "added"
    found = facts.retrieve("long")
    assert found is not None
    assert found.value == text
    assert len(facts.search(text, limit=2)) == 2
    database.close()


HOSTILE = [
    "x') OR 1=1--",
    "'; DROP TABLE memory; --",
    "%(tenant)s",
    "{dims}",
    "$1",
    "\\",
    "' & ' | !",
    "a:*b <-> c",
    "%",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_sql_in_any_text_is_text(facts: VectorMemory, text: str) -> None:
    facts.store("calm", "Ann likes green tea")
    assert facts.store(text, {text: text}, metadata={text: text}, actor=text).outcome == "added"
    entry = facts.retrieve(text)
    assert entry is not None
    assert entry.value == {text: text}
    hits = facts.search(text, limit=5, filters=Filters(metadata={text: text}, actors=[text]))
    assert [hit.key for hit in hits] == [text]
    assert facts.search("tea", filters=Filters(metadata={text: "other"})) == []
    assert facts.forget(filters=Filters(metadata={text: text})) == 1
    assert facts.retrieve("calm") is not None


def test_a_value_without_a_word_is_answered_by_its_key(facts: VectorMemory) -> None:
    """It has no vector, and no search finds it but the list of the newest."""
    facts.store("none", None)
    facts.store("blank", "  ")
    facts.store("tea", "tea")
    entry = facts.retrieve("none")
    assert entry is not None
    assert entry.value is None
    assert [hit.key for hit in facts.search("tea")] == ["tea"]
    assert {hit.key for hit in facts.search("   ")} >= {"none", "tea"}


def test_a_database_without_the_extension_is_refused_with_the_remedy(stack: Stack) -> None:
    """Before anything is asked of it; and a migration says it as well."""
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        connection.execute("DROP EXTENSION vector CASCADE")
    database = MemoryDatabase(stack.settings)
    with pytest.raises(MissingExtension, match="CREATE EXTENSION vector") as caught:
        VectorMemory(EMBEDDER, ANN, database=database).store("a", "b")
    assert caught.value.extension == "vector"
    assert schema.head() >= "0006"
    database.close()


def test_noise_leaves_no_junk(facts: VectorMemory, database: MemoryDatabase, stack: Stack) -> None:
    """Spellings of known facts and recalled lists of them, as facts and as entries: what is left is the facts, and who
    else is asked says what was said before (`benchmarks/memory.py --junk` is this with a model, and 10,000 writes).
    """
    rng = np.random.default_rng(7)
    things = ["tea", "coffee", "jazz", "chess", "hiking", "ceramics", "opera", "rain", "trains", "maps"]
    known = [f"{name} is fond of {thing}" for name in ("Ann", "Bob", "Cy", "Dee") for thing in things]
    other = VectorMemory(EMBEDDER, Scope("acme", "bob"), database=database)
    for n, fact in enumerate(known):
        facts.store(f"f{n}", fact)
        if n % 4 == 0:
            other.store(f"f{n}", fact)
    before = [[hit.key for hit in other.search(thing, 5)] for thing in things]
    episodes = EpisodicMemory(EMBEDDER, ANN, database=database)
    for n in range(240):
        fact = known[rng.integers(len(known))]
        ways = [
            fact.upper(),
            f"  {fact}. ",
            fact.replace(" ", "  "),
            f"{fact}!!",
            f"- {fact}",
            f"7. \u201c{fact}\u201d",
        ]
        assert facts.store(f"noise{n}", ways[n % len(ways)]).outcome == "linked"
        if n % 4 == 0:
            recalled = "\n".join(f"- {known[i]}" for i in rng.choice(len(known), 3, replace=False))
            assert facts.store(f"recalled{n}", recalled).outcome == "recalled"
            assert episodes.append("talk", recalled).outcome == "recalled"
    assert stack.rows("SELECT count(*) FROM memory WHERE agent = 'ann'") == [(len(known),)]
    assert [[hit.key for hit in other.search(thing, 5)] for thing in things] == before


def test_sql_in_a_name_is_a_name(database: MemoryDatabase) -> None:
    """Of a tenant, an agent, an episode, a task; and in what filters ask for."""
    for text in HOSTILE:
        scope = Scope(f"acme {text}", text)
        memory = HybridMemory(EMBEDDER, scope, task=text, include_shared=True, database=database)
        memory.append(text, "green tea", actor=text)
        memory.store(text, text)
        for filters in (
            Filters(episode=text),
            Filters(actors=[text, "x"]),
            Filters(episode=text, sources=["user"]),
        ):
            assert [hit.text for hit in memory.search(f"tea {text}", limit=5, filters=filters)] == [
                "green tea"
            ]
            assert [entry.text for entry in memory.recent(5, filters=filters)] == ["green tea"]
        found = memory.retrieve(text)
        assert found is not None
        assert (found.kind, found.value) == ("working", text)
        assert memory.forget(filters=Filters(episode=text)) == 1
        assert HybridMemory(EMBEDDER, Scope("acme", "ann"), database=database).search("tea", limit=5) == []
