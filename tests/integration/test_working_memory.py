"""Working memory on real Postgres: what is kept, what makes room, and who sees it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
import redis
from forks import Forked
from stack import Stack, eventually

from trellis.memory.connections import MemoryDatabase
from trellis.memory.scope import Scope
from trellis.memory.working import WorkingMemory
from trellis.tasks import schema
from trellis.tasks.embedded import Servers
from trellis.tasks.errors import EntryError, ValueTooLarge


@pytest.fixture
def database(stack: Stack) -> Iterator[MemoryDatabase]:
    found = MemoryDatabase(stack.settings)
    yield found
    found.close()


@pytest.fixture
def memory(database: MemoryDatabase) -> WorkingMemory:
    return WorkingMemory(database, Scope("acme", "planner"), "run-1")


def keys(memory: WorkingMemory) -> list[str]:
    return [item.key for item in memory.items()]


def expire(stack: Stack, key: str) -> None:
    stack.rows("UPDATE working SET expires_at = now() - interval '1 second' WHERE key = %s", key)


def test_a_value_is_any_json_and_comes_back_as_it_was(memory: WorkingMemory) -> None:
    values = [None, True, 0, -1.5, 2**60, "", "Grüße 'x'); DROP TABLE working;--", [], {"a": [{"b": None}]}]
    for value in values:
        memory.store("key", value)
        found = memory.retrieve("key")
        assert found is not None
        assert (found.kind, found.key, found.value) == ("working", "key", value)
    assert memory.retrieve("other") is None


def test_the_least_used_makes_room(memory: WorkingMemory) -> None:
    """Use is a store or a retrieve; a look at all of them is none."""
    for number in range(7):
        assert memory.store(f"k{number}", number).evicted == ()
    memory.retrieve("k0")
    memory.store("k1", "again")
    memory.items()
    assert memory.store("k7", 7).evicted == ("k2",)
    assert keys(memory) == ["k7", "k1", "k0", "k6", "k5", "k4", "k3"]
    smaller = WorkingMemory(memory._database, memory.scope, "run-1", capacity=3)
    assert smaller.store("k8", 8).evicted == ("k3", "k4", "k5", "k6", "k0")
    assert keys(memory) == ["k8", "k7", "k1"]


def test_a_capacity_of_one_keeps_the_newest(database: MemoryDatabase) -> None:
    memory = WorkingMemory(database, Scope(), "run", capacity=1)
    assert memory.store("a", 1).evicted == ()
    assert memory.store("a", 2).evicted == ()
    assert memory.store("b", 3).evicted == ("a",)
    assert keys(memory) == ["b"]


def test_a_value_is_gone_when_its_time_is_over(stack: Stack, memory: WorkingMemory) -> None:
    """It is no value of any verb, takes nobody's room, and a store under its key begins anew."""
    memory.store("short", 1, ttl=60)
    memory.store("long", 2)
    assert memory.items()[1].expires_at is not None
    expire(stack, "short")
    assert memory.retrieve("short") is None
    assert [hit.key for hit in memory.search("1 2")] == keys(memory) == ["long"]
    assert memory.forget("short") == 0
    assert memory.store("short", 1, ttl=60).outcome == "added"
    expire(stack, "short")
    small = WorkingMemory(memory._database, memory.scope, memory.task, capacity=2)
    assert small.store("more", 3).evicted == ()
    assert keys(memory) == ["more", "long"]
    assert stack.rows("SELECT count(*) FROM working") == [(2,)]
    memory.store("short", 1)
    assert memory.items()[0].expires_at is None


def test_the_time_to_live_of_the_memory_is_that_of_a_store_that_says_nothing(
    database: MemoryDatabase,
) -> None:
    memory = WorkingMemory(database, Scope(), "run", ttl=60)
    memory.store("own", 1, ttl=timedelta(hours=1))
    memory.store("usual", 1)
    usual, own = memory.items()
    assert usual.expires_at is not None
    assert own.expires_at is not None
    assert own.expires_at > usual.expires_at


