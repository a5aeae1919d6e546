"""Files of memories: what an import does, where it goes on, and that an export brings everything back."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forks import Forked
from memories import EMBEDDER
from stack import Stack

from trellis.memory import bulk
from trellis.memory.bulk import Imported, import_jsonl
from trellis.memory.connections import MemoryDatabase
from trellis.memory.embedders.hashing import HashingEmbedder
from trellis.memory.entries import Filters
from trellis.memory.episodic import EpisodicMemory
from trellis.memory.scope import Scope
from trellis.memory.vector import VectorMemory
from trellis.tasks.errors import BadRecord, ConfigurationError, ConflictError, EmbeddingError

SCOPE = Scope("acme", "planner")
NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


@pytest.fixture
def facts(database: MemoryDatabase) -> VectorMemory:
    return VectorMemory(EMBEDDER, SCOPE, database=database)


@pytest.fixture
def episodes(database: MemoryDatabase) -> EpisodicMemory:
    return EpisodicMemory(EMBEDDER, SCOPE, database=database)


def write(path: Path, *records: Any) -> Path:
    """A file with a record a line; a text stands there as it is."""
    lines = [each if isinstance(each, str) else json.dumps(each, ensure_ascii=False) for each in records]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def many(count: int) -> list[dict[str, Any]]:
    return [{"key": f"k{n}", "value": f"fact number {n} about thing {n * 7919}"} for n in range(count)]


def counts(found: Imported) -> dict[str, int]:
    names = ("added", "replaced", "same", "linked", "expired", "bad")
    return {name: getattr(found, name) for name in names if getattr(found, name)}


def rows(stack: Stack) -> list[tuple[Any, ...]]:
    return stack.rows("SELECT key FROM memory WHERE valid_to IS NULL ORDER BY key")


def test_a_record_is_stored_with_all_that_it_says(
    tmp_path: Path, database: MemoryDatabase, facts: VectorMemory
) -> None:
    run = "01a1f82f-96e1-7641-94bd-5b89a0432689"
    told = {
        "key": "tea", "value": {"likes": ["tea", None]}, "metadata": {"lang": "de"}, "importance": 0.25,
        "source": "web", "trust": 1, "actor": "Ann", "at": "2026-01-31T12:00:00+01:00",
        "valid_from": "2026-02-01T00:00:00Z", "expires_at": "2999-01-01T00:00:00Z", "run_id": run, "step": 3,
    }  # fmt: skip
    import_jsonl(write(tmp_path / "a.jsonl", told), EMBEDDER, SCOPE, database=database)
    found = facts.retrieve("tea")
    assert found is not None
    assert {name: getattr(found, name) for name in told if hasattr(found, name)} == {
        **told,
        "at": datetime(2026, 1, 31, 11, tzinfo=UTC),
        "valid_from": datetime(2026, 2, 1, tzinfo=UTC),
        "expires_at": datetime(2999, 1, 1, tzinfo=UTC),
        "run_id": found.run_id,
    }
    assert str(found.run_id) == run
    assert found.text == "likes: tea"
    assert [hit.key for hit in facts.search("tea")] == ["tea"]


def test_a_file_that_is_imported_twice_is_in_once(
    tmp_path: Path, stack: Stack, database: MemoryDatabase
) -> None:
    """By its content: under another name it is the same file, and `again` finds everything there."""
    path = write(tmp_path / "a.jsonl", *many(5), "", "   ")
    assert counts(import_jsonl(path, EMBEDDER, SCOPE, database=database)) == {"added": 5}
    other = tmp_path / "moved.jsonl"
    path.rename(other)
    done = import_jsonl(other, EMBEDDER, SCOPE, database=database)
    assert (done.finished_at is not None, counts(done)) == (True, {"added": 5})
    before = stack.rows("SELECT id, xmin FROM memory ORDER BY id")
    assert counts(import_jsonl(other, EMBEDDER, SCOPE, again=True, database=database)) == {"same": 5}
    assert stack.rows("SELECT id, xmin FROM memory ORDER BY id") == before
    theirs = import_jsonl(other, EMBEDDER, Scope("acme", "writer"), database=database)
    assert counts(theirs) == {"added": 5}


def test_what_is_there_already_is_replaced_or_linked_as_by_store(
    tmp_path: Path, stack: Stack, database: MemoryDatabase, facts: VectorMemory
) -> None:
    facts.store("same", "Ann likes tea", importance=0.2)
    facts.store("changes", "Ann lives in Rome")
    facts.store("heir", "ann LIVES in  rome")  # linked to `changes`
    path = write(
        tmp_path / "a.jsonl",
        {"key": "same", "value": "Ann likes tea", "importance": 0.9},
        {"key": "changes", "value": "Ann lives in Oslo"},
        {"key": "copy", "value": "ann likes TEA"},
        {"key": "new", "value": "Ann has a dog"},
        {"key": "twin", "value": "Ann has a  dog"},
        {"key": "old", "value": "gone", "expires_at": "2020-01-01T00:00:00Z"},
    )
    done = import_jsonl(path, EMBEDDER, SCOPE, database=database)
    assert counts(done) == {"same": 1, "replaced": 1, "linked": 2, "added": 1, "expired": 1}
    assert [each.value for each in facts.history("changes")] == ["Ann lives in Rome", "Ann lives in Oslo"]
    assert rows(stack) == [("changes",), ("heir",), ("new",), ("same",)]
    assert facts.retrieve("copy").value == "ann likes TEA"  # type: ignore[union-attr]
    assert facts.retrieve("same").importance == pytest.approx(0.9)  # type: ignore[union-attr]
    assert sorted(hit.key for hit in facts.search("Ann likes tea dog", 10)) == [
        "changes",
        "heir",
        "new",
        "same",
    ]
    again = import_jsonl(path, EMBEDDER, SCOPE, again=True, database=database)
    assert counts(again) == {"same": 5, "expired": 1}


def test_what_is_trusted_less_hides_nothing_that_a_file_trusts_more(
    tmp_path: Path, database: MemoryDatabase, facts: VectorMemory
) -> None:
    """As by `store`: neither in the table, as row or as link, nor within the file."""
    facts.store("page", "the office opens at nine", source="web")
    facts.store("alias", "the office opens at NINE", source="web")
    facts.store("shop", "the shop is closed", source="web")
    said: list[dict[str, Any]] = [
        {"key": "said", "value": "The office opens  at nine"},
        {"key": "named", "value": "the office is open from nine", "linked": "page"},
        {"key": "alias", "value": "the office opens at NINE"},
        {"key": "shop", "value": "the shop is closed"},
        {"key": "first", "value": "the lift is broken", "source": "web"},
        {"key": "second", "value": "The lift is broken", "source": "web", "trust": 2},
        {"key": "twice", "value": "the door is blue", "source": "web"},
        {"key": "twice", "value": "the door is blue"},
        {"key": "thrice", "value": "the roof is red"},
        {"key": "thrice", "value": "the roof is red", "source": "web", "trust": 0, "importance": 0.75},
    ]
    done = import_jsonl(write(tmp_path / "a.jsonl", *said), EMBEDDER, SCOPE, database=database)
    assert counts(done) == {"added": 7, "replaced": 1, "linked": 1}
    trusted = Filters(min_trust=1)
    for query, keys in (
        ("office opens", {"said", "named"}),
        ("shop", {"shop"}),
        ("lift", {"second"}),
        ("door", {"twice"}),
        ("roof", {"thrice"}),
    ):
        found = {hit.key for hit in facts.search(query, 10, trusted)}
        assert keys <= found, (query, found)
    for key, trust in (("alias", [0, 2]), ("shop", [0, 2]), ("twice", [0, 2]), ("thrice", [2])):
        assert [each.trust for each in facts.history(key)] == trust, key
    assert facts.retrieve("thrice").importance == 0.75  # type: ignore[union-attr]


def test_an_entry_that_is_trusted_less_is_not_taken_for_one_that_is_trusted_more(
    tmp_path: Path, database: MemoryDatabase, episodes: EpisodicMemory
) -> None:
    """As one with another value is, since a file replaces no entries; trusted less, it is the same."""
    entry = {"episode": "talk", "key": "a", "value": "we meet at nine", "source": "tool"}
    import_jsonl(write(tmp_path / "a.jsonl", entry), EMBEDDER, SCOPE, database=database)
    more, less = {**entry, "source": "user"}, {**entry, "source": "web"}
    for name, records, line in (("b", [more], 1), ("c", [{**less, "key": "b"}, {**more, "key": "b"}], 2)):
        with pytest.raises(BadRecord, match="key") as refused:
            import_jsonl(write(tmp_path / name, *records), EMBEDDER, SCOPE, database=database)
        assert refused.value.line == line
    again = import_jsonl(write(tmp_path / "d", less), EMBEDDER, SCOPE, database=database)
    assert (again.same, episodes.recent(1)[0].source) == (1, "web")
    [entry_a] = [each for each in episodes.recent(9) if each.key == "a"]
    assert entry_a.source == "tool"


def test_a_file_links_only_what_no_search_tells_apart(
    tmp_path: Path, stack: Stack, database: MemoryDatabase, facts: VectorMemory
) -> None:
    """To what is there, and within the file; whatever the earlier one became itself."""
    run = "01a1f82f-96e1-7641-94bd-5b89a0432689"
    facts.store("drink", "tea", metadata={"trip": 8}, actor="Ann", at=NOON)
    records: list[dict[str, Any]] = [
        {"key": "one", "value": "Tea", "metadata": {"trip": 8}},
        {"key": "two", "value": "Tea", "metadata": {"trip": 7}},
        {"key": "three", "value": "TEA", "metadata": {"trip": 7}},
        {"key": "four", "value": "tea!", "run_id": run},
        {"key": "five", "value": "tea.", "at": "2026-01-31T12:00:00Z"},
        {"key": "six", "value": "tea.", "at": NOON.isoformat(), "actor": "Ann"},
        {"key": "seven", "value": "hot tea", "linked": "drink", "at": "2026-01-31T12:00:00Z"},
        {"key": "eight", "value": "hot tea", "linked": "two", "at": "2026-01-31T12:00:00Z"},
        {"key": "drink", "value": "tea", "metadata": {"trip": 8}, "run_id": run},
        {"key": "nine", "value": "Tea", "metadata": {"trip": 8}, "run_id": run},
    ]
    path = write(tmp_path / "a.jsonl", *records)
    done = import_jsonl(path, EMBEDDER, SCOPE, database=database)
    assert rows(stack) == [("drink",), ("five",), ("four",), ("nine",), ("two",)]
    assert counts(done) == {"same": 1, "added": 4, "linked": 5}
    assert counts(import_jsonl(path, EMBEDDER, SCOPE, again=True, database=database)) == {"same": 10}
    for filters, key in (
        (Filters(metadata={"trip": 7}), "two"),
        (Filters(run=run, metadata={"trip": 8}), "nine"),
        (Filters(since=NOON - timedelta(days=99), until=NOON), "five"),
    ):
        assert [hit.key for hit in facts.search("tea", filters=filters)] == [key]
    dangling = "SELECT key FROM memory_link l WHERE NOT EXISTS (SELECT FROM memory m WHERE m.id = l.target)"
    assert stack.rows(dangling) == []


def test_of_several_values_of_a_key_the_last_one_holds(
    tmp_path: Path, database: MemoryDatabase, facts: VectorMemory
) -> None:
    values = ["a", "b", "b", "a", "c"]
    path = write(tmp_path / "a.jsonl", *({"key": "k", "value": value} for value in values))
    done = import_jsonl(path, EMBEDDER, SCOPE, database=database)
    assert facts.retrieve("k").value == "c"  # type: ignore[union-attr]
    history = facts.history("k")
    assert [each.value for each in history] == ["a", "b", "a", "c"]
    assert all(
        one.valid_from <= one.valid_to <= two.valid_from for one, two in pairwise(history) if one.valid_to
    )
    assert done.added == 4


def test_entries_of_an_episode_are_found_by_what_was_said_before_them(
    tmp_path: Path, stack: Stack, database: MemoryDatabase, episodes: EpisodicMemory
) -> None:
    """As if they had been appended: the same words and vectors, in batches and across files."""
    lines = [f"entry {n} speaks of {word}" for n, word in enumerate(["apples", "boats", "cats", "dogs"])]
    first = write(tmp_path / "1.jsonl", *({"episode": "talk", "value": line} for line in lines[:2]))
    second = write(tmp_path / "2.jsonl", *({"episode": "talk", "value": line} for line in lines[2:]))
    for path in (first, second):
        import_jsonl(path, EMBEDDER, SCOPE, database=database)
    appended = EpisodicMemory(EMBEDDER, Scope("acme", "other"), database=database)
    for line in lines:
        appended.append("talk", line)
    seen = stack.rows(
        "SELECT agent, seq, text, ts_rank('{0,1,1,0}', tsv, 'appl | boat')::float4, embedding::text "
        "FROM memory ORDER BY agent, seq"
    )
    assert [row[1:] for row in seen[:4]] == [row[1:] for row in seen[4:]]
    assert [row[1] for row in seen[:4]] == [1, 2, 3, 4]


def test_a_vector_that_comes_along_is_taken_at_length_one(
    tmp_path: Path, stack: Stack, database: MemoryDatabase
) -> None:
    """One of another model is not: its text is embedded."""
    vector = [0.0] * EMBEDDER.dims
    vector[3] = 5.0
    own = {"key": "own", "value": "alpha", "embedding": vector, "model": EMBEDDER.model}
    nobody = {"key": "unnamed", "value": "beta", "embedding": vector}
    other = {"key": "other", "value": "gamma", "embedding": [1.0, 2.0], "model": "another"}
    import_jsonl(write(tmp_path / "a.jsonl", own, nobody, other), EMBEDDER, SCOPE, database=database)
    found = {
        key: np.array(json.loads(text)) for key, text in stack.rows("SELECT key, embedding::text FROM memory")
    }
    unit = np.eye(EMBEDDER.dims)[3]
    assert np.allclose(found["own"], unit)
    assert np.allclose(found["unnamed"], unit)
    assert np.allclose(found["other"], EMBEDDER.embed(["gamma"])[0], atol=1e-3)


BAD: list[Any] = ["{", {"value": "a\0"}, {"value": 1, "importence": 1}]


def test_a_bad_line_stops_the_import_and_is_named(
    tmp_path: Path, stack: Stack, database: MemoryDatabase
) -> None:
    """What stands before it is in; what stands behind it is not."""
    path = write(tmp_path / "a.jsonl", *many(2), BAD[2], {"key": "behind", "value": 1})
    with pytest.raises(
        BadRecord, match="a.jsonl, line 3: importence: .*did you mean 'importance'"
    ) as refused:
        import_jsonl(path, EMBEDDER, SCOPE, database=database)
    assert (refused.value.file, refused.value.line, refused.value.field) == ("a.jsonl", 3, "importence")
    assert rows(stack) == [("k0",), ("k1",)]


def test_bad_lines_are_put_aside_and_counted(tmp_path: Path, stack: Stack, database: MemoryDatabase) -> None:
    bad = BAD
    path = write(
        tmp_path / "a.jsonl", *(line for pair in zip(many(len(bad)), bad, strict=True) for line in pair)
    )
    done = import_jsonl(path, EMBEDDER, SCOPE, skip_bad=True, database=database)
    assert counts(done) == {"added": len(bad), "bad": len(bad)}
    assert done.rejects == tmp_path / "a.jsonl.rejects.jsonl"
    told = [json.loads(line) for line in done.rejects.read_text().splitlines()]
    lines = path.read_text().splitlines()
    assert [each["line"] for each in told] == list(range(2, 2 * len(bad) + 1, 2))
    assert [each["record"] for each in told] == lines[1::2]
    assert len(rows(stack)) == len(bad)


def test_two_entries_of_one_key_are_refused_in_the_file_and_against_the_table(
    tmp_path: Path, database: MemoryDatabase
) -> None:
    first = {"episode": "e", "key": "a", "value": "one"}
    import_jsonl(write(tmp_path / "a.jsonl", first), EMBEDDER, SCOPE, database=database)
    for records, line in (
        ([{**first, "value": "two"}], 1),
        ([{**first, "key": "b"}, {**first, "key": "b", "value": "two"}], 2),
    ):
        path = write(tmp_path / f"{line}.jsonl", *records)
        with pytest.raises(BadRecord) as refused:
            import_jsonl(path, EMBEDDER, SCOPE, database=database)
        assert (refused.value.line, refused.value.field) == (line, "key")
        done = import_jsonl(path, EMBEDDER, SCOPE, skip_bad=True, database=database)
        assert done.bad == 1


def test_a_file_without_any_record_and_one_that_is_not_there(
    tmp_path: Path, database: MemoryDatabase
) -> None:
    assert import_jsonl(write(tmp_path / "a.jsonl"), EMBEDDER, SCOPE, database=database).rows == 0
    with pytest.raises(ConfigurationError, match="missing.jsonl cannot be read"):
        import_jsonl(tmp_path / "missing.jsonl", EMBEDDER, SCOPE, database=database)


def test_the_index_of_a_new_model_is_built_behind_its_first_load(
    tmp_path: Path, stack: Stack, database: MemoryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not before; a later import leaves it as it is."""
    indexes = (
        "SELECT count(*), min(indexrelid) FROM pg_stat_user_indexes WHERE indexrelname LIKE 'memory%%hnsw'"
    )
    seen = []

    def look(state: Imported) -> None:
        seen.append((state.rows, stack.rows(indexes)[0][0]))

    monkeypatch.setattr(bulk, "AT_ONCE", 2)
    import_jsonl(write(tmp_path / "a.jsonl", *many(4)), EMBEDDER, SCOPE, progress=look, database=database)
    assert seen == [(0, 1), (2, 0), (4, 0), (4, 1)]
    [built] = stack.rows(indexes)
    seen.clear()
    import_jsonl(write(tmp_path / "b.jsonl", *many(5)), EMBEDDER, SCOPE, progress=look, database=database)
    assert {count for _, count in seen} == {1}
    assert stack.rows(indexes) == [built]


