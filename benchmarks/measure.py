"""What is measured: one function a figure.

The law: the sides take turns, run by run, and a figure is the median of its repeats; a run that takes so long
that chance evens out inside it is not repeated as often. What is only counted (bytes, rows) is counted once, on
tables that were empty.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
import redis
from psycopg import sql
from shapes import Shape, chain, independent, ladder
from sides import Durable, Native, Side
from stack import Meter

Say = Callable[[str], None]
ENOUGH = 30.0  # seconds of one shape on one side after which it is not repeated


@dataclass(slots=True)
class Samples:
    """The runs of one shape on one side."""

    steps: int
    seconds: list[float] = field(default_factory=list)
    cpu: list[dict[str, float]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Steps a second, of the median run."""
        return self.steps / statistics.median(self.seconds)

    def cpu_ms_per_step(self) -> dict[str, float]:
        """Where the time of the median run went: CPU milliseconds a step, by part."""
        ranked = sorted(range(len(self.seconds)), key=self.seconds.__getitem__)
        spent = self.cpu[ranked[(len(ranked) - 1) // 2]]
        return {part: round(1000.0 * seconds / self.steps, 4) for part, seconds in spent.items()}


def compare(
    shapes: Sequence[Shape], sides: dict[str, Side], meters: dict[str, Meter], repeats: int, say: Say
) -> dict[str, dict[str, Samples]]:
    """Every shape on every side, in turns."""
    found = {shape.name: {side: Samples(shape.steps) for side in sides} for shape in shapes}
    for repeat in range(repeats):
        for shape in shapes:
            for name, side in sides.items():
                samples = found[shape.name][name]
                if sum(samples.seconds) >= ENOUGH:
                    continue
                with side.group.awake(), meters[name].measuring() as spent:
                    samples.seconds.append(side.run(shape.workflow))
                samples.cpu.append(spent)
                rate = shape.steps / samples.seconds[-1]
                say(f"{repeat + 1}/{repeats} {shape.name} {name}: {rate:,.0f} steps/s")
    return found


def three_steps(side: Side, count: int) -> dict[str, float]:
    """Milliseconds of a run of three steps in a row, one at a time."""
    workflow = chain(3)
    with side.group.awake():
        for _ in range(5):
            side.run(workflow)
        seconds = [side.run(workflow) for _ in range(count)]
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return {"p50": round(1000 * cuts[9], 2), "p95": round(1000 * cuts[18], 2)}


def scaling(side: Side, repeats: int, say: Say) -> dict[str, dict[str, float]]:
    """Steps a second at 5,000 and at 50,000 steps in one run, side by side and in layers of 99 + 1."""
    found = {}
    for name, build in (("independent", independent), ("ladder_100", lambda count: ladder(count // 100, 99))):
        pair = {count: Samples(count) for count in (5_000, 50_000)}
        workflows = {count: build(count) for count in pair}
        with settled(), side.group.awake():
            for _ in range(repeats):
                for count, samples in pair.items():
                    samples.seconds.append(side.run(workflows[count]))
        small, large = (samples.rate for samples in pair.values())
        say(f"scaling, {name}: {small:,.0f} steps/s at 5,000, {large:,.0f} at 50,000")
        found[name] = {"5000": round(small, 1), "50000": round(large, 1), "ratio": round(large / small, 3)}
    return found


def space(side: Durable, count: int) -> dict[str, Any]:
    """Submit a large run while nobody takes from the queue; count what it occupies, then let it finish."""
    began = time.perf_counter()
    workflow = independent(count)
    defined = time.perf_counter() - began
    with _database(side) as connection, settled():
        connection.execute("TRUNCATE step, event, run, definition CASCADE")
        size, rows = _occupied(connection)
        with side.group.frozen():
            before = queued_bytes(side.group.settings.need_broker())
            began = time.perf_counter()
            run = side.client.start(workflow)
            submitted = time.perf_counter() - began
            queued = queued_bytes(side.group.settings.need_broker()) - before
            written = _occupied(connection)
        with side.group.awake():
            side.finish(run)
        ended = _occupied(connection)
    return {
        "steps": count,
        "define_s": round(defined, 3),
        "submit_s": round(submitted, 3),
        "redis_bytes_per_step": round(queued / count, 2),
        "postgres_rows_per_step": round((ended[1] - rows) / count, 4),
        "postgres_bytes_per_step_submitted": round((written[0] - size) / count, 1),
        "postgres_bytes_per_step_finished": round((ended[0] - size) / count, 1),
    }


def queue_bytes(side: Durable | Native, count: int) -> float:
    """Bytes in Redis for each of `count` independent steps that wait."""
    workflow = independent(count)
    broker = side.group.settings.need_broker()
    with side.group.frozen():
        before = queued_bytes(broker)
        finish = side.send(workflow)
        queued = queued_bytes(broker) - before
    with side.group.awake():
        finish()
    return round(queued / count, 2)


def queued_bytes(url: str) -> int:
    """Bytes of all keys of a Redis database."""
    with redis.Redis.from_url(url) as client:
        return sum(client.memory_usage(key, samples=0) or 0 for key in client.scan_iter())


def idle_cpu(meter: Meter, seconds: float) -> float:
    """Percent of one processor that everything together uses while nothing runs."""
    with meter.measuring() as spent:
        time.sleep(seconds)
    return round(100.0 * sum(spent.values()) / seconds, 2)


class settled:  # noqa: N801 (used like a function)
    """What was built is no garbage: it is taken out of the collector's sight, which would walk through it."""

    def __enter__(self) -> None:
        gc.collect()
        gc.freeze()

    def __exit__(self, *_: object) -> None:
        gc.unfreeze()


def _database(side: Durable) -> psycopg.Connection[Any]:
    return psycopg.connect(side.group.settings.need_database(), autocommit=True)


def _occupied(connection: psycopg.Connection[Any]) -> tuple[int, int]:
    """Bytes (with indexes and TOAST) and rows of all tables."""
    return sum(size for size, _ in _tables(connection)), sum(rows for _, rows in _tables(connection))


def _tables(connection: psycopg.Connection[Any]) -> Iterator[tuple[int, int]]:
    names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    for (name,) in names:
        table = sql.Identifier(name)
        row = connection.execute(
            sql.SQL("SELECT pg_total_relation_size({}::regclass), (SELECT count(*) FROM {})").format(
                sql.Literal(name), table
            )
        ).fetchone()
        assert row is not None
        yield int(row[0]), int(row[1])
