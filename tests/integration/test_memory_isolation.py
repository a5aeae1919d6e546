"""Tenants do not see each other: by no method, whatever is asked; and were a statement wrong, by row-level security."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from memories import EMBEDDER, opened
from psycopg.errors import InsufficientPrivilege
from stack import Stack

from trellis.memory import EpisodicMemory, Filters, Scope, VectorMemory
from trellis.memory.base import sql
from trellis.memory.connections import ROLE, MemoryDatabase, statements
from trellis.tasks.errors import ConfigurationError, IsolationMissing

OURS, THEIRS = "acme", "umbrella"
TABLES = (
    "memory",
    "memory_link",
    "memory_use",
    "memory_actor",
    "memory_size",
    "memory_word",
    "memory_distilled",
)


@pytest.fixture
def database(stack: Stack) -> Iterator[MemoryDatabase]:
    with opened(stack) as found:
        yield found


@pytest.fixture
def theirs(database: MemoryDatabase) -> dict[str, Any]:
    """Something of another tenant in every table, under the same agent and the same keys as ours."""
    facts = VectorMemory(EMBEDDER, Scope(THEIRS, "ann"), database=database)
    facts.store("city", "the secret city is Atlantis", metadata={"m": 1}, actor="Nemo")
    facts.store("city2", "The secret city is ATLANTIS")
    facts.store("food", "the kelp of this city is good")
    entry = facts.retrieve("city")
    episodes = EpisodicMemory(EMBEDDER, Scope(THEIRS, "ann"), database=database)
    episodes.append("talk", "the secret city is far away")
    facts.flush()
    with database.writing(THEIRS) as asker:
        given = {"model": 1, "agent": "ann", "kind": "fact", "sample": 100}
        assert asker.rows(sql(64)["count_words"], given) == [(True,)]
        mark = {"tenant": THEIRS, "agent": "ann", "episode": "talk", "seq": 1, "until": datetime.now(UTC)}
        asker(statements("distilling.sql", dims=b"64")["mark"], mark)
    assert entry is not None
    return {"id": entry.id, "tenant": THEIRS}


FILTERS = [
    None,
    Filters(metadata={"m": 1}),
    Filters(metadata={"tenant": THEIRS}),
    Filters(metadata={"x') OR 1=1--": 1}),
    Filters(metadata={}),
    Filters(actors=["Nemo"]),
    Filters(sources=["user"]),
    Filters(episode="talk"),
    Filters(episode="' OR tenant = 'umbrella"),
    Filters(min_trust=0),
]


@pytest.mark.parametrize("agent", ["ann", "", "umbrella"])
@pytest.mark.parametrize("kind", [VectorMemory, EpisodicMemory])
def test_no_method_reaches_another_tenant(
    database: MemoryDatabase, theirs: dict[str, Any], stack: Stack, kind: type[Any], agent: str
) -> None:
    """Their keys, their ids as keys, crafted filters, the shared scope: nothing is found, nothing is changed."""
    ours = kind(EMBEDDER, Scope(OURS, agent), include_shared=True, database=database)
    before = everything(stack)
    for key in ("city", "city2", str(theirs["id"]), "talk"):
        assert ours.retrieve(key) is None
        assert ours.history(key) == []
        assert ours.forget(key) == 0
    for filters in FILTERS:
        assert ours.search("secret city Atlantis", filters=filters) == []
        assert ours.search("", filters=filters) == []
        if filters is not None:
            assert ours.forget(filters=filters) == 0
    assert ours.sweep() == 0
    assert ours.mend() == 0
    ours.flush()
    assert everything(stack) == before
    assert ours.store("city", "our own city").outcome == "added"
    assert kind(EMBEDDER, Scope(THEIRS, "ann"), database=database).search("our own city", limit=50) != []
    texts = {text for (text,) in stack.rows("SELECT text FROM memory WHERE tenant = %s", THEIRS)}
    assert "our own city" not in texts


def everything(stack: Stack) -> list[Any]:
    return [stack.rows(f"SELECT * FROM {table} t ORDER BY t::text") for table in TABLES]


def test_agents_see_what_is_their_own_and_what_is_shared(database: MemoryDatabase) -> None:
    ann, bob, all_ = (
        VectorMemory(EMBEDDER, Scope(OURS, name), database=database) for name in ("ann", "bob", "")
    )
    ann.store("k", "a note by ann")
    bob.store("k", "a note by bob")
    all_.store("k", "a note for all")
    all_.store("only", "another note for all")
    assert {hit.text for hit in ann.search("note", limit=9)} == {"a note by ann"}
    assert {hit.text for hit in ann.search("note", limit=9, include_shared=True)} == {
        "a note by ann", "a note for all", "another note for all",
    }  # fmt: skip
    mine, shared = ann.retrieve("k", include_shared=True), ann.retrieve("only", include_shared=True)
    assert (mine and mine.text, shared and shared.agent) == ("a note by ann", "")
    assert ann.retrieve("only") is None
    assert ann.forget("only") == 0
    assert {hit.text for hit in all_.search("note", limit=9)} == {"a note for all", "another note for all"}


@pytest.mark.parametrize("table", TABLES)
def test_raw_sql_on_a_connection_of_the_memory_stays_in_its_tenant(
    database: MemoryDatabase, theirs: dict[str, Any], stack: Stack, table: str
) -> None:
    """Reading, changing, deleting, and writing in another's name; and without any tenant there is nothing at all."""
    [[there]] = stack.rows(f"SELECT count(*) FROM {table}")
    assert there > 0
    before = everything(stack)
    for tenant in (OURS, ""):
        with database.writing(tenant) as asker:
            run = asker.connection.execute
            assert run(f"SELECT count(*) FROM {table}").fetchone() == (0,)
            assert run(f"UPDATE {table} SET tenant = %s", (OURS,)).rowcount == 0
            assert run(f"DELETE FROM {table}").rowcount == 0
    with database.connection() as connection:
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    with database.writing(THEIRS) as asker:
        assert asker.connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (there,)
    with pytest.raises(InsufficientPrivilege), database.writing(THEIRS) as asker:
        asker.connection.execute(f"UPDATE {table} SET tenant = %s", (OURS,))
    assert everything(stack) == before


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM memory_1",
        "SELECT * FROM run",
        "DROP TABLE memory",
        "ALTER TABLE memory DISABLE ROW LEVEL SECURITY",
        "INSERT INTO memory_model (name, dims) VALUES ('x', 3)",
        "CREATE POLICY mine ON memory USING (true)",
    ],
)
def test_the_role_owns_nothing(database: MemoryDatabase, theirs: dict[str, Any], statement: str) -> None:
    """It gets past its policies neither by a partition nor by changing them, and the journal is not for it."""
    with database.connection() as connection:
        with pytest.raises(InsufficientPrivilege):
            connection.execute(statement)
        assert connection.execute("SELECT current_user").fetchone() == (ROLE,)