IMPORTS = """
import os, signal, sys
from pathlib import Path
from trellis.memory import bulk
from trellis.memory.connections import MemoryDatabase
from trellis.memory.embedders.hashing import HashingEmbedder
from trellis.memory.scope import Scope
from trellis.tasks.settings import load

class Dying(HashingEmbedder):
    calls = 0
    def embed(self, texts):
        self.calls += 1
        if self.calls == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().embed(texts)

bulk.AT_ONCE = 10
bulk.import_jsonl(sys.argv[1], Dying(64), Scope("acme", "planner"), skip_bad=True, database=MemoryDatabase(load()))
"""


def test_an_import_that_was_killed_goes_on_with_nothing_twice_and_nothing_lost(
    tmp_path: Path, stack: Stack, database: MemoryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what was put aside: a line that was written there and not committed is written once."""
    records: list[Any] = many(35)
    records[5] = records[25] = "no json"
    path = write(tmp_path / "a.jsonl", *records)
    program = tmp_path / "imports.py"
    program.write_text(IMPORTS)
    process = Forked(
        ["python", str(program), str(path)], stack.environment(TRELLIS_IMPORTS=""), tmp_path / "log"
    )
    assert process.wait(60) == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert len(rows(stack)) == 19
    rejects = tmp_path / "a.jsonl.rejects.jsonl"
    rejects.write_bytes(rejects.read_bytes() + b'{"torn": ')
    texts: list[str] = []

    class Counting(HashingEmbedder):
        def embed(self, given: Any) -> Any:
            texts.extend(given)
            return super().embed(given)

    monkeypatch.setattr(bulk, "AT_ONCE", 10)
    done = import_jsonl(path, Counting(64), SCOPE, skip_bad=True, database=database)
    assert counts(done) == {"added": 33, "bad": 2}
    assert len(texts) == 14  # only those of the batches that were not in
    assert [json.loads(line)["line"] for line in rejects.read_text().splitlines()] == [6, 26]
    expected = sorted((f"k{n}",) for n in range(35) if n not in (5, 25))
    assert rows(stack) == expected
    assert stack.rows("SELECT count(*), count(DISTINCT hash) FROM memory") == [(33, 33)]


def test_an_embedder_that_fails_leaves_the_import_where_it_was(
    tmp_path: Path, stack: Stack, database: MemoryDatabase
) -> None:
    class Failing(HashingEmbedder):
        def embed(self, texts: Any) -> Any:
            raise EmbeddingError(self.model, "it is away")

    path = write(tmp_path / "a.jsonl", *many(3))
    with pytest.raises(EmbeddingError):
        import_jsonl(path, Failing(64), SCOPE, database=database)
    assert rows(stack) == []
    assert counts(import_jsonl(path, EMBEDDER, SCOPE, database=database)) == {"added": 3}


def test_of_two_imports_of_a_file_one_goes_on(
    tmp_path: Path, stack: Stack, database: MemoryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "AT_ONCE", 2)
    path = write(tmp_path / "a.jsonl", *many(6))
    second: list[Imported] = []

    def meanwhile(state: Imported) -> None:
        if state.rows == 2 and not second:
            second.append(import_jsonl(path, EMBEDDER, SCOPE, database=database))

    with pytest.raises(ConflictError, match="a.jsonl"):
        import_jsonl(path, EMBEDDER, SCOPE, progress=meanwhile, database=database)
    assert counts(second[0]) == {"added": 6}
    assert len(rows(stack)) == 6


def test_an_import_sees_and_touches_nothing_of_other_tenants(
    tmp_path: Path, stack: Stack, database: MemoryDatabase
) -> None:
    """The same keys and texts elsewhere are neither replaced nor linked to, and its progress is its own."""
    path = write(tmp_path / "a.jsonl", *many(3))
    import_jsonl(path, EMBEDDER, Scope("theirs", "planner"), database=database)
    before = stack.rows("SELECT id, xmin FROM memory ORDER BY id")
    assert counts(import_jsonl(path, EMBEDDER, SCOPE, database=database)) == {"added": 3}
    assert set(before) <= set(stack.rows("SELECT id, xmin FROM memory ORDER BY id"))
    with database.writing("acme") as asker:
        found = asker.connection.execute("SELECT DISTINCT tenant FROM memory_import").fetchall()
    assert found == [("acme",)]


def test_what_an_import_has_stored_meanwhile_is_there_for_a_store(
    tmp_path: Path, database: MemoryDatabase
) -> None:
    """An import takes no lock on keys: a store that had looked before looks again."""
    path = write(tmp_path / "a.jsonl", {"key": "k", "value": "from the file"})
    VectorMemory(EMBEDDER, SCOPE, database=database).store("other", "what makes the model known")

    class Late(VectorMemory):
        def _look(self, *given: Any) -> Any:
            found = super()._look(*given)
            import_jsonl(path, EMBEDDER, SCOPE, database=database)
            return found

    stored_meanwhile = Late(EMBEDDER, SCOPE, database=database)
    assert stored_meanwhile.store("k", "from the store").outcome == "replaced"
    assert [each.value for each in stored_meanwhile.history("k")] == ["from the file", "from the store"]
