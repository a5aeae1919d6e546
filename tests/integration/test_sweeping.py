"""What has expired goes by itself: the tick takes it out, of all tenants, and nothing of what lives."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from forks import ran
from memories import EMBEDDER
from stack import Stack, eventually

from trellis.memory import EpisodicMemory, HybridMemory, Scope, VectorMemory
from trellis.memory.connections import ROLE, MemoryDatabase
from trellis.tasks.app import sender
from trellis.workflows import sweeping
from trellis.workflows.engine import Engine
from trellis.workflows.recovery import tick


def expire(stack: Stack) -> None:
    """The time of all is over that has one."""
    for table in ("memory", "memory_link", "working"):
        stack.rows(
            f"UPDATE {table} SET expires_at = now() - interval '1 second' WHERE expires_at IS NOT NULL"
        )


def left(stack: Stack) -> set[tuple[str, str]]:
    return set(
        stack.rows(
            "SELECT tenant, text FROM memory UNION SELECT tenant, 'link ' || text FROM memory_link "
            "UNION SELECT tenant, 'of a task ' || (value #>> '{}') FROM working"
        )
    )


def test_the_tick_takes_out_what_has_expired_of_all_tenants(stack: Stack, database: MemoryDatabase) -> None:
    """Facts, linked keys, entries and values of tasks; history and use counts go with their rows."""
    for tenant in ("acme", "umbrella", "żółw"):
        memory = HybridMemory(EMBEDDER, Scope(tenant, "ann"), task="run-1", database=database)
        memory.store("short", "it rains", ttl=60)
        memory.store("shorter", "It rains", ttl=60)
        memory.store("long", "the earth is round", ttl=None)
        memory.append("talk", "hello there", ttl=60)
        assert memory.working is not None
        memory.working.store("mind", "the gap", ttl=60)
        memory.search("rain")
        memory.flush()
    assert tick(stack.engine)["swept"] == 0
    expire(stack)
    assert tick(stack.engine)["swept"] == 0  # it looks now and then
    stack.engine.sweeping.soon()
    assert tick(stack.engine)["swept"] == 9
    assert left(stack) == {
        (tenant, f"{what}the earth is round") for tenant in ("acme", "umbrella", "żółw") for what in ("", "of a task ")
    }  # fmt: skip
    orphans = "SELECT FROM memory_use u WHERE NOT EXISTS (SELECT FROM memory m WHERE m.id = u.id)"
    assert stack.rows(orphans) == []


def test_what_lives_keeps_its_vector_and_its_context(stack: Stack, database: MemoryDatabase) -> None:
    """The tick has no embedder: of an episode it leaves the two entries before one that lives, for `sweep()`."""
    episodes = EpisodicMemory(EMBEDDER, Scope("acme", "ann"), database=database)
    for number in range(6):
        episodes.append("talk", f"entry {number} of many", ttl=60 if number != 4 else None)
    expire(stack)
    stack.engine.sweeping.soon()
    assert tick(stack.engine)["swept"] == 3
    assert {text for _, text in left(stack)} == {f"entry {number} of many" for number in (2, 3, 4)}
    assert stack.rows("SELECT text FROM memory WHERE embedding IS NULL AND expires_at IS NULL") == []
    assert [entry.text for entry in episodes.recent()] == ["entry 4 of many"]
    assert episodes.sweep() == 2
    assert {text for _, text in left(stack)} == {"entry 4 of many"}
    assert stack.rows("SELECT text FROM memory WHERE embedding IS NULL") == []


def test_many_that_have_expired_go_on_going_at_the_next_tick(
    stack: Stack, database: MemoryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trellis.memory.going.BATCH", 2)
    monkeypatch.setattr("trellis.workflows.sweeping.BATCHES", 2)
    facts = VectorMemory(EMBEDDER, Scope("acme"), database=database)
    for number in range(10):
        facts.store(f"k{number}", f"number {number} is {'x' * number}", ttl=60)
    expire(stack)
    engine = Engine(stack.settings, sender(stack.broker_url))
    assert [tick(engine)["swept"] for _ in range(4)] == [4, 4, 2, 0]
    engine.database.close()


def test_beat_and_a_worker_do_it(stack: Stack, database: MemoryDatabase) -> None:
    VectorMemory(EMBEDDER, Scope("acme"), database=database).store("short", "it rains", ttl=60)
    expire(stack)
    stack.worker()
    stack.beat()
    eventually(lambda: left(stack) == set())


def test_a_worker_that_may_not_open_memories_says_so_and_goes_on(
    stack: Stack, database: MemoryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    VectorMemory(EMBEDDER, Scope("acme"), database=database).store("short", "it rains", ttl=60)
    expire(stack)
    told: list[str] = []
    monkeypatch.setattr(sweeping.log, "warning", lambda event, **_: told.append(event), raising=False)
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE memory DISABLE ROW LEVEL SECURITY")
        assert tick(stack.engine)["swept"] == 0
    assert len(left(stack)) == 1
    assert told == ["memories.not_swept"]


def test_no_memory_learns_which_tenants_there_are(stack: Stack, database: MemoryDatabase) -> None:
    """The function that tells the tick runs as the owner; to the role of memories it tells nothing."""
    VectorMemory(EMBEDDER, Scope("acme"), database=database).store("short", "it rains", ttl=60)
    expire(stack)
    assert stack.rows("SELECT * FROM memory_expired('', 10)") == [("acme", True)]
    with database.connection() as connection:
        assert connection.execute("SELECT current_user").fetchone() == (ROLE,)
        assert connection.execute("SELECT * FROM memory_expired('', 10)").fetchall() == []


def test_the_command_sweeps_a_tenant(stack: Stack, database: MemoryDatabase, tmp_path: Path) -> None:
    """At once, and with what was left of episodes; of another tenant nothing."""
    now = datetime.now(UTC)
    for tenant in ("acme", "umbrella"):
        episodes = EpisodicMemory(EMBEDDER, Scope(tenant), database=database)
        episodes.append("talk", "entry 1", ttl=60, at=now)
        episodes.append("talk", "entry 2")
    expire(stack)
    env = stack.environment(TRELLIS_EMBEDDER="hashing:64")
    for said in ("1 memory had expired, and is gone\n", "0 memories had expired, and are gone\n"):
        done = ran(["trellis", "memory", "sweep", "--tenant", "acme"], tmp_path, env)
        assert (done.returncode, done.stdout) == (0, said), done.stderr
    assert left(stack) == {("acme", "entry 2"), ("umbrella", "entry 1"), ("umbrella", "entry 2")}
    done = ran(["trellis", "memory", "sweep", "--tenant", "umbrella", "--json"], tmp_path, env)
    assert json.loads(done.stdout) == {"swept": 1}
