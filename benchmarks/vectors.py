"""Load, index and search of many rows, side by side with plain SQL on the same plan.

The law: all sides have the same rows in the same server, and take turns at each query, so that whatever else the
machine does is done to all. There are two plain sides. `plain` is what one would write by hand on the same table: one
prepared SELECT of the same columns with the same conditions (tenant, agent, kind, validity, expiry), as the owner, whom
no policy holds back; it has the same plan, and the overhead is counted against it. `bare` is a table that knows
nothing of all that: an id, a text, metadata and a `halfvec`, filled by binary COPY, with an HNSW and a GIN index.

The vectors are of no model, but like those of texts: a mixture of topics in a space of 32 dimensions, turned into 384.
A condition that leaves one row of a hundred is asked of `metadata`; an agent asks again under the same conditions, so
twenty of them are asked in turn. Recall is counted against all rows, by numpy.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
from psycopg.types.json import Jsonb

from trellis.memory import Filters, Scope, VectorMemory, halves
from trellis.memory.connections import HNSW, MemoryDatabase
from trellis.memory.drafts import draft
from trellis.memory.halves import Half
from trellis.memory.loading import AT_ONCE, Loader, bulk
from trellis.memory.ranking import EXACT_ROWS
from trellis.memory.records import Record

DIMS = 384
HIDDEN = 32  # dimensions in which the vectors lie, but for a little noise
K = 10
GROUPS = 100  # the condition leaves one of them
ASKED = 20  # of them are asked for
CHUNK = 20_000
WARM = 20  # searches before those that are counted
MODEL = "benchmark"
SCOPE = Scope("benchmark", "ann")
GRAPH = "2GB"  # in which an index is built

Say = Callable[[str], None]

PLAIN = """
    CREATE TABLE plain (id uuid PRIMARY KEY, tenant text NOT NULL, agent text NOT NULL, key text NOT NULL,
                        value jsonb NOT NULL, text text NOT NULL, metadata jsonb NOT NULL, embedding halfvec(384) NOT
                        NULL);
    ALTER TABLE plain ALTER COLUMN embedding SET STORAGE MAIN
