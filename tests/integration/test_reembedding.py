"""From one embedding model to another, while the memories are in use."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from forks import Forked
from memories import EMBEDDER
from stack import Stack, eventually

from trellis.memory import reembedding
from trellis.memory.connections import MemoryDatabase
from trellis.memory.embedders.hashing import HashingEmbedder
from trellis.memory.entries import Filters
from trellis.memory.episodic import EpisodicMemory
from trellis.memory.reembedding import OwnerDatabase, Reembedding, State
from trellis.memory.scope import Scope
from trellis.memory.vector import VectorMemory
from trellis.tasks.errors import ConfigurationError

HERE, THERE = Scope("acme", "planner"), Scope("other", "")
NEW = HashingEmbedder(32)


@pytest.fixture
def work(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reembedding]:
    """Small turns, so that much can happen between them."""
    monkeypatch.setattr(reembedding, "TURN", 4)
    monkeypatch.setattr(reembedding, "AT_ONCE", 3)
    found = Reembedding(stack.settings, NEW)
    yield found
    found.close()


def facts(database: MemoryDatabase, embedder: Any = EMBEDDER, scope: Scope = HERE) -> VectorMemory:
    return VectorMemory(embedder, scope, database=database)


def fill(database: MemoryDatabase) -> None:
    for scope in (HERE, THERE):
        memory = facts(database, scope=scope)
        for number in range(5):
            memory.store(f"k{number}", f"fact {number} of {scope.tenant}, about thing {number * 7919}")
        memory.store("k0", "another value")
        memory.store("linked", "ANOTHER value")
        memory.store("blank", "")
        memory.search("another", 1)
        memory.flush()
        talk = EpisodicMemory(EMBEDDER, scope, database=database)
        for number in range(3):
            talk.append("talk", f"entry {number} speaks of thing {number * 31}")


def through(work: Reembedding, state: State, limit: int = 100) -> State:
    for _ in range(limit):
        if state["done"]:
            return state
        state = work.turn(state)
    raise AssertionError(f"not done: {state}")


def rows(stack: Stack, *, but: str = "") -> list[tuple[Any, ...]]:
    return stack.rows(
        f"""SELECT id, tenant, agent, kind, key, value, text, tsv, metadata, importance, source, trust, actor, episode,
                   seq, at, valid_from, valid_to IS NULL, expires_at, embedding IS NULL
              FROM memory WHERE true {but} ORDER BY tenant, id"""
    )


def models(stack: Stack) -> list[tuple[Any, ...]]:
    return stack.rows(
        "SELECT g.name, count(m.id) FROM memory_model g LEFT JOIN memory m ON m.model = g.id GROUP BY 1 ORDER BY 1"
    )


def test_every_row_is_there_afterwards_with_a_vector_of_the_new_model(
    stack: Stack, database: MemoryDatabase, work: Reembedding
) -> None:
    """Of all tenants, with ids, history, links and uses; and as near to a query as if it had been stored by it."""
    fill(database)
    before, uses = rows(stack), stack.rows("SELECT id, hits FROM memory_use ORDER BY id")
    state = through(work, work.begin())
    assert (state["copied"], state["rows"]) == (len(before), len(before))
    assert rows(stack) == before
    assert stack.rows("SELECT id, hits FROM memory_use ORDER BY id") == uses
    assert models(stack) == [("hashing-32", len(before)), ("hashing-64", 0)]
    assert stack.rows("SELECT to_regclass('memory_1')") == [(None,)]
    fresh = Scope("fresh")
    for scope in (HERE, fresh):
        memory = facts(database, NEW, scope)
        if scope is fresh:
            for number in range(1, 5):
                memory.store(f"k{number}", f"fact {number} of acme, about thing {number * 7919}")
    hits = [
        [
            (hit.key, pytest.approx(hit.score))
            for hit in facts(database, NEW, scope).search("fact 3 of thing", 4)
        ]
        for scope in (HERE, fresh)
    ]
    assert hits[0] == hits[1]
    stack.rows("DELETE FROM memory WHERE tenant = 'fresh'")
    contexts = stack.rows(
        "SELECT text, embedding::text FROM memory WHERE kind = 'episode' AND tenant = 'acme' ORDER BY seq"
    )
    talk = EpisodicMemory(NEW, fresh, database=database)
    for text, _ in contexts:
        talk.append("talk", text)
    assert (
        stack.rows("SELECT text, embedding::text FROM memory WHERE tenant = 'fresh' ORDER BY seq") == contexts
    )


def test_what_came_before_an_entry_counts_also_where_it_is_not_copied_yet(
    stack: Stack, database: MemoryDatabase, work: Reembedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ids run backwards, so that the later entries are copied first; then one in between is forgotten."""
    ids = iter(range(1000, 0, -1))
    monkeypatch.setattr("trellis.memory.episodic.uuid4", lambda: UUID(int=next(ids)))
    talk = EpisodicMemory(EMBEDDER, HERE, database=database)
    entries = [talk.append("talk", f"entry {number} speaks of thing {number * 31}") for number in range(7)]
    state = work.turn(work.begin())
    assert 0 < state["copied"] < 7
    talk.forget(entries[4].key)
    expected = rows(stack, but="AND model = 1")
    through(work, state)
    assert rows(stack) == expected


