"""Vacuum under load: searches by the index and writes go on meanwhile, find what is there and nothing that is gone."""

from __future__ import annotations

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from memories import opened
from stack import Stack, eventually

from trellis.memory import Scope, VectorMemory, import_jsonl, ranking
from trellis.memory.embedders.hashing import HashingEmbedder

EMBEDDER = HashingEmbedder(256)
ANN = Scope("acme", "ann")
STABLE = 300
VACUUMS = (
    "VACUUM memory",
    "VACUUM (ANALYZE, INDEX_CLEANUP ON, PARALLEL 0) memory",
    # As autovacuum does it: with pauses, and past what is locked.
    "SET vacuum_cost_delay = '1ms'",
    "VACUUM (SKIP_LOCKED) memory",
    "VACUUM (FREEZE) memory",
)


def said(name: str) -> str:
    """No two texts share a word."""
    return f"a{name} b{name} c{name} d{name}"


class Load:
    """Threads that store, replace, forget and search until they are told to end; what is gone, and how far each is."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.over = threading.Event()
        self.gone: set[str] = set()
        self.live: set[str] = set()
        self.turns: Counter[str] = Counter()

    def write(self, me: str) -> None:
        with opened(self.stack) as database:
            facts = VectorMemory(EMBEDDER, ANN, database=database)
            while not self.over.is_set():
                n = self.turns[me]
                assert facts.store(f"{me}{n}", said(f"{me}old{n}")).outcome == "added"
                assert facts.store(f"{me}{n}", said(f"{me}new{n}")).outcome == "replaced"
                self.live.add(f"{me}{n}")
                if n >= 2:
                    assert facts.forget(f"{me}{n - 2}") == 2
                    self.gone.add(f"{me}{n - 2}")
                self.turns[me] += 1

    def search(self, me: str) -> None:
        with opened(self.stack) as database:
            facts = VectorMemory(EMBEDDER, ANN, database=database)
            while not self.over.is_set():
                gone = set(self.gone)
                number = self.turns[me] * 7 % STABLE
                hits = facts.search(said(str(number)), limit=10)
                assert hits[0].key == str(number)
                assert hits[0].score == pytest.approx(1, abs=0.01)
                assert len(hits) == 10
                assert not {hit.key for hit in hits} & gone
                self.turns[me] += 1


def test_searches_and_writes_go_on_while_the_tables_are_vacuumed(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "EXACT_ROWS", 100)
    monkeypatch.setattr(ranking, "NEAR_ROWS", 100)
    path = tmp_path / "stable.jsonl"
    path.write_text("".join(json.dumps({"key": str(n), "value": said(str(n))}) + "\n" for n in range(STABLE)))
    with opened(stack) as database:
        import_jsonl(path, EMBEDDER, ANN, database=database)
    load = Load(stack)
    everybody = {"w": load.write, "v": load.write, "s": load.search, "t": load.search}
    with ThreadPoolExecutor(len(everybody)) as pool:
        running = [pool.submit(work, me) for me, work in everybody.items()]
        try:
            with psycopg.connect(stack.database_url, autocommit=True) as connection:
                for vacuum in (*VACUUMS, *VACUUMS):
                    before = Counter(load.turns)
                    eventually(
                        lambda before=before: (
                            all(load.turns[me] > before[me] + 1 for me in everybody)
                            or any(each.done() for each in running)
                        )
                    )
                    connection.execute(vacuum)
        finally:
            load.over.set()
        for each in running:
            each.result(30)
    with opened(stack) as database:
        facts = VectorMemory(EMBEDDER, ANN, database=database)
        left = load.live - load.gone
        assert len(load.gone) >= 2 * len(VACUUMS)
        for key in left:
            found = facts.search(said(f"{key[0]}new{key[1:]}"), limit=1)
            assert [hit.key for hit in found] == [key]
        assert {row[0] for row in stack.rows("SELECT key FROM memory WHERE valid_to IS NULL")} == left | {
            str(n) for n in range(STABLE)
        }
