"""Large scopes: which plan a search takes, that it takes the indexes that are there for it, and that it finds enough.

A scope counts as large from 400 rows on here, so that these tests do not have to write 20,000.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import redis
from memories import opened
from stack import Stack, stack_of

from trellis.memory import EpisodicMemory, Filters, Scope, VectorMemory, ranking
from trellis.memory.base import ALONE, CONDITIONS
from trellis.memory.connections import MemoryDatabase, statements
from trellis.memory.embedders.hashing import HashingEmbedder
from trellis.memory.going import sql
from trellis.tasks.embedded import Servers
from trellis.tasks.queries import Numbered, numbered

ROWS = 3_000
DIMS = 16
EMBEDDER = HashingEmbedder(DIMS)
ANN = Scope("acme", "ann")
# What is said of a fact that is stored.
FACT = {
    "key": "none",
    "trust": 2,
    "source": "user",
    "metadata": "{}",
    "actor": None,
    "run": None,
    "said_at": None,
}

# One of a hundred has the word `zebra` and the metadata `{"rare": 1}`; half of all rows belong to another tenant, and a
# third of the rest is of the shared scope. All stand in one HNSW index.
FILL = """
    INSERT INTO memory (model, id, tenant, agent, kind, key, value, text, hash, embedding, tsv, metadata, source, trust,
                        episode, seq, at)
    SELECT %(model)s, gen_random_uuid(), CASE WHEN n %% 2 = 0 THEN 'acme' ELSE 'umbrella' END,
           CASE WHEN n %% 3 = 0 THEN '' ELSE 'ann' END, k.kind, 'key' || n, to_jsonb(t.text), t.text,
           sha256(t.text::bytea),
           l2_normalize((SELECT array_agg(random() - 0.5 + 0 * (n + g)) FROM generate_series(1, %(dims)s) g)::halfvec),
           to_tsvector('english', t.text), CASE WHEN n %% 100 = 2 THEN '{"rare": 1}' ELSE '{"rare": 0}' END::jsonb,
           'user', 2, CASE WHEN k.kind = 'episode' THEN 'talk' END, CASE WHEN k.kind = 'episode' THEN n END,
           now() - n * interval '1 minute'
      FROM generate_series(1, %(rows)s) n
     CROSS JOIN LATERAL (SELECT CASE WHEN n <= %(rows)s / 2 THEN 'fact' ELSE 'episode' END AS kind) k
     CROSS JOIN LATERAL (SELECT CASE WHEN n %% 100 = 2 THEN 'zebra' ELSE 'horse' END AS animal) a
     CROSS JOIN LATERAL (SELECT format('note %%s of a %%s', n, animal) AS text) t
