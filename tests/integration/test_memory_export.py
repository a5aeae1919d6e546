"""Exports: what is imported from one is what was exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from memories import EMBEDDER
from stack import Stack

from trellis.memory.bulk import import_jsonl, import_parquet
from trellis.memory.connections import MemoryDatabase
from trellis.memory.embedders.hashing import HashingEmbedder
from trellis.memory.entries import Filters
from trellis.memory.episodic import EpisodicMemory
from trellis.memory.exporting import export
from trellis.memory.readers import JsonLines, Parquet, Position
from trellis.memory.records import Target
from trellis.memory.scope import Scope
from trellis.memory.vector import VectorMemory
from trellis.tasks.errors import BadRecord, ConfigurationError, EntryError

HERE, THERE = Scope("acme", "planner"), Scope("other", "")
RUN = "01a1f82f-96e1-7641-94bd-5b89a0432689"
IMPORTS: dict[str, Any] = {"jsonl": import_jsonl, "parquet": import_parquet}


def fill(database: MemoryDatabase) -> None:
    """Facts with all that may be said of one, a replaced one, a linked one, an expired one, and two episodes."""
    facts = VectorMemory(EMBEDDER, HERE, database=database)
    facts.store("plain", "Ann likes tea")
    facts.store(
        "rich", {"a": [1, None, "ü \\ \" \n"], "b": {"c": 1.5}}, metadata={"tags": ["x", {"y": 0}]}, importance=0.9,
        source="web", trust=1, actor="Ann", run=RUN, step=4, ttl=86_400, text="what is searched",
    )  # fmt: skip
    facts.store("moved", "Ann lives in Rome")
    facts.store("moved", "Ann lives in Oslo")
    facts.store("linked", "ann LIKES tea")
    facts.store("empty", "")
    facts.store("over", "soon", ttl=3600)
    talks = EpisodicMemory(EMBEDDER, HERE, database=database)
    for number in range(4):
        talks.append(f"talk {number % 2}", f"entry {number} of {number * 31}", actor="Bob", source="agent")


def picture(stack: Stack, scope: Scope, *, vectors: bool) -> list[tuple[Any, ...]]:
    """All that is said of the memories of a scope, but for their ids."""
    embedding = "embedding::text" if vectors else "NULL"
    return stack.rows(
        f"""SELECT kind, key, value, text, hash, tsv, metadata, importance, source, trust, actor, episode, seq, at,
                   valid_from, valid_to, expires_at, run_id, step, {embedding}
              FROM memory WHERE tenant = %s AND agent = %s AND key <> 'over' ORDER BY kind, key, valid_from""",
        scope.tenant,
        scope.agent,
    )


def links(stack: Stack, scope: Scope) -> list[tuple[Any, ...]]:
    return stack.rows(
        """SELECT l.key, m.key, l.value, l.metadata, l.source, l.at
             FROM memory_link l JOIN memory m ON m.id = l.target WHERE l.tenant = %s ORDER BY l.key""",
        scope.tenant,
    )


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("vectors", [False, True], ids=["texts", "vectors"])
def test_an_import_of_an_export_gives_the_same_memories(
    tmp_path: Path, stack: Stack, database: MemoryDatabase, form: str, vectors: bool
) -> None:
    fill(database)
    stack.rows("UPDATE memory SET expires_at = now() - interval '1 second' WHERE key = 'over'")
    path = tmp_path / f"memories.{form}"
    assert export(path, HERE, vectors=vectors, history=True, database=database) == 10

    class Never(HashingEmbedder):
        def embed(self, texts: Any) -> Any:
            raise AssertionError(f"embedded {texts}")

    embedder = Never(64) if vectors else EMBEDDER
    done = IMPORTS[form](path, embedder, THERE, database=database)
    assert (done.added, done.linked) == (9, 1)
    assert picture(stack, THERE, vectors=True) == picture(stack, HERE, vectors=True)
    assert links(stack, THERE) == links(stack, HERE) != []
    assert IMPORTS[form](path, embedder, THERE, again=True, database=database).same == 10
    second = tmp_path / f"again.{form}"
    assert export(second, THERE, vectors=vectors, history=True, database=database) == 10
    assert [_bare(each) for each in _read(second)] == [_bare(each) for each in _read(path)]


def test_what_is_trusted_less_stands_for_nothing_after_an_import_either(
    tmp_path: Path, stack: Stack, database: MemoryDatabase
) -> None:
    """What a page said first, and a person as well: rows, links and histories come back as they were."""
    facts = VectorMemory(EMBEDDER, HERE, database=database)
    facts.store("page", "the office opens at nine", source="web")
    facts.store("alias", "the office opens at NINE", source="web")
    facts.store("said", "The office opens  at nine")
    facts.store("page", "the office opens at nine")
    facts.store("other", "THE office opens at nine", source="web")
    facts.store("shop", "the shop is closed", source="web")
    facts.store("shop", "the shop is closed")
    facts.store("drink", "tea", metadata={"trip": 8})
    facts.store("drink2", "Tea", metadata={"trip": 7})
    facts.store("late", "tea", metadata={"trip": 7})
    path = tmp_path / "a.jsonl"
    export(path, HERE, history=True, database=database)
    import_jsonl(path, EMBEDDER, THERE, database=database)
    assert picture(stack, THERE, vectors=True) == picture(stack, HERE, vectors=True)
    assert links(stack, THERE) == links(stack, HERE)
    assert {key: target for key, target, *_ in links(stack, THERE)} == {
        "late": "drink2",
        "other": "alias",
        "page": "said",
    }
    there = VectorMemory(EMBEDDER, THERE, database=database)
    for query, filters in (("office", Filters(min_trust=1)), ("tea", Filters(metadata={"trip": 7}))):
        found = [[hit.key for hit in each.search(query, 1, filters)] for each in (facts, there)]
        assert found[0] == found[1] != []
    for key in ("page", "shop", "alias", "other"):
        here, again = ([each._replace(id=None, agent="") for each in m.history(key)] for m in (facts, there))
        assert here == again != [], key


def _read(path: Path) -> list[Any]:
    source = JsonLines(path) if path.suffix == ".jsonl" else Parquet(path)
    target = Target(EMBEDDER.model, EMBEDDER.dims, 1_000_000)
    rows = list(source.rows(Position(), target))
    assert all(row.wrong is None for row in rows)
    return [row.record for row in rows]


def _bare(record: Any) -> Any:
    return (
        record.draft,
        record.kind,
        record.episode,
        record.seq,
        record.valid_from,
        record.valid_to,
        record.linked,
    )


def test_what_was_replaced_and_vectors_are_in_only_if_asked_for(
    tmp_path: Path, database: MemoryDatabase
) -> None:
    fill(database)
    path = tmp_path / "a.jsonl"
    export(path, HERE, kinds=("fact",), database=database)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(each["key"] for each in records) == ["empty", "linked", "moved", "over", "plain", "rich"]
    assert not {"embedding", "model", "tenant", "agent", "id"} & {name for each in records for name in each}
    assert next(each for each in records if each["key"] == "linked")["linked"] == "plain"


@pytest.mark.parametrize("name", ["a.PARQUET", "a.Parquet"])
def test_a_suffix_says_how_a_file_is_written_in_any_case(
    tmp_path: Path, database: MemoryDatabase, name: str
) -> None:
    fill(database)
    path = tmp_path / name
    count = export(path, HERE, database=database)
    assert import_parquet(path, EMBEDDER, THERE, database=database).rows == count > 0


def test_nothing_of_another_tenant_is_exported(tmp_path: Path, database: MemoryDatabase) -> None:
    fill(database)
    path = tmp_path / "a.jsonl"
    for scope in (Scope("acme' OR 1=1--", "planner"), Scope("other", "planner"), Scope("acme", "writer")):
        assert export(path, scope, vectors=True, history=True, database=database) == 0
        assert path.read_text() == ""


def test_an_export_that_cannot_be_written_leaves_what_was_there(
    tmp_path: Path, database: MemoryDatabase
) -> None:
    fill(database)
    with pytest.raises(ConfigurationError, match="cannot be written"):
        export(tmp_path / "no" / "a.jsonl", HERE, database=database)
    with pytest.raises(EntryError, match="form"):
        export(tmp_path / "a", HERE, form="csv", database=database)  # type: ignore[arg-type]
    with pytest.raises(EntryError, match="kinds"):
        export(tmp_path / "a", HERE, kinds=("facts",), database=database)
    assert list(tmp_path.iterdir()) == []


def test_a_parquet_file_of_others_is_read_as_it_stands(
    tmp_path: Path, stack: Stack, database: MemoryDatabase
) -> None:
    """A column of texts is texts, though they look like JSON; a bad row is named; an import goes on at any row."""
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    vectors = [[1.0] + [0.0] * 63, None, [0.0, 2.0] + [0.0] * 62, [1.0]]
    table = pa.table({"key": ["a", "b", "c", "d"], "value": ["[1]", "{}", "x", "y"], "embedding": vectors})
    parquet.write_table(table, path, row_group_size=2)
    with pytest.raises(BadRecord, match="a.parquet, line 4: embedding") as refused:
        import_parquet(path, EMBEDDER, HERE, database=database)
    assert refused.value.line == 4
    assert stack.rows("SELECT key, value FROM memory ORDER BY key") == [("a", "[1]"), ("b", "{}"), ("c", "x")]
    done = import_parquet(path, EMBEDDER, HERE, skip_bad=True, database=database)
    assert (done.added, done.bad, done.rows) == (3, 1, 4)
    assert done.rejects is not None
    assert json.loads(json.loads(done.rejects.read_text())["record"]) == {"key": "d", "value": "y"}
    path.write_text("x")
    with pytest.raises(ConfigurationError, match="is no parquet file"):
        import_parquet(path, EMBEDDER, HERE, database=database)


def test_entries_with_keys_of_their_own_keep_them_and_their_history(
    tmp_path: Path, stack: Stack, database: MemoryDatabase
) -> None:
    talk = EpisodicMemory(EMBEDDER, HERE, database=database)
    talk.store("order-7", "Bob orders tea", episode="talk")
    talk.append("talk", "And some cake")
    talk.store("order-7", "Bob orders coffee", episode="talk")
    path = tmp_path / "memories.jsonl"
    assert export(path, HERE, history=True, database=database) == 3
    assert import_jsonl(path, EMBEDDER, THERE, database=database).added == 3
    assert picture(stack, THERE, vectors=True) == picture(stack, HERE, vectors=True)
    assert import_jsonl(path, EMBEDDER, THERE, again=True, database=database).same == 3