def test_functions_of_the_owner_ask_for_the_tenant(database: MemoryDatabase, theirs: dict[str, Any]) -> None:
    """They pass row-level security by design, and so each names the tenant itself."""
    wide = {"model": 1, "agents": ["ann"], "kinds": ["fact", "episode"], "metadata": None, "sources": None,
            "trust": None, "by": None, "episode": None, "run": None, "since": None, "until": None}  # fmt: skip
    given = (
        "%(model)s::smallint, %(agents)s, %(kinds)s, %(metadata)s::jsonb, %(sources)s::text[], %(trust)s::smallint, "
        "%(by)s::text[], %(episode)s::text, %(run)s::uuid, %(since)s::timestamptz, %(until)s::timestamptz"
    )
    vector = "[" + ",".join(["0.1"] * 64) + "]"
    asked = {
        f"SELECT id FROM memory_among({given}, '{vector}'::halfvec, 10, 1000)": 3,
        f"SELECT id FROM memory_lexical({given}, 'secret'::tsquery, ARRAY['secret'], ARRAY[1.0::float8], 5, "
        "ARRAY[.1,.2,.3,1]::real[], .5, 10, 1000)": 2,
    }
    for statement, found in asked.items():
        for tenant, count in ((THEIRS, found), (OURS, 0), ("", 0)):
            with database.writing(tenant) as asker:
                assert len(asker.connection.execute(statement.encode(), wide).fetchall()) == count


def test_a_database_that_would_not_keep_tenants_apart_is_not_used(stack: Stack) -> None:
    """Somebody has switched row-level security off, or taken the role away."""
    for harm, mend, words in (
        (
            "ALTER TABLE memory DISABLE ROW LEVEL SECURITY",
            "ALTER TABLE memory ENABLE ROW LEVEL SECURITY",
            "not active",
        ),
        (
            "ALTER ROLE trellis_memory RENAME TO gone",
            "ALTER ROLE gone RENAME TO trellis_memory",
            "no connection",
        ),
    ):
        with psycopg.connect(stack.database_url, autocommit=True) as connection:
            connection.execute(harm)
            try:
                database = MemoryDatabase(stack.settings)
                with pytest.raises(IsolationMissing, match=words):
                    VectorMemory(EMBEDDER, Scope(OURS), database=database).store("a", "b")
                database.close()
            finally:
                connection.execute(mend)


def test_a_pgvector_that_does_not_know_the_settings_is_refused(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres only warns of a setting with a wrong value, and goes on without it."""
    wrong = MemoryDatabase.planner.replace("relaxed_order", "no_order")
    monkeypatch.setattr(MemoryDatabase, "planner", wrong)
    with pytest.raises(ConfigurationError, match=r"hnsw\.iterative_scan"):
        VectorMemory(EMBEDDER, Scope(OURS), database=MemoryDatabase(stack.settings)).search("x")
