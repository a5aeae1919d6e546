"""Tenants do not see each other: by no method, whatever is asked; and were a statement wrong, by row-level security."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pyarrow
import pytest
from memories import EMBEDDER
from psycopg.errors import InsufficientPrivilege
from pyarrow import parquet
from stack import Stack

from trellis.memory import (
    EpisodicMemory,
    Filters,
    HybridMemory,
    Scope,
    VectorMemory,
    export,
    import_jsonl,
    import_parquet,
)
from trellis.memory.connections import ROLE, MemoryDatabase, statements
from trellis.memory.going import sql
from trellis.memory.stats import agents, keys, stats
from trellis.tasks.errors import ConfigurationError, IsolationMissing

OURS, THEIRS = "acme", "umbrella"
TABLES = (
    "memory", "memory_link", "memory_use", "memory_actor", "memory_size", "memory_word", "memory_import", "working",
    "memory_distilled",
)  # fmt: skip
DEFINERS = {  # what runs as the owner for the role: each names the tenant itself, or touches no row of one
    "memory_among", "memory_lexical", "memory_count_words", "memory_open_model", "memory_index", "memory_unindex",
    "audit_partition",
    "memory_expired",  # tells the role nothing: test_sweeping.py
}  # fmt: skip


@pytest.fixture
def theirs(database: MemoryDatabase, tmp_path: Path) -> dict[str, Any]:
    """Something of another tenant in every table, under the same agent, task and keys as ours."""
    facts = HybridMemory(EMBEDDER, Scope(THEIRS, "ann"), task="run-1", database=database).facts
    HybridMemory(EMBEDDER, Scope(THEIRS, "ann"), task="run-1", database=database).store(
        "code", "a secret number"
    )
    path = tmp_path / "theirs.jsonl"
    path.write_text('{"key": "file", "value": "a secret file"}\n')
    import_jsonl(path, EMBEDDER, Scope(THEIRS, "ann"), database=database)
    facts.store("city", "the secret city is Atlantis", metadata={"m": 1}, actor="Nemo", run=RUN, step=1)
    facts.store("city2", "The secret city is ATLANTIS")
    facts.store("food", "the kelp of this city is good")
    facts.retrieve("city")
    entry = facts.retrieve("city")
    episodes = EpisodicMemory(EMBEDDER, Scope(THEIRS, "ann"), database=database)
    episodes.append("talk", "the secret city is far away", run=RUN)
    both = HybridMemory(EMBEDDER, Scope(THEIRS, "ann"), database=database)
    for filters in FINDING:  # so that it is not for want of such rows that others find nothing
        assert both.search("secret city", filters=filters) != [], filters
    both.flush()
    facts.flush()
    with database.writing(THEIRS) as asker:
        given = {"model": 1, "agent": "ann", "kind": "fact", "sample": 100}
        assert asker.rows(sql(64)["count_words"], given) == [(True,)]
        mark = {"tenant": THEIRS, "agent": "ann", "episode": "talk", "seq": 1, "until": datetime.now(UTC)}
        asker(statements("distilling.sql", dims=b"64")["mark"], mark)
    assert entry is not None
    return {"id": entry.id, "tenant": THEIRS}


RUN = UUID("01a1fa7f-7721-7af7-b67e-04c5e1867f0d")  # theirs
LONG_AGO, ONE_DAY = datetime(2000, 1, 1, tzinfo=UTC), datetime(2999, 1, 1, tzinfo=UTC)
FINDING = [
    None,
    Filters(metadata={"m": 1}),
    Filters(metadata={}),
    Filters(actors=["Nemo"]),
    Filters(sources=["user"]),
    Filters(episode="talk"),
    Filters(min_trust=0),
    Filters(run=RUN),
    Filters(run=RUN, episode="talk"),
    Filters(since=LONG_AGO),
    Filters(until=ONE_DAY),
    Filters(since=LONG_AGO, until=ONE_DAY),
]
FILTERS = [
    *FINDING,
    Filters(metadata={"tenant": THEIRS}),
    Filters(metadata={"x') OR 1=1--": 1}),
    Filters(episode="' OR tenant = 'umbrella"),
    Filters(until=LONG_AGO),
    Filters(since=ONE_DAY),
]


@pytest.mark.parametrize("kind", [VectorMemory, EpisodicMemory, HybridMemory])
def test_no_method_reaches_another_tenant(
    database: MemoryDatabase, theirs: dict[str, Any], stack: Stack, kind: type[Any], tmp_path: Path
) -> None:
    """Their keys, their ids as keys, crafted filters, the shared scope: nothing is found, nothing is changed."""
    for agent in ("ann", "umbrella", ""):
        task = {"task": "run-1"} if kind is HybridMemory else {}
        ours = kind(EMBEDDER, Scope(OURS, agent), include_shared=True, database=database, **task)
        before = everything(stack)
        for key in ("city", "city2", "code", "file", str(theirs["id"]), "talk"):
            assert ours.retrieve(key) is None
            assert ours.history(key) == []
            assert ours.forget(key) == 0
        for filters in FILTERS:
            assert ours.search("secret city Atlantis", filters=filters) == []
            assert ours.search("", filters=filters) == []
            if kind is not VectorMemory:
                assert ours.recent(50, filters=filters) == []
            if filters is not None:
                assert ours.forget(filters=filters) == 0
        if kind is HybridMemory:
            reads_a_task(ours, theirs["id"])
        assert ours.sweep() == 0
        assert ours.mend() == 0
        ours.flush()
        assert export(tmp_path / "ours.jsonl", Scope(OURS, agent), database=database) == 0
        assert keys(database, OURS, [agent, "ann"]) == agents(database, OURS) == []
        found = stats(database, OURS)
        assert (found.rows, found.links, found.used, found.values, found.imports) == ([], 0, 0, 0, [])
        assert everything(stack) == before
    assert ours.store("city", "our own city").outcome == "added"
    assert kind(EMBEDDER, Scope(THEIRS, "ann"), database=database).search("our own city", limit=50) != []
    texts = {text for (text,) in stack.rows("SELECT text FROM memory WHERE tenant = %s", THEIRS)}
    assert "our own city" not in texts


def reads_a_task(ours: HybridMemory, their_fact: UUID) -> None:
    """A task of the same name, and their fact by its id."""
    working = ours.working
    assert working is not None
    assert working.items() == []
    assert working.retrieve("code") is None
    assert working.forget("code") == 0
    assert working.search("secret number") == []
    assert working.hand("city", their_fact) is False
    assert working.clear() == 0


def test_what_is_written_under_their_names_is_ours_alone(
    database: MemoryDatabase, theirs: dict[str, Any], stack: Stack, tmp_path: Path
) -> None:
    """The same keys, episode, task, run and words: it is new, knows nothing of theirs, and changes nothing of it."""
    before = everything(stack, THEIRS)
    assert all(before)
    ours = HybridMemory(EMBEDDER, Scope(OURS, "ann"), task="run-1", database=database)
    for key, value in (("city", "the secret city is Atlantis"), ("city2", "The secret town is ATLANTIS")):
        assert ours.store(key, value, run=RUN, step=1, actor="Nemo").outcome == "added"
    assert ours.append("talk", "the secret city is far away", run=RUN).outcome == "added"
    assert [each.outcome for each in ours.extend("talk", [("we went there", {"run": RUN})])] == ["added"]
    assert [entry.seq for entry in ours.recent(filters=Filters(episode="talk"))] == [2, 1]
    assert ours.working is not None
    assert ours.working.store("code", "our own number").evicted == ()
    assert {item.key for item in ours.working.items()} == {"city", "city2", "code"}
    file = tmp_path / "theirs.jsonl"  # the file that they have imported, byte for byte
    assert import_jsonl(file, EMBEDDER, Scope(OURS, "ann"), database=database).added == 1
    columns = {"key": ["file2", "city"], "value": ['"another"', '"our own city"'], "run_id": [str(RUN)] * 2}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    done = import_parquet(tmp_path / "a.parquet", EMBEDDER, Scope(OURS, "ann"), database=database)
    assert (done.added, done.replaced) == (1, 1)
    assert {entry.key for entry in ours.facts.history("city")} == {"city"}
    assert len(ours.search("", limit=50, filters=Filters(run=RUN))) == 5
    assert ours.forget(filters=Filters(run=RUN)) > 0
    assert ours.forget("code") == 1
    assert ours.working.clear() == 0
    assert ours.sweep() == 0
    ours.flush()
    assert everything(stack, THEIRS) == before


def everything(stack: Stack, tenant: str | None = None) -> list[Any]:
    if tenant is not None:
        return [
            stack.rows(f"SELECT * FROM {table} t WHERE tenant = %s ORDER BY t::text", tenant)
            for table in TABLES
        ]
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


def test_raw_sql_on_a_connection_of_the_memory_stays_in_its_tenant(
    database: MemoryDatabase, theirs: dict[str, Any], stack: Stack
) -> None:
    """Reading, changing, deleting, and writing in another's name; and without any tenant there is nothing at all."""
    before = everything(stack)
    for table in TABLES:
        [[there]] = stack.rows(f"SELECT count(*) FROM {table}")
        assert there > 0, table
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