def test_a_store_sweeps_what_other_tasks_of_the_tenant_left(stack: Stack, database: MemoryDatabase) -> None:
    for task in ("old", "older"):
        WorkingMemory(database, Scope("acme"), task).store(f"of {task}", 1, ttl=60)
    WorkingMemory(database, Scope("acme"), "lasting").store("lasting", 1)
    WorkingMemory(database, Scope("other"), "old").store("theirs", 1, ttl=60)
    stack.rows("UPDATE working SET expires_at = now() - interval '1 second' WHERE expires_at IS NOT NULL")
    WorkingMemory(database, Scope("acme"), "new").store("new", 1)
    assert stack.rows("SELECT key FROM working ORDER BY key") == [("lasting",), ("new",), ("theirs",)]


def test_forget_and_clear_say_what_was_there(memory: WorkingMemory) -> None:
    for key in "abc":
        memory.store(key, 1)
    assert memory.forget("a") == 1
    assert memory.forget("a") == 0
    assert memory.clear() == 2
    assert memory.clear() == 0
    assert memory.items() == []


def test_nobody_else_sees_it(database: MemoryDatabase, memory: WorkingMemory) -> None:
    """Neither another tenant with the same names, nor another agent, nor another task."""
    memory.store("key", "mine")
    others = [
        WorkingMemory(database, Scope("other", "planner"), "run-1"),
        WorkingMemory(database, Scope("acme", "writer"), "run-1"),
        WorkingMemory(database, Scope("acme", "planner"), "run-2"),
        WorkingMemory(database, Scope("acme' OR 1=1--", "planner"), "run-1"),
    ]
    for other in others:
        assert other.retrieve("key") is None
        assert other.items() == other.search("mine") == []
        assert other.forget("key") == 0
        assert other.clear() == 0
        other.store("key", "theirs")
    found = memory.retrieve("key")
    assert found is not None
    assert found.value == "mine"


def test_the_database_keeps_tenants_apart_by_itself(database: MemoryDatabase, memory: WorkingMemory) -> None:
    """A statement that forgets the tenant sees the rows of its own; one that names another writes nothing."""
    memory.store("key", 1)
    for tenant, seen in (("acme", 1), ("other", 0)):
        with database.writing(tenant) as asker:
            assert asker.connection.execute("SELECT count(*) FROM working").fetchone() == (seen,)
            assert asker.connection.execute("UPDATE working SET value = '2'").rowcount == seen


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("a\0b", 1), "key"),
        (("", 1), "key"),
        (("k", "x\ud800"), "value"),
        (("k", {"a": [{"b": "x\0"}]}), "value.a.b"),
        (("k", float("nan")), "value"),
        (("k", {1: 2}), "value"),
        (("k", object()), "value"),
    ],
)
def test_what_postgres_cannot_keep_is_refused_by_name(
    memory: WorkingMemory, arguments: tuple[str, object], field: str
) -> None:
    with pytest.raises(EntryError) as refused:
        memory.store(*arguments)
    assert refused.value.field == field
    assert memory.items() == []


def test_wrong_arguments_are_refused_at_once(database: MemoryDatabase, memory: WorkingMemory) -> None:
    for capacity in (0, -1, 1001, True, 2.5):
        with pytest.raises(EntryError, match="capacity"):
            WorkingMemory(database, Scope(), "run", capacity=capacity)  # type: ignore[arg-type]
    for ttl in (0, -1, float("inf"), float("nan"), "5", True, 1e300, timedelta(days=99_999), timedelta(0)):
        with pytest.raises(EntryError, match="ttl"):
            memory.store("key", 1, ttl=ttl)  # type: ignore[arg-type]
        with pytest.raises(EntryError, match="ttl"):
            WorkingMemory(database, Scope(), "run", ttl=ttl)  # type: ignore[arg-type]
    with pytest.raises(EntryError, match="task"):
        WorkingMemory(database, Scope(), "a\0")
    with pytest.raises(ValueTooLarge):
        memory.store("key", "x" * database.settings.value_max_bytes)


STORES = """
import sys
from trellis.memory.connections import MemoryDatabase
from trellis.memory.scope import Scope
from trellis.memory.working import WorkingMemory
from trellis.tasks.settings import load

memory = WorkingMemory(MemoryDatabase(load()), Scope("acme"), "shared", capacity=5)
me = sys.argv[1]
for number in range(40):
    memory.store(f"{me}-{number}" if number % 2 else "common", [me, number])
    found = memory.items()
    assert len(found) <= 5, found
    memory.retrieve("common")
memory.store(f"last-{me}", me)
print("done")
"""