"""


@pytest.fixture(scope="module")
def stack_full(servers: Servers, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with redis.Redis.from_url(servers.redis.url(97)) as client:
        client.flushdb()
    for stack in stack_of(servers, template, "memory_plans", 97, tmp_path_factory.mktemp("memory_plans")):
        with opened(stack) as database:
            model = VectorMemory(EMBEDDER, ANN, database=database)._needed()
        with stack.connect() as connection:
            connection.execute("SELECT setseed(0.5)")
            connection.execute(FILL.encode(), {"model": model.id, "dims": DIMS, "rows": ROWS})
            connection.execute("ANALYZE memory")
        yield stack


@pytest.fixture
def database(stack_full: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryDatabase]:
    monkeypatch.setattr(ranking, "EXACT_ROWS", 400)
    with opened(stack_full) as found:
        yield found


def explained(
    database: MemoryDatabase, name: str, asked: dict[str, Any], statement: Numbered | None = None
) -> list[dict[str, Any]]:
    """The nodes of a statement's plan, as the memory's own connection makes it."""
    if statement is None:
        statement = sql(DIMS, tuple(each for each in CONDITIONS if asked.get(each) is not None))[name]
    explain = statement._replace(text=b"EXPLAIN (FORMAT JSON) " + statement.text)
    [[plan]] = (
        database.ask_alone(explain, asked) if name in ALONE else database.ask(ANN.tenant, explain, asked)
    )
    return list(nodes(plan[0]["Plan"]))


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for below in node.get("Plans", ()):
        yield from nodes(below)


def asked_of(
    memory: VectorMemory | EpisodicMemory, query: str, filters: Filters | None = None
) -> dict[str, Any]:
    text, reach, _ = memory._asked(query, 10, filters, None)
    assert reach is not None
    more = {
        "vector": memory._vectors([text])[0],
        "depth": 50,
        "limit": 10,
        "text": text,
        "actors": [],
        "most": 401,
    }
    return {**reach, **ranking.CONSTANTS, **more}


@pytest.mark.parametrize("name", ["nearest_index", "search_index", "near_index"])
def test_a_large_scope_is_searched_by_its_index(database: MemoryDatabase, name: str) -> None:
    """HNSW under row-level security, in the order of the index: nothing sorts the scope by distance."""
    memory = EpisodicMemory(EMBEDDER, ANN, database=database)
    found = explained(database, name, {**asked_of(memory, "zebra"), **(FACT if name == "near_index" else {})})
    scans = [node for node in found if node.get("Index Name", "").endswith("_hnsw")]
    assert len(scans) == 1
    assert "<#>" in scans[0]["Order By"]
    assert "tenant" in scans[0]["Filter"]
    assert "Result" in {node["Node Type"] for node in found} or "current_setting" in str(
        found
    )  # row-level security


@pytest.mark.parametrize("name", ["nearest_exact", "search_exact", "near_exact"])
def test_a_small_scope_is_read_by_its_tree(database: MemoryDatabase, name: str) -> None:
    """All of its rows and no others; and never in the order of the HNSW index, which might miss some."""
    for agent in ("ann", "nobody"):
        memory = VectorMemory(EMBEDDER, Scope("acme", agent), database=database)
        found = explained(database, name, {**asked_of(memory, "zebra"), **FACT})
        assert not [node for node in found if node.get("Index Name", "").endswith("_hnsw")]
    reads = [
        node for node in found if node.get("Relation Name") == "memory_1" and "Scan" in node["Node Type"]
    ]
    assert reads
    assert all("Index Cond" in node or "Recheck Cond" in node for node in reads)


def scans(stack: Stack, kind: str) -> int:
    [[count]] = stack.rows(
        "SELECT coalesce(sum(idx_scan), 0)::int FROM pg_stat_user_indexes WHERE relname ~ '^memory_[0-9]+$' "
        "AND indexrelname LIKE %s",
        f"%{kind}%",
    )
    return int(count)


def test_words_and_conditions_of_a_large_scope_are_looked_up(
    database: MemoryDatabase, stack_full: Stack
) -> None:
    """Row-level security keeps `@@` and `@>` from an index; inside the owner's functions they use theirs."""
    memory = EpisodicMemory(EMBEDDER, ANN, database=database)
    memory.search("warm up: words are counted")
    for filters, index in ((None, "tsv"), (Filters(metadata={"rare": 1}), "metadata")):
        before = scans(stack_full, index)
        memory.search("zebra", filters=filters)
        with database.connection() as connection:
            connection.execute("SELECT pg_stat_force_next_flush()")
        database.close()  # its connections report what they have counted
        from_then = [scans(stack_full, index) for _ in range(1)]
        assert from_then[0] > before


@pytest.mark.parametrize("kind", [VectorMemory, EpisodicMemory])
@pytest.mark.parametrize(
    ("filters", "asked"),
    [
        (Filters(metadata={"rare": 1}), [401, None]),
        (Filters(metadata={"rare": 0}), [401]),
    ],
    ids=["few", "many"],
)
def test_what_conditions_leave_is_counted_once_in_a_while(
    database: MemoryDatabase,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Any],
    filters: Filters,
    asked: list[int | None],
) -> None:
    """Few rows are all looked at, the next time without a bound; more than those only until that is known."""
    monkeypatch.setattr(ranking, "NEAR_ROWS", 100)
    memory = kind(EMBEDDER, ANN, database=database)
    bounds: list[int | None] = []
    ask = memory._ask

    def noting(name: str, arguments: dict[str, Any]) -> Any:
        if name in ("nearest_among", "search_among"):
            bounds.append(arguments["most"])
        return ask(name, arguments)

    monkeypatch.setattr(memory, "_ask", noting)
    for _ in range(2):
        hits = memory.search("zebra", filters=filters)
        assert len(hits) == 10
        assert all(hit.metadata == filters.metadata for hit in hits)
    assert bounds == asked