# Tables of tenants that the role may touch, and that are not behind a policy that asks for the tenant of all it does.
OPEN = """
    SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant'
     WHERE c.relkind IN ('r', 'p') AND has_table_privilege('trellis_memory', c.oid, 'SELECT, INSERT, UPDATE, DELETE')
       AND NOT (c.relrowsecurity AND EXISTS (
            SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND p.polcmd = '*')
            AND NOT EXISTS (
            SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND (
                pg_get_expr(p.polqual, c.oid) !~ 'tenant = .*current_setting'
                OR pg_get_expr(p.polwithcheck, c.oid) !~ 'tenant = .*current_setting')))
     ORDER BY 1
"""


def test_every_table_of_tenants_asks_for_the_tenant(database: MemoryDatabase, stack: Stack) -> None:
    """By the catalogue, so that one that is made later is looked at as well."""
    assert stack.rows(OPEN) == []
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE memory_new (tenant text)")
        connection.execute("GRANT SELECT ON memory_new TO trellis_memory")
        assert stack.rows(OPEN) == [("memory_new",)]
        connection.execute("ALTER TABLE memory_new ENABLE ROW LEVEL SECURITY")
        connection.execute("CREATE POLICY lax ON memory_new USING (true)")
        assert stack.rows(OPEN) == [("memory_new",)]


