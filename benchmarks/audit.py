"""What the audit log costs, and how quickly it verifies: `python benchmarks/audit.py --rows 1000000 --json`.

    starts    runs of one step that are accepted a second, with the log's triggers and without them, in turns
    trigger   microseconds that Postgres says the trigger takes for each new run, at the least of the repeats
    steps     independent steps of one run a second, with them and without (no trigger looks at steps)
    write     rows a second that `record` writes, a thousand in one transaction; and plain INSERTs of the same columns
              into a table with neither index nor trigger
    seal      rows a second that are sealed
    verify    rows a second that are verified, in a process of its own, and how much memory that took at its peak, of so
              many rows and of a tenth of them: the growth is what "in bounded memory" is about

The law: sides take turns and figures are medians; rows are counted in the tables. Progress on stderr; with `--json` one
JSON object on stdout, else a line each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import actions
import psycopg
import shapes
import stack
from rich.console import Console

from trellis.memory.actions import AuditAction
from trellis.memory.audit import AuditLog, Entry, record
from trellis.tasks.database import Database
from trellis.tasks.errors import TrellisError
from trellis.tasks.settings import PREFIX, Settings, load
from trellis.workflows import Client, Workflow
from trellis.workflows.engine import Engine

KEYS = "bench:0123456789abcdef0123456789abcdef"
STARTS = 100  # runs of one repeat
STEPS = 3000
REPEATS = 15
BATCH = 1000
AUDITED = ("run", "definition", "signal", "event", "pause", "retention", "schedule")
Say = Callable[[str], None]


class Bench:
    """A migrated database, and what the command line asked for."""

    def __init__(self, settings: Settings, rows: int, say: Say) -> None:
        self.settings = settings
        self.rows = rows
        self.say = say
        self.database = Database(settings.need_database(), settings)

    def ask(self, statement: str) -> list[tuple[Any, ...]]:
        """Ask the database."""
        with psycopg.connect(self.settings.need_database(), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def audited(self, wanted: bool) -> Iterator[None]:
        """With the triggers of the log, or without."""
        names = [
            (table, name)
            for table, name in self.ask(
                "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE tgname LIKE 'audit%' AND NOT tgisinternal"
            )
            if table in AUDITED
        ]
        for table, name in names if not wanted else ():
            self.ask(f"ALTER TABLE {table} DISABLE TRIGGER {name}")
        try:
            yield
        finally:
            for table, name in names if not wanted else ():
                self.ask(f"ALTER TABLE {table} ENABLE TRIGGER {name}")


def _in_turns(bench: Bench, what: str, once: Callable[[], float]) -> dict[str, float]:
    """Something a second with the log and without, at the median of the repeats, which take turns.

    The ratio is the median of those of neighbours, which whatever else the machine does slows down alike.
    """
    found: dict[bool, list[float]] = {True: [], False: []}
    once()
    for _ in range(REPEATS):
        for wanted in (True, False):
            with bench.audited(wanted):
                found[wanted].append(once())
    audited, plain = (statistics.median(found[wanted]) for wanted in (True, False))
    ratio = statistics.median(each / other for each, other in zip(found[True], found[False], strict=True))
    bench.say(f"{what}: {audited:,.0f}/s with the log, {plain:,.0f}/s without")
    return {"with": round(audited, 1), "without": round(plain, 1), "ratio": round(ratio, 3)}


def starts(bench: Bench) -> dict[str, float]:
    """Accept runs, one after the other, as clients do."""
    workflow = Workflow("one", register=False)
    workflow.step("only", actions.noop)
    with Client(bench.settings) as client:
        client.start(workflow)

        def once() -> float:
            began = time.perf_counter()
            for _ in range(STARTS):
                client.start(workflow)
            return STARTS / (time.perf_counter() - began)

        return _in_turns(bench, "starts", once)


def trigger(bench: Bench) -> dict[str, float]:
    """A thousand rows of runs, as one statement that is rolled back."""
    with psycopg.connect(bench.settings.need_database()) as connection:
        found = []
        for _ in range(REPEATS):
            row = connection.execute(
                "EXPLAIN (ANALYZE, FORMAT JSON) INSERT INTO run (id, workflow, definition, correlation_id, state, "
                "params, steps, missing) SELECT gen_random_uuid(), 'one', (SELECT digest FROM definition LIMIT 1), "
                "'c', 'pending', '{}', 1, 1 FROM generate_series(1, 1000)"
            ).fetchone()
            connection.rollback()
            assert row is not None
            [mine] = [each for each in row[0][0]["Triggers"] if each["Trigger Name"] == "audit_started"]
            found.append(1000.0 * mine["Time"] / mine["Calls"])
    micros = round(min(found), 1)
    bench.say(f"trigger: {micros} µs a run")
    return {"us_per_run": micros}


def steps(bench: Bench) -> dict[str, float]:
    """One run of independent steps, by an engine in this process."""
    engine, workflow = Engine(bench.settings), shapes.independent(STEPS)
    with Client(bench.settings, broker_url=None) as client:

        def once() -> float:
            run = client.start(workflow)
            began = time.perf_counter()
            for first in range(0, STEPS, 500):
                engine.run_bundle(actions.noop.name, run.id, list(range(first, first + 500)))
            return STEPS / (time.perf_counter() - began)

        found = _in_turns(bench, "steps", once)
    engine.database.close()
    return found


def write(bench: Bench) -> dict[str, float]:
    """Fill the log."""
    bench.ask(
        "CREATE TABLE plain (at timestamptz, actor text, action text, target text, run_id uuid, detail jsonb)"
    )
    detail = {"workflow": "bench", "definition": "0" * 64}

    def ours(first: int) -> None:
        with bench.database.transaction() as connection:
            record(
                connection,
                *(
                    Entry(AuditAction.RUN_STARTED, f"run:{n}", run_id=f"{n:032x}", detail=detail)
                    for n in range(first, first + BATCH)
                ),
            )

    def plainly(first: int) -> None:
        with bench.database.transaction() as connection:
            cursor = connection.cursor()
            for n in range(first, first + BATCH):
                cursor.execute(
                    "INSERT INTO plain VALUES (clock_timestamp(), %s, %s, %s, %s, %s::jsonb)",
                    ("bench", "run.started", f"run:{n}", f"{n:032x}", json.dumps(detail)),
                )

    taken: dict[str, list[float]] = {"audit": [], "plain": []}
    for at in range(10):
        for name, each in (("audit", ours), ("plain", plainly)):
            began = time.perf_counter()
            each(at * BATCH)
            taken[name].append(BATCH / (time.perf_counter() - began))
    audit, plain = statistics.median(taken["audit"]), statistics.median(taken["plain"])
    bench.say(f"write: {audit:,.0f} rows/s, {plain:,.0f} into a plain table")
    return {"audit": round(audit, 1), "plain": round(plain, 1), "ratio": round(audit / plain, 3)}


def seal(bench: Bench) -> dict[str, float]:
    """Fill the log up to its size, by the database itself, and seal it; at a tenth of it, verify once."""
    log = AuditLog(bench.database, bench.settings.sealing_keys())
    found: dict[str, Any] = {}
    for part in (bench.rows // 10, bench.rows):
        [(there,)] = bench.ask("SELECT count(*) FROM audit_log")
        for first in range(there, part, 10_000):
            more = min(10_000, part - first)
            bench.ask(
                "INSERT INTO audit_log (actor, action, target, outcome, run_id, detail) SELECT 'bench', 'run.started', "
                "'run:' || n, 'done', md5(n::text)::uuid, jsonb_build_object('workflow', 'bench', 'definition', "
                f"repeat('0', 64)) FROM generate_series({first}, {first + more - 1}) n"
            )
        began = time.perf_counter()
        rows = log.seal(batches=10_000_000)
        found["rows_per_s"] = round(rows / (time.perf_counter() - began), 1)
        name = "verify" if part == bench.rows else "verify_tenth"
        found[name] = verified(bench)
        bench.say(f"seal: {found['rows_per_s']:,.0f} rows/s; {name}: {json.dumps(found[name])}")
    [(size,)] = bench.ask(
        "SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits WHERE inhparent = 'audit_log'::regclass"
    )
    [(seals,)] = bench.ask("SELECT pg_total_relation_size('audit_seal')")
    found["bytes_per_row"] = round(float(size) / bench.rows, 1)
    found["seal_bytes_per_row"] = round(float(seals) / bench.rows, 1)
    return found


def verified(bench: Bench) -> dict[str, Any]:
    """What a process of its own says."""
    environment = {
        **os.environ,
        f"{PREFIX}DATABASE_URL": bench.settings.need_database(),
        f"{PREFIX}AUDIT_KEYS": KEYS,
        f"{PREFIX}HOME": str(bench.settings.home),
    }
    command = [sys.executable, str(Path(__file__)), "--verify"]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def verify_here() -> dict[str, Any]:
    """Verify the whole log in this process. Peak: that of Linux, from before it began (VmHWM)."""
    settings = load()
    database = Database(settings.need_database(), settings)
    log = AuditLog(database, settings.sealing_keys())
    log.months()  # connections and code are there afterwards
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before, began = _peak(), time.perf_counter()
    found = log.verify()
    seconds = time.perf_counter() - began
    peak = _peak()
    database.close()
    return {
        "rows": found.rows,
        "sound": found.sound,
        "seconds": round(seconds, 2),
        "rows_per_s": round(found.rows / seconds, 1),
        "peak_mb": round(peak / 1024, 1),
        "more_than_before_mb": round((peak - before) / 1024, 1),
    }


def _peak() -> int:
    """Kilobytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "starts": starts,
    "trigger": trigger,
    "steps": steps,
    "write": write,
    "seal": seal,
}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure the audit log.")
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="what to measure; everything without")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the log that is verified (1,000,000)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--verify", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.verify:
        print(json.dumps(verify_here()))
        return 0
    stack.leave_on_sigterm()
    progress = Console(stderr=True, highlight=False)
    found: dict[str, Any] = {"rows": given.rows, "load_before": round(os.getloadavg()[0], 2)}
    try:
        with stack.servers() as (running, home):
            url = stack.new_database(running, "audit")
            settings = stack.settings_of(home, url, running.redis.url(0), audit_keys=KEYS)
            bench = Bench(settings, given.rows, progress.print)
            for name in given.parts or PARTS:
                found[name] = PARTS[name](bench)
            bench.database.close()
    except TrellisError as error:
        print(f"audit.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    found["load_after"] = round(os.getloadavg()[0], 2)
    if given.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<12} {json.dumps(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
