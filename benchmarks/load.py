"""The engine under load: `python benchmarks/load.py runs large waiting steady` (one of them, or several).

    runs      10,000 runs of 10 steps that are all open at once
    large     one run of 100,000 steps
    waiting   10,000 steps that wait for approval: what they cost the tick, and that they hold no worker
    steady    half of what the engine can do, for 30 minutes, while a reader holds an old snapshot open, so that
              Postgres can remove no dead row: is it as quick at the end as at the start, and how large do tables get?

One JSON line each on stdout; progress on stderr. `--size 0.1` takes a tenth of the runs and steps, `--minutes 5` a
shorter steady load. The law: everything is counted in the journal, nothing is taken from what the engine says of
itself; the load of the machine before and after stands in each line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import shapes
import stack
from actions import noop
from rich.console import Console
from sides import Durable
from stack import Group

from trellis.tasks.app import sender
from trellis.tasks.errors import TrellisError
from trellis.tasks.logs import configure
from trellis.workflows import Client, Run, Workflow, recovery
from trellis.workflows.engine import Engine

PROCESSES = 2
PATIENCE = 3600.0  # seconds for one part
PROBE = 30.0  # seconds in which the full load is found out
BACKLOG = 100  # runs
TABLES = ("run", "step", "event")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Bench:
    """A stack with one worker, and what the command line asked for."""

    side: Durable
    size: float
    minutes: float
    say: Say

    @property
    def group(self) -> Group:
        """The worker."""
        return self.side.group

    @property
    def client(self) -> Client:
        """The client."""
        return self.side.client

    def count(self, whole: int) -> int:
        """So much of the whole as was asked for."""
        return max(1, round(whole * self.size))

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """Ask the journal."""
        with psycopg.connect(self.group.settings.need_database(), autocommit=True) as connection:
            return connection.execute(statement.encode()).fetchall()

    def open_runs(self) -> int:
        """How many runs are not over."""
        return int(self.rows("SELECT count(*) FROM run WHERE state IN ('pending', 'running')")[0][0])

    def drained(self) -> None:
        """Wait until every run is over."""
        deadline = time.monotonic() + PATIENCE
        while self.open_runs():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.open_runs()} runs are still open after {PATIENCE:g} s")
            time.sleep(0.1)


def ten_steps() -> Workflow:
    """One step, eight side by side, one behind them."""
    workflow = Workflow("ten", register=False)
    workflow.step("first", noop)
    for at in range(8):
        workflow.step(f"s{at}", noop, after=["first"])
    workflow.step("last", noop, after=[f"s{at}" for at in range(8)])
    workflow.validate()
    return workflow


def runs(bench: Bench) -> dict[str, Any]:
    """Accept all runs while nobody works, then let the worker go."""
    count, workflow = bench.count(10_000), ten_steps()
    with bench.group.frozen():
        began = time.perf_counter()
        for at in range(count):
            bench.client.start(workflow)
            if at % 1000 == 999:
                bench.say(f"runs: {at + 1:,} accepted")
        accepted = time.perf_counter() - began
    began = time.perf_counter()
    with bench.group.awake():
        bench.drained()
    seconds = time.perf_counter() - began
    states = dict(bench.rows("SELECT state, count(*) FROM run WHERE workflow = 'ten' GROUP BY state"))
    return {
        "runs": count,
        "states": states,
        "starts_per_s": round(count / accepted, 1),
        "steps_per_s": round(10 * count / seconds, 1),
    }


def large(bench: Bench) -> dict[str, Any]:
    """Layers of 99 steps with one behind them."""
    layers = bench.count(1000)
    workflow = shapes.ladder(layers, 99)
    with bench.group.awake():
        began = time.perf_counter()
        run = bench.client.start(workflow)
        accepted = time.perf_counter() - began
        bench.side.finish(run, PATIENCE)
        seconds = time.perf_counter() - began
    return {
        "steps": run.steps,
        "accepted_s": round(accepted, 3),
        "seconds": round(seconds, 2),
        "steps_per_s": round(run.steps / seconds, 1),
    }


def waiting(bench: Bench) -> dict[str, Any]:
    """Ticks without anything, and with steps that wait; a run of another kind before and among them."""
    count = bench.count(10_000)
    workflow = Workflow("asks", register=False)
    workflow.approve("ask", "May it?", who=["ann"])
    other = shapes.independent(1000)
    engine = Engine(bench.group.settings, sender(bench.group.settings.need_broker()))
    before = _ticks(engine)
    with bench.group.awake():
        quiet = statistics.median(bench.side.run(other) for _ in range(3))
        for at in range(count):
            bench.client.start(workflow)
            if at % 1000 == 999:
                bench.say(f"waiting: {at + 1:,} accepted")
        deadline = time.monotonic() + PATIENCE
        while (parked := _steps(bench, "parked")) < count and time.monotonic() < deadline:
            time.sleep(0.5)
        among = statistics.median(bench.side.run(other) for _ in range(3))
        held = _steps(bench, "running")
    after = _ticks(engine)
    engine.database.close()
    return {
        "waiting": parked,
        "running_steps": held,
        "tick_ms_without": before,
        "tick_ms_with": after,
        "steps_per_s_without": round(1000 / quiet, 1),
        "steps_per_s_with": round(1000 / among, 1),
    }


def _steps(bench: Bench, state: str) -> int:
    return int(bench.rows(f"SELECT count(*) FROM step WHERE state = '{state}'")[0][0])


def _ticks(engine: Engine) -> float:
    """Milliseconds of a tick, at the median of 30."""
    taken = []
    for _ in range(30):
        began = time.perf_counter()
        recovery.tick(engine)
        taken.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(taken), 2)


def steady(bench: Bench) -> dict[str, Any]:
    """Half load with an old snapshot open."""
    workflow, minutes = ten_steps(), []
    with bench.group.awake(), _old_snapshot(bench):
        full = _capacity(bench, workflow)
        rate = full / 2
        bench.say(f"steady: {full:,.0f} steps/s at full load, so {rate:,.0f} for {bench.minutes:g} minutes")
        began = time.monotonic()
        while (past := time.monotonic() - began) < 60 * bench.minutes:
            minutes.append(_period(bench, workflow, rate / 10, min(60.0, 60 * bench.minutes - past)))
            bench.say(f"steady: {json.dumps(minutes[-1])}")
        bench.drained()
        last = _capacity(bench, workflow)
        tables = _tables(bench)
    return {
        "minutes": bench.minutes,
        "offered_steps_per_s": round(rate, 1),
        "first": minutes[0],
        "last": minutes[-1],
        "end_over_start": round(minutes[-1]["steps_per_s"] / minutes[0]["steps_per_s"], 3),
        "full_load_start": round(full, 1),
        "full_load_end": round(last, 1),
        "full_load_end_over_start": round(last / full, 3),
        "tables": tables,
    }


def _capacity(bench: Bench, workflow: Workflow) -> float:
    """Steps a second where there is always more to do: runs are started, for a while, as quickly as they end."""
    before, began = _finished(bench), time.monotonic()
    while time.monotonic() - began < PROBE:
        if bench.open_runs() < BACKLOG:
            for _ in range(BACKLOG):
                bench.client.start(workflow)
        else:
            time.sleep(0.005)
    taken = time.monotonic() - began
    steps = 10 * (_finished(bench) - before)
    bench.drained()
    return steps / taken


def _period(bench: Bench, workflow: Workflow, rate: float, seconds: float) -> dict[str, Any]:
    """Start runs at a rate, and count what ends meanwhile; the last of them is waited for."""
    before = _finished(bench)
    began, started = time.monotonic(), 0
    last: Run | None = None
    while (now := time.monotonic() - began) < seconds:
        while started < now * rate:
            last = bench.client.start(workflow)
            started += 1
        time.sleep(0.005)
    done = _finished(bench) - before
    taken = time.monotonic() - began
    waited = time.monotonic()
    if last is not None:
        bench.client.wait(last, PATIENCE)
    return {
        "steps_per_s": round(10 * done / taken, 1),
        "behind": started - done,  # runs
        "last_run_s": round(time.monotonic() - waited, 3),
        "bytes_per_step": round(_size(bench, "step") / (10 * _finished(bench))),
    }


def _finished(bench: Bench) -> int:
    return int(bench.rows("SELECT count(*) FROM run WHERE state = 'succeeded'")[0][0])


@contextmanager
def _old_snapshot(bench: Bench) -> Iterator[None]:
    """A reader that sees the journal as it is now for as long as the block lasts."""
    with psycopg.connect(bench.group.settings.need_database()) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("SELECT count(*) FROM run")
        yield


def _size(bench: Bench, table: str) -> int:
    return int(bench.rows(f"SELECT pg_total_relation_size('{table}')")[0][0])


def _tables(bench: Bench) -> dict[str, dict[str, float]]:
    found = {}
    for table in TABLES:
        live, dead, size = bench.rows(
            "SELECT n_live_tup, n_dead_tup, pg_total_relation_size(relid) FROM pg_stat_user_tables "
            f"WHERE relname = '{table}'"
        )[0]
        found[table] = {"live": live, "dead": dead, "mb": round(size / 2**20, 1)}
    return found


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "runs": runs,
    "large": large,
    "waiting": waiting,
    "steady": steady,
}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Put the engine under load; one JSON line each.")
    parser.add_argument("parts", nargs="+", choices=PARTS, help="what to run")
    parser.add_argument("--size", type=float, default=1.0, help="of the runs and steps (1)")
    parser.add_argument("--minutes", type=float, default=30.0, help="of steady load (30)")
    given = parser.parse_args()
    stack.leave_on_sigterm()
    progress = Console(stderr=True, highlight=False)
    try:
        for part in given.parts:
            load = os.getloadavg()[0]
            with ExitStack() as held:
                servers, home = held.enter_context(stack.servers())
                settings = stack.settings_of(
                    home / part, stack.new_database(servers, part), servers.redis.url(1)
                )
                configure(settings)
                group = held.enter_context(Group(part, settings, concurrency=PROCESSES).running())
                side = Durable(group)
                held.callback(lambda side=side: side.close())
                with group.awake():
                    side.warm(PROCESSES)
                found = PARTS[part](Bench(side, given.size, given.minutes, progress.print))
            found["load"] = [round(load, 2), round(os.getloadavg()[0], 2)]
            print(json.dumps({part: found}), flush=True)
    except (TrellisError, RuntimeError) as error:
        print(f"load.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