def test_the_role_is_above_no_policy(database: MemoryDatabase, theirs: dict[str, Any], stack: Stack) -> None:
    """It is no superuser, passes no policy, belongs to no other role, owns nothing, and runs as the owner only what is
    known to ask for the tenant.
    """
    role = "SELECT rolsuper, rolbypassrls, rolcreaterole, rolcanlogin FROM pg_roles WHERE rolname = %s"
    assert stack.rows(role, ROLE) == [(False, False, False, False)]
    assert stack.rows("SELECT FROM pg_auth_members WHERE member = %s::regrole", ROLE) == []
    for catalogue, owner in (
        ("pg_class", "relowner"),
        ("pg_proc", "proowner"),
        ("pg_namespace", "nspowner"),
        ("pg_type", "typowner"),
    ):
        assert stack.rows(f"SELECT FROM {catalogue} WHERE {owner} = %s::regrole", ROLE) == []
    definers = stack.rows(
        "SELECT proname FROM pg_proc WHERE prosecdef AND prorettype <> 'trigger'::regtype "
        "AND has_function_privilege(%s, oid, 'EXECUTE')",
        ROLE,
    )
    assert {name for (name,) in definers} == DEFINERS
    with database.connection() as connection:
        assert connection.execute(
            "SELECT current_user, bool_and(row_security_active(name::regclass)) FROM unnest(%s::text[]) AS t(name)",
            (list(TABLES),),
        ).fetchone() == (ROLE, True)


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
        f"SELECT id FROM memory_among({given}, '{vector}'::halfvec, 10, 1000)": 5,
        f"SELECT id FROM memory_lexical({given}, 'secret'::tsquery, ARRAY['secret'], ARRAY[1.0::float8], 5, "
        "ARRAY[.1,.2,.3,1]::real[], .5, 10, 1000)": 4,
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
