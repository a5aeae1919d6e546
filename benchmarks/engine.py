"""The engine against Celery's own canvas: `python benchmarks/engine.py` (or `make bench`).

The law: both sides run in this one process's time, on the same Redis, with the same number of worker processes
(two, prefork), no-op actions, and the Celery configuration of Trellis on both. The one difference: the canvas's
worker has `task_track_started` off (Celery's default), which would cost it a write of a result for each
task and costs the engine nothing. The canvas has its results in Redis, as it must; the engine commits
to Postgres with synchronous_commit and fsync on.

    native       the canvas as everybody uses it, `apply_async().get()`; no beat, it needs none
    on           the engine as it is, with beat
    off          TRELLIS_BUNDLE_MS=0, with beat: one step a message, no run-ahead
    native_lean  the canvas on the same worker as `native`, but waited for in the cheapest way, which is not
                 the default: `get(propagate=False)`

The ratios are to `native`; those to `native_lean` stand beside them (`ratio_lean`).

All three workers stay up, since starting one takes longer than most runs; two of them idle while the third is
measured (stack.py says how, the results say what it costs). The sides take turns run by run.

Results: tables on stdout, and benchmarks/out/engine.json. The machine should be quiet otherwise; the
load before and after is part of the results.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dags
import measure
import report
import shapes
import stack
from rich.console import Console
from sides import TRANSPORT, Durable, Native, Side
from simulate import Task
from stack import Group, Meter, new_database, settings_of

from trellis.tasks import embedded
from trellis.tasks.errors import TrellisError
from trellis.tasks.logs import configure

PROCESSES = 2
SUBMIT = 100_000


@dataclass(frozen=True, slots=True)
class Bench:
    """Everything that runs."""

    servers: embedded.Servers
    home: Path
    native: Native
    on: Durable
    off: Durable
    lean: Native

    @property
    def sides(self) -> dict[str, Side]:
        """The sides of the comparison by name, in the order of their turns."""
        return {"native": self.native, "on": self.on, "off": self.off, "native_lean": self.lean}

    def meter(self, side: Side) -> Meter:
        """CPU time by part while this side is measured."""
        beat = side.group.beat
        return Meter(
            client=os.getpid(),
            worker=side.group.worker.pid,
            postgres=self.servers.postgres.pid,
            redis=self.servers.redis.pid,
            beat=None if beat is None else beat.pid,
        )

    def idle_meter(self) -> Meter:
        """CPU time of everything that is up while nothing is measured."""
        workers = {side.group.name: side.group.worker.pid for side in self.sides.values()}
        return Meter(postgres=self.servers.postgres.pid, redis=self.servers.redis.pid, **workers)


@contextmanager
def bench() -> Iterator[Bench]:
    """Servers, three groups and their clients, warm."""
    with ExitStack() as held:
        servers, home = held.enter_context(stack.servers())
        url, database = servers.redis.url, {name: new_database(servers, name) for name in ("on", "off")}
        canvas = settings_of(home / "native", database["on"], url(0), result_backend_url=url(3))
        bundled = settings_of(home / "on", database["on"], url(1))
        single = settings_of(home / "off", database["off"], url(2), bundle_ms=0.0)
        groups = [
            Group(
                "native",
                canvas,
                concurrency=PROCESSES,
                beat=False,
                celery=("task_track_started=0", f"broker_transport={TRANSPORT}"),
            ),
            Group("on", bundled, concurrency=PROCESSES),
            Group("off", single, concurrency=PROCESSES),
        ]
        for group in groups:
            held.enter_context(group.running())
        on, off = Durable(groups[1]), Durable(groups[2])
        held.callback(on.close)
        held.callback(off.close)
        made = Bench(servers, home, Native(groups[0]), on, off, Native(groups[0], propagate=False))
        for side in (made.native, on, off):
            with side.group.awake():
                side.warm(PROCESSES)
        yield made


def run(given: argparse.Namespace, every: list[shapes.Shape], say: measure.Say) -> dict[str, Any]:
    """All figures that were asked for; written as they come."""
    load = os.getloadavg()[0]
    repeats = 1 if given.quick else given.repeats
    compared = [shape for shape in every if not given.only or shape.name in given.only]
    graphs = {} if given.dags is None else dags.graphs_of(given.dags, dags.SECONDS, dags.SLOTS)
    say("starting servers and workers, warming them up")
    with bench() as made:
        configure(made.on.group.settings)
        meters = {name: made.meter(side) for name, side in made.sides.items()}
        results: dict[str, Any] = {"ratio": {}, "machine": report.machine(), "repeats": repeats}
        results["environment"] = _environment()
        results["idle_cpu_percent"] = measure.idle_cpu(made.idle_meter(), 5.0)
        with measure.settled():
            found = measure.compare(compared, made.sides, meters, repeats, say)
        results["ratio"] = report.ratios(found, "native")
        results |= {"ratio_lean": report.ratios(found, "native_lean"), "raw": report.raw(found)}
        report.write(results, given.out)
        if not given.only:
            results |= _others(made, 20 if given.quick else 100, repeats, say)
        results["load"] = [round(load, 2), round(os.getloadavg()[0], 2)]
        report.write(results, given.out)
        if graphs:
            results["dags"] = _dags(made, graphs, say)
            report.write(results, given.out)
    return results


def _others(made: Bench, samples: int, repeats: int, say: measure.Say) -> dict[str, Any]:
    """The figures of the engine alone."""
    found: dict[str, Any] = {}
    say(f"a run of three steps, {samples} times")
    found["three_step_ms"] = measure.three_steps(made.on, samples)
    found["three_step_native_ms"] = measure.three_steps(made.native, samples)
    found["scaling"] = measure.scaling(made.on, repeats, say)
    found["scaling_50000_over_5000"] = min(pair["ratio"] for pair in found["scaling"].values())
    say(f"submitting {SUBMIT:,} steps")
    found["space"] = measure.space(made.on, SUBMIT)
    found["submit_100000_s"] = found["space"]["submit_s"]
    found["redis_bytes_per_step"] = {
        "on": found["space"]["redis_bytes_per_step"],
        "off": measure.queue_bytes(made.off, 3000),
        "native": measure.queue_bytes(made.native, 3000),
    }
    return found


def _dags(made: Bench, graphs: dict[str, list[Task]], say: measure.Say) -> list[dict[str, Any]]:
    lines = []
    database, broker = new_database(made.servers, "dags"), made.servers.redis.url(4)
    for line in dags.measure(graphs, settings_of(made.home / "dags", database, broker), dags.SLOTS):
        say(f"{line['name']}: {line['makespan']:.2f} s, ideally {line['fifo']:.2f} s")
        lines.append(line)
    return lines


def _environment() -> dict[str, str]:
    """Settings of Trellis that were set for this run and bear on it; addresses are the benchmark's own."""
    return {
        k: v for k, v in sorted(os.environ.items()) if k.startswith("TRELLIS_") and not k.endswith("_URL")
    }


def main() -> int:
    """The command."""
    every = shapes.compared()
    names = [shape.name for shape in every]
    parser = argparse.ArgumentParser(description="Measure the engine against Celery's own canvas.")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each shape on each side (3)")
    parser.add_argument("--quick", action="store_true", help="one run of each, 20 instead of 100 samples")
    parser.add_argument("--only", nargs="+", choices=names, metavar="SHAPE", help=f"of {', '.join(names)}")
    parser.add_argument("--dags", type=Path, metavar="FOLDER", help="run recorded workflows as well")
    parser.add_argument("--out", type=Path, default=stack.OUT / "engine.json", help="where the JSON goes")
    given = parser.parse_args()
    stack.leave_on_sigterm()
    progress, began = Console(stderr=True, highlight=False), time.monotonic()

    def say(text: str) -> None:
        progress.print(f"[dim]{time.monotonic() - began:6.1f} s  {text}[/]")

    try:
        results = run(given, every, say)
    except (TrellisError, ValueError) as error:
        print(f"engine.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    report.show(results, every, Console(width=None if sys.stdout.isatty() else 120))
    print(f"written to {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