"""
# The sum keeps the HNSW index out of it: the plan is the one of a condition that leaves few rows.
BARE = """
    SELECT id, key, value, text, metadata, -(embedding <#> %(vector)s) FROM plain
     WHERE tenant = %(tenant)s AND agent = %(agent)s {condition}
     ORDER BY (embedding <#> %(vector)s) {exact} LIMIT 10
"""
PLAIN_SAME = """
    SELECT key, id, kind, agent, value, text, metadata, importance, source, trust, actor, episode, seq, at, valid_from,
           valid_to, expires_at, run_id, step, hash, -(embedding <#> %(vector)s)
      FROM memory
     WHERE model = %(model)s AND tenant = %(tenant)s AND agent = %(agent)s AND kind = 'fact' AND valid_to IS NULL
       AND (expires_at IS NULL OR expires_at > now()) {condition}
     ORDER BY {order} LIMIT 10
"""
CONDITION = "AND metadata @> %(metadata)s::jsonb"
INDEXED = "embedding::halfvec(384) <#> %(vector)s::halfvec(384)"


def by_hand(rows: int, filtered: bool) -> dict[str, str]:
    """The statements of the plain sides, which have the plan that ours has."""
    condition, exact = CONDITION if filtered else "", filtered or rows <= EXACT_ROWS
    return {
        "plain": PLAIN_SAME.format(
            condition=condition, order="embedding <#> %(vector)s" if exact else INDEXED
        ),
        "bare": BARE.format(condition=condition, exact="+ 0" if exact else ""),
    }


@dataclass(frozen=True, slots=True)
class Rows:
    """What both sides hold: row n has the id n, the group n mod 100 and the n-th vector."""

    vectors: np.ndarray[Any, np.dtype[np.float16]]

    def __len__(self) -> int:
        return len(self.vectors)

    def metadata(self, n: int) -> dict[str, int]:
        return {"group": n % GROUPS}

    def text(self, n: int) -> str:
        return f"note {n} on topic {n % 997} of shelf {n % 61}"


class Queries:
    """An embedder that knows the vectors of the queries beforehand: what is measured is the memory, not a model."""

    model = MODEL
    dims = DIMS

    def __init__(self, vectors: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        self._vectors = vectors

    def embed(self, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        return self._vectors[[int(text.removeprefix("query ")) for text in texts]]


def measure(count: int, queries: int, database: MemoryDatabase, say: Say) -> dict[str, Any]:
    """All of it, as one JSON object; times in seconds or milliseconds as their names say."""
    rng = np.random.default_rng(11)
    vectors, asked = made(count, queries + WARM, rng)
    rows = Rows(vectors)
    say(f"{count:,} vectors made")
    with psycopg.connect(database.url, autocommit=True) as connection:
        plain_load, plain_index = _plain(connection, rows)
        say(f"plain: {count / plain_load:,.0f} rows/s, index {plain_index:.1f} s")
        load, index = _ours(database, rows)
        say(f"ours: {count / load:,.0f} rows/s, index {index:.1f} s")
        connection.execute("VACUUM ANALYZE plain")
        connection.execute("VACUUM ANALYZE memory")
    found: dict[str, Any] = {
        "rows": count,
        "load": {
            "plain_rows_s": round(count / plain_load),
            "ours_rows_s": round(count / load),
            "plain_by_ours": round(load / plain_load, 2),
        },
        "index_s": {"plain": round(plain_index, 2), "ours": round(index, 2)},
        "queries": queries,
    }
    for name, filtered in (("no_filter", False), ("filter_1_percent", True)):
        found[name] = _searched(database, rows, asked, filtered)
        say(f"{name}: {found[name]}")
    return found


def made(count: int, queries: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Vectors of rows, and of queries that lie near some of them; of length 1."""
    turn = rng.standard_normal((HIDDEN, DIMS)).astype(np.float32)
    topics = rng.standard_normal((max(20, count // 500), HIDDEN)).astype(np.float32)

    def some(hidden: Any) -> Any:
        found = hidden @ turn + 0.3 * rng.standard_normal((len(hidden), DIMS), dtype=np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    rows = np.empty((count, DIMS), dtype=np.float16)
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        near = topics[rng.integers(len(topics), size=size)]
        rows[start : start + size] = some(near + 0.7 * rng.standard_normal((size, HIDDEN), dtype=np.float32))
    near = topics[rng.integers(len(topics), size=queries)]
    return rows, some(near + 0.7 * rng.standard_normal((queries, HIDDEN), dtype=np.float32))


def _plain(connection: psycopg.Connection[Any], rows: Rows) -> tuple[float, float]:
    info = halves.info(connection)
    assert info is not None
    halves.register(connection, info)
    connection.execute(PLAIN)
    began = time.perf_counter()
    with connection.cursor() as cursor, cursor.copy("COPY plain FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["uuid", "text", "text", "text", "jsonb", "text", "jsonb", "halfvec"])
        for n, vector in enumerate(rows.vectors):
            text = rows.text(n)
            copy.write_row(
                (
                    UUID(int=n),
                    SCOPE.tenant,
                    SCOPE.agent,
                    str(n),
                    Jsonb(text),
                    text,
                    Jsonb(rows.metadata(n)),
                    Half(vector),
                )
            )
    loaded = time.perf_counter()
    connection.execute(f"SET maintenance_work_mem = '{GRAPH}'")
    connection.execute(
        "CREATE INDEX ON plain USING hnsw (embedding halfvec_ip_ops) WITH (m = 16, ef_construction = 64)"
    )
    indexed = time.perf_counter()
    connection.execute("CREATE INDEX ON plain USING gin (metadata jsonb_path_ops)")
    return loaded - began, indexed - loaded


def _ours(database: MemoryDatabase, rows: Rows) -> tuple[float, float]:
    embedder = Queries(np.empty((0, DIMS), dtype=np.float32))
    model = VectorMemory(embedder, SCOPE, database=database)._needed()
    given = {"model": model.id}
    database.ask(SCOPE.tenant, bulk()["unindex"], given)
    loader = Loader(database, SCOPE, embedder, model)
    began = time.perf_counter()
    for batch in _batches(rows):
        loader.load(batch, lambda asker, outcomes: None)
    loaded = time.perf_counter()
    with database.writing(SCOPE.tenant) as asker:
        asker.connection.execute("SELECT set_config('maintenance_work_mem', %s, true)", (GRAPH,))
        asker(bulk()["index"], given)
    return loaded - began, time.perf_counter() - loaded


def _batches(rows: Rows) -> Iterator[list[tuple[int, Record]]]:
    for start in range(0, len(rows), AT_ONCE):
        batch = []
        for n in range(start, min(start + AT_ONCE, len(rows))):
            each = draft(str(n), rows.text(n), 100_000, None, {"metadata": rows.metadata(n)})
            vector = rows.vectors[n].astype(np.float32)
            batch.append((n, Record(each, "fact", None, None, None, None, None, None, vector)))
        yield batch


def _searched(database: MemoryDatabase, rows: Rows, asked: Any, filtered: bool) -> dict[str, Any]:
    memory = VectorMemory(Queries(asked), SCOPE, database=database)
    model = memory._needed().id
    times: dict[str, list[float]] = {"ours": [], "plain": [], "bare": []}
    recalls: dict[str, list[float]] = {name: [] for name in times}
    full = 0
    # Beforehand: it reads all vectors, and would leave nobody's rows in the processor's caches.
    truth = [_exact(rows, vector, n % ASKED if filtered else None) for n, vector in enumerate(asked)]
    options = " ".join(f"-c {name}={value}" for name, value in {**HNSW, "jit": "off"}.items())
    with psycopg.connect(database.url, autocommit=True, options=options) as connection:
        info = halves.info(connection)
        assert info is not None
        halves.register(connection, info)
        hand = by_hand(len(rows), filtered)
        for n, vector in enumerate(asked):
            group = n % ASKED if filtered else None
            filters = None if group is None else Filters(metadata={"group": group})
            given = {
                "vector": Half(vector),
                "model": model,
                "tenant": SCOPE.tenant,
                "agent": SCOPE.agent,
                "metadata": Jsonb({"group": group}),
            }

            def ours(n: int = n, filters: Filters | None = filters) -> list[int]:
                return [int(hit.key) for hit in memory.search(f"query {n}", K, filters)]

            def plain(given: dict[str, Any] = given) -> list[int]:
                return [int(row[0]) for row in connection.execute(hand["plain"], given).fetchall()]

            def bare(given: dict[str, Any] = given) -> list[int]:
                return [row[0].int for row in connection.execute(hand["bare"], given).fetchall()]

            found: dict[str, list[int]] = {}
            # Who comes after a side with the same rows finds them in the caches: each order comes as often as any.
            for side in list(permutations((ours, plain, bare)))[n % 6]:
                began = time.perf_counter()
                found[side.__name__] = side()
                if n >= WARM:
                    times[side.__name__].append((time.perf_counter() - began) * 1000)
            if n >= WARM:
                true = truth[n]
                for name, each in found.items():
                    recalls[name].append(len(true & set(each)) / len(true))
                full += len(set(found["ours"])) == len(true)
    memory.flush()
    return {
        **{f"{name}_ms": _percentiles(each) for name, each in times.items()},
        "overhead": _overhead(times, "plain"),
        "overhead_to_bare": _overhead(times, "bare"),
        "recall_at_10": round(statistics.fmean(recalls["ours"]), 4),
        "plain_recall_at_10": round(statistics.fmean(recalls["plain"]), 4),
        "full": round(full / len(recalls["ours"]), 4),
    }


def _exact(rows: Rows, vector: Any, group: int | None) -> set[int]:
    """The ten nearest of all rows, or of a group's."""
    step = 1 if group is None else GROUPS
    part = rows.vectors[group or 0 :: step]
    starts = range(0, len(part), CHUNK)
    scores = np.concatenate([part[at : at + CHUNK].astype(np.float32) @ vector for at in starts])
    best = np.argpartition(-scores, min(K, len(scores)) - 1)[:K]
    return {int(n) * step + (group or 0) for n in best}


def _percentiles(times: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(times, n=20, method="inclusive")
    return {"p50": round(statistics.median(times), 3), "p95": round(cuts[-1], 3)}


def _overhead(times: dict[str, list[float]], side: str) -> dict[str, float]:
    ours, theirs = _percentiles(times["ours"]), _percentiles(times[side])
    return {name: round(ours[name] / theirs[name], 3) for name in ours}