def test_eight_processes_on_one_task_keep_its_capacity_and_lose_no_newest_write(
    stack: Stack, database: MemoryDatabase, tmp_path: Path
) -> None:
    program = tmp_path / "stores.py"
    program.write_text(STORES)
    running = [
        Forked(["python", str(program), str(n)], stack.environment(TRELLIS_IMPORTS=""), tmp_path / f"{n}.log")
        for n in range(8)
    ]
    for number, process in enumerate(running):
        assert process.wait(60) == 0, (tmp_path / f"{number}.log").read_text()
    memory = WorkingMemory(database, Scope("acme"), "shared", capacity=5)
    found = memory.items()
    assert len(found) == 5
    newest = stack.rows("SELECT key FROM working ORDER BY used DESC")
    assert [item.key for item in found] == [key for (key,) in newest]
    assert found[0].key.startswith("last-")  # whoever wrote last is there


def test_values_of_before_the_search_are_found(servers: Servers, stack: Stack) -> None:
    """By their own text, or by their JSON."""
    with psycopg.connect(servers.postgres.url("postgres"), autocommit=True) as admin:
        admin.execute("CREATE DATABASE earlier")
    url = servers.postgres.url("earlier")
    try:
        schema.migrate(url, "0009")
        with psycopg.connect(url, autocommit=True) as connection:
            for key, value in (("plan", '"Call the shelter"'), ("pet", '{"name": "Pickle"}')):
                connection.execute(
                    "INSERT INTO working (tenant, agent, task, key, value, used, used_at) "
                    "VALUES ('acme', '', 'run', %s, %s::jsonb, nextval('working_use'), now())",
                    (key, value),
                )
        schema.migrate(url)
        database = MemoryDatabase(stack.settings.model_copy(update={"database_url": url}))
        memory = WorkingMemory(database, Scope("acme"), "run")
        assert [memory.search(query, 1)[0].key for query in ("shelter", "Pickle")] == ["plan", "pet"]
        assert memory.store("plan", "Call the shelter").outcome == "same"
        database.close()
    finally:
        with psycopg.connect(servers.postgres.url("postgres"), autocommit=True) as admin:
            admin.execute("DROP DATABASE earlier WITH (FORCE)")


WRITES = """
import sys
from trellis.memory.connections import MemoryDatabase
from trellis.memory.scope import Scope
from trellis.memory.working import WorkingMemory
from trellis.tasks.settings import load

memory = WorkingMemory(MemoryDatabase(load()), Scope("acme", "planner"), "run-1", capacity=5)
number = 0
while True:
    memory.store(f"k{number}", {"number": number})
    with open(sys.argv[1], "a") as told:
        told.write(f"{number}\\n")
    number += 1
"""


def test_what_was_stored_outlives_a_kill_of_the_process_that_stored_it(
    stack: Stack, memory: WorkingMemory, tmp_path: Path
) -> None:
    """SIGKILL in the midst of writing: what a store has answered for is there, and the memory goes on."""
    program, told = tmp_path / "writes.py", tmp_path / "told"
    program.write_text(WRITES)
    writing = Forked(
        ["python", str(program), str(told)], stack.environment(TRELLIS_IMPORTS=""), tmp_path / "log"
    )
    eventually(lambda: told.exists() and told.read_text().count("\n") > 20)
    os.kill(writing.pid, signal.SIGKILL)
    assert writing.wait(30) == -signal.SIGKILL
    last = told.read_text().count("\n") - 1
    found = {item.key: item.value for item in memory.items()}
    newest = max(int(key[1:]) for key in found)
    assert last <= newest <= last + 1  # the one in the midst of which it was killed may be there
    assert found == {f"k{n}": {"number": n} for n in range(newest - 4, newest + 1)}
    entry = memory.retrieve(f"k{last}")
    assert entry is not None
    assert entry.value == {"number": last}
    memory.store("next", 1)  # nobody holds its lock
    assert len(memory.items()) == 6


def test_it_outlives_a_flush_of_redis_and_a_new_process(stack: Stack, memory: WorkingMemory) -> None:
    memory.store("plan", ["a", "b"])
    with redis.Redis.from_url(stack.broker_url) as client:
        client.flushdb()
    fresh = MemoryDatabase(stack.settings)
    try:
        found = WorkingMemory(fresh, Scope("acme", "planner"), "run-1").retrieve("plan")
        assert found is not None
        assert found.value == ["a", "b"]
    finally:
        fresh.close()
