"""Load, index and search of many rows, side by side with plain SQL on the same plan.

The law: both sides have the same rows in the same server, and take turns at each query, so that whatever else the
machine does is done to both. The plain side is what one would write by hand: a table with an id, a text, metadata and
a `halfvec`, binary COPY, an HNSW and a GIN index, and one prepared SELECT. It keeps no tenants apart, expires nothing
and counts nothing.

The vectors are of no model, but like those of texts: a mixture of topics in a space of 32 dimensions, turned into 384.
A condition that leaves one row of a hundred is asked of `metadata`. Recall is counted against all rows, by numpy.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
NEAREST = (
    "SELECT id, key, value, text, metadata, -(embedding <#> %(vector)s) FROM plain "
    "WHERE tenant = %(tenant)s AND agent = %(agent)s "
    "ORDER BY embedding <#> %(vector)s LIMIT 10"
)
# The sum keeps the HNSW index out of it: the plan is the one of a condition that leaves few rows.
FILTERED = (
    "SELECT id, key, value, text, metadata, -(embedding <#> %(vector)s) FROM plain "
    "WHERE tenant = %(tenant)s AND agent = %(agent)s "
    "AND metadata @> %(metadata)s::jsonb ORDER BY (embedding <#> %(vector)s) + 0 LIMIT 10"
)
EXACT = NEAREST.replace("ORDER BY embedding <#> %(vector)s", "ORDER BY (embedding <#> %(vector)s) + 0")


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
    statement = FILTERED if filtered else EXACT if len(rows) <= EXACT_ROWS else NEAREST
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    recalls: list[float] = []
    plain_recalls: list[float] = []
    full = 0
    options = " ".join(f"-c {name}={value}" for name, value in {**HNSW, "jit": "off"}.items())
    with psycopg.connect(database.url, autocommit=True, options=options) as connection:
        info = halves.info(connection)
        assert info is not None
        halves.register(connection, info)
        for n, vector in enumerate(asked):
            group = n % GROUPS
            filters = Filters(metadata={"group": group}) if filtered else None
            given = {
                "vector": Half(vector),
                "tenant": SCOPE.tenant,
                "agent": SCOPE.agent,
                "metadata": Jsonb(rows.metadata(n)),
            }

            def ours(n: int = n, filters: Filters | None = filters) -> list[int]:
                return [int(hit.key) for hit in memory.search(f"query {n}", K, filters)]

            def plain(given: dict[str, Any] = given) -> list[int]:
                return [row[0].int for row in connection.execute(statement, given).fetchall()]

            found: dict[str, list[int]] = {}
            for name, side in (
                (("ours", ours), ("plain", plain)) if n % 2 else (("plain", plain), ("ours", ours))
            ):
                began = time.perf_counter()
                found[name] = side()
                if n >= WARM:
                    times[name].append((time.perf_counter() - began) * 1000)
            if n >= WARM:
                true = _exact(rows, vector, group if filtered else None)
                recalls.append(len(true & set(found["ours"])) / len(true))
                plain_recalls.append(len(true & set(found["plain"])) / len(true))
                full += len(set(found["ours"])) == len(true)
    memory.flush()
    return {
        **{f"{name}_ms": _percentiles(each) for name, each in times.items()},
        "overhead": _overhead(times),
        "recall_at_10": round(statistics.fmean(recalls), 4),
        "plain_recall_at_10": round(statistics.fmean(plain_recalls), 4),
        "full": round(full / len(recalls), 4),
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


def _overhead(times: dict[str, list[float]]) -> dict[str, float]:
    ours, plain = (_percentiles(times[name]) for name in ("ours", "plain"))
    return {name: round(ours[name] / plain[name], 3) for name in ours}