@pytest.mark.parametrize("kind", [VectorMemory, EpisodicMemory])
@pytest.mark.parametrize(
    "filters",
    [
        None,
        Filters(metadata={"rare": 1}),
        Filters(metadata={"rare": 0}),
        Filters(min_trust=1),
        Filters(min_trust=3),
    ],
    ids=["none", "rare", "common", "all", "nothing"],
)
def test_there_are_limit_rows_wherever_there_are_as_many(
    database: MemoryDatabase, stack_full: Stack, kind: type[Any], filters: Filters | None
) -> None:
    """And all of them fulfil what was asked, in the scope that was asked."""
    memory = kind(EMBEDDER, ANN, database=database, include_shared=True)
    condition = {None: "true", 1: "trust >= 1", 3: "trust >= 3"}.get(filters and filters.min_trust, "true")
    if filters is not None and filters.metadata is not None:
        condition = f"metadata @> '{{\"rare\": {filters.metadata['rare']}}}'"
    [[there]] = stack_full.rows(
        f"SELECT count(*) FROM memory WHERE tenant = 'acme' AND kind = %s AND {condition}", memory.kinds[0]
    )
    for query, limit in (("zebra", 1), ("zebra", 100), ("horse", 10), ("note 44", 10)):
        hits = memory.search(query, limit, filters)
        assert len(hits) == min(limit, there)
        assert len({hit.entry.id for hit in hits}) == len(hits)
        if filters is not None and filters.metadata is not None:
            assert all(hit.metadata == filters.metadata for hit in hits)


def test_an_index_finds_what_an_exact_search_finds(
    database: MemoryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine and a half of ten, of vectors without any order; with a condition that leaves few rows, all."""
    memory = VectorMemory(EMBEDDER, ANN, database=database)
    rng = np.random.default_rng(3)
    queries = [" ".join(f"w{n}" for n in rng.integers(1000, size=6)) for _ in range(20)]
    for filters, wanted in ((None, 0.95), (Filters(metadata={"rare": 1}), 1.0)):
        quick = [[hit.entry.id for hit in memory.search(query, 10, filters)] for query in queries]
        with monkeypatch.context() as patch:
            patch.setattr(ranking, "EXACT_ROWS", 10**6)
            exact = [
                [
                    hit.entry.id
                    for hit in VectorMemory(EMBEDDER, ANN, database=database).search(query, 10, filters)
                ]
                for query in queries
            ]
        shared = [len(set(one) & set(two)) / len(two) for one, two in zip(quick, exact, strict=True)]
        assert sum(shared) / len(shared) >= wanted


def test_a_word_is_found_in_a_large_scope(database: MemoryDatabase) -> None:
    """The rarest words choose the candidates, whatever the vectors say."""
    memory = EpisodicMemory(EMBEDDER, ANN, database=database)
    assert [hit for hit in memory.search("zebra", 5) if "zebra" in hit.text]
    numbers = [n for n in range(ROWS // 2 + 1, ROWS) if n % 2 == 0 and n % 3 != 0]
    for n in numbers[:5]:
        assert memory.search(f"{n}", 1)[0].text.startswith(f"note {n} ")


def test_a_search_of_many_tenants_sees_one(database: MemoryDatabase) -> None:
    """They stand in one index; the other half of its rows is never given."""
    memory = VectorMemory(EMBEDDER, ANN, database=database)
    other = VectorMemory(EMBEDDER, Scope("umbrella", "ann"), database=database)
    ours, theirs = ({hit.key for hit in each.search("horse", 300)} for each in (memory, other))
    assert len(ours) == len(theirs) == 300
    assert not ours & theirs


def test_what_distilling_reads_is_found_along_the_index_of_episodes(database: MemoryDatabase) -> None:
    """From where it is on, and never by a walk through all that was read before."""
    last = numbered(b"SELECT id, model FROM memory WHERE kind = 'episode' ORDER BY seq DESC LIMIT 1")
    [[id_, number]] = database.ask(ANN.tenant, last, {})
    given = {
        "model": number,
        "tenant": ANN.tenant,
        "agent": ANN.agent,
        "episode": "talk",
        "began": "infinity",
    }
    given |= {"first": 2_900, "after": 2_500, "last": None, "most": 200}
    given |= {"ids": [id_], "trust": 2, "prefix": "distilled/"}
    blocks = statements("distilling.sql", dims=b"%d" % DIMS)
    for name in ("next", "turns", "before"):
        plan = explained(database, name, given, blocks[name])
        scans = [node for node in plan if node.get("Index Name", "").startswith("memory_1_")]
        assert len(scans) == 1, (name, plan)
        assert "tenant_agent_episode_seq" in scans[0]["Index Name"], (name, scans)
        assert "seq" in scans[0]["Index Cond"], (name, scans)
        assert not any("Sort" in node["Node Type"] for node in plan), name
    near = explained(database, "names_index", given, blocks["names_index"])
    assert any("hnsw" in node.get("Index Name", "") for node in near)