def test_the_old_model_serves_and_changes_meanwhile_are_not_lost(
    stack: Stack, database: MemoryDatabase, work: Reembedding
) -> None:
    fill(database)
    memory, talk = facts(database), EpisodicMemory(EMBEDDER, HERE, database=database)
    state = work.begin()
    changes = [
        lambda: memory.store("k1", "k1 has changed"),
        lambda: memory.forget("k2"),
        lambda: memory.store("new", "something new"),
        lambda: talk.forget(
            filters=Filters(episode="talk", since=talk.recent(3)[1].at, until=talk.recent(3)[0].at)
        ),
        lambda: talk.append("talk", "a last entry"),
        lambda: memory.store("k3", "fact 3 of acme, about thing 23757", importance=0.9),
    ]
    for change in changes:
        state = work.turn(state)
        change()
        assert memory.retrieve("k4") is not None
        assert [hit.key for hit in memory.search("fact 4 of acme, about thing 31676", 1)] == ["k4"]
    talk.mend()
    expected = rows(stack, but="AND model = 1")
    through(work, state)
    assert rows(stack) == expected
    after = facts(database, NEW)
    assert after.retrieve("k1").value == "k1 has changed"  # type: ignore[union-attr]
    assert after.retrieve("k2") is None
    assert after.retrieve("k3").importance == pytest.approx(0.9)  # type: ignore[union-attr]
    assert [hit.key for hit in after.search("something new", 1)] == ["new"]
    texts = [entry.text for entry in EpisodicMemory(NEW, HERE, database=database).recent(5)]
    assert texts == ["a last entry", "entry 2 speaks of thing 62", "entry 0 speaks of thing 0"]
    assert stack.rows("SELECT count(*) FROM memory WHERE tsv @@ 'thing & 31' AND tenant = 'acme'") == [(0,)]


def test_stores_and_deletes_at_full_speed_end_in_both_or_neither(
    stack: Stack, database: MemoryDatabase, work: Reembedding
) -> None:
    """Four threads against the copying: what they left in the old generation is what the new one has."""
    fill(database)
    memory = facts(database)
    stop = threading.Event()
    errors: list[BaseException] = []

    def use(me: int) -> None:
        number = 0
        try:
            while not stop.is_set():
                number += 1
                memory.store(
                    f"t{me}-{number % 7}", f"value {number} of {me} and thing {number * 7919 * (me + 1)}"
                )
                if number % 3 == 0:
                    memory.forget(f"t{me}-{(number + 3) % 7}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    state = work.begin()
    for _ in range(25):
        state = work.turn(state, keep=True)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    copied = "AND id IN (SELECT id FROM memory WHERE model = {})"
    assert rows(stack, but="AND model = 2") == rows(stack, but=f"AND model = 1 {copied.format(2)}")
    state["done"] = False
    while not state["done"]:
        state = work.turn(state, keep=True)
    assert rows(stack, but="AND model = 2") == rows(stack, but="AND model = 1")


def test_the_last_rows_are_copied_though_new_ones_never_end(
    stack: Stack, database: MemoryDatabase, work: Reembedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reembedding, "PASSES", 2)
    fill(database)
    memory, state, turns = facts(database), work.begin(), 0
    while not state["done"]:
        turns += 1
        memory.store(f"more {turns}", f"thing {turns * 7919} of {turns}")
        state = work.turn(state)
    assert models(stack)[1] == ("hashing-64", 0)
    assert facts(database, NEW).retrieve(f"more {turns}") is not None


def test_with_keep_the_old_generation_serves_until_the_next_time(
    stack: Stack, database: MemoryDatabase, work: Reembedding
) -> None:
    fill(database)
    state = work.begin()
    while not state["done"]:
        state = work.turn(state, keep=True)
    facts(database).store("late", "from a process of the old model")
    facts(database, NEW).store("early", "from a process of the new model")
    assert facts(database, NEW).search("from a process", 1)[0].key == "early"
    state = through(work, work.begin())
    assert (state["rows"] > state["copied"], state["copied"]) == (True, 1)
    assert {hit.key for hit in facts(database, NEW).search("from a process of the model", 2)} == {
        "early",
        "late",
    }


def test_a_process_of_the_old_model_is_told_where_its_memories_are(
    stack: Stack, database: MemoryDatabase, work: Reembedding
) -> None:
    """Also one that knew the model before; and back it goes as it came."""
    fill(database)
    through(work, work.begin())
    with pytest.raises(ConfigurationError, match="hashing-32"):
        facts(database).store("k", "v")
    with pytest.raises(ConfigurationError, match="hashing-32"):
        facts(database).search("v")
    back = Reembedding(stack.settings, EMBEDDER)
    through(back, back.begin())
    back.close()
    assert [hit.key for hit in facts(database).search("fact 4 of acme, about thing 31676", 1)] == ["k4"]


def test_nothing_to_do_is_done_at_once(stack: Stack, database: MemoryDatabase, work: Reembedding) -> None:
    assert work.begin()["done"] is True
    facts(database, NEW).store("k", "v")
    assert work.begin()["done"] is True
    assert facts(database, NEW).retrieve("k") is not None


def test_it_is_refused_to_whom_policies_hold(stack: Stack) -> None:
    """Who does not own the tables would copy nothing, and drop all."""

    class Held(OwnerDatabase):
        def examine(self, connection: Any) -> None:
            connection.execute("SET ROLE trellis_memory")
            super().examine(connection)

    work = Reembedding(stack.settings, NEW, Held(stack.database_url, stack.settings))
    with pytest.raises(ConfigurationError, match="owns the tables"):
        work.begin()


def test_a_worker_that_is_killed_in_the_middle_costs_one_turn(stack: Stack, database: MemoryDatabase) -> None:
    """The run goes on elsewhere, and all rows are there once."""
    from trellis.workflows import reembedding as flow

    fill(database)
    before = rows(stack)
    run = flow.start(stack.client, "hashing:32")
    assert flow.start(stack.client, "hashing:32").id == run.id
    log = stack.folder / "dying.log"
    program = stack.folder / "dying.py"
    program.write_text(DYING)
    process = Forked(["python", str(program), run.id], stack.environment(TRELLIS_IMPORTS=""), log)
    assert process.wait(60) == -signal.SIGKILL, log.read_text()
    copied = stack.rows("SELECT count(*) FROM memory WHERE model = 2")[0][0]
    assert 0 < copied < len(before)
    worker = stack.worker(TRELLIS_IMPORTS="")
    stack.beat()
    eventually(lambda: stack.client.get(run).finished, 60, worker.text())
    assert stack.client.get(run).state == "succeeded"
    assert rows(stack) == before
    result = stack.client.result(run, "copy")
    assert flow.progress(result)[1] == len(before)


DYING = """
import os, signal, sys
from trellis.memory import reembedding
from trellis.memory.embedders.hashing import HashingEmbedder
from trellis.tasks.settings import current
from trellis.workflows import Client
from trellis.workflows.engine import engine
import trellis.workflows.reembedding

reembedding.TURN = reembedding.AT_ONCE = 4
turn = reembedding.Reembedding.turn
count = []
def dying(self, state, *, keep=False):
    count.append(1)
    found = turn(self, state, keep=keep)
    if len(count) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return found
reembedding.Reembedding.turn = dying
run = sys.argv[1]
while True:
    with engine().database.connection() as connection:
        ready = connection.execute(
            "SELECT action, idx FROM step WHERE run_id = %s AND state = 'ready'", (run,)
        ).fetchall()
    for action, idx in ready:
        engine().run_bundle(action, run, [idx])
"""
