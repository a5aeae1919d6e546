"""What a map costs in memory: `python benchmarks/maps.py`.

The law: a process of its own expands each map, and another one runs its items, so that the peak of one does not hide
that of the next. Peaks are those of Linux (VmHWM), from the moment at which the process was ready to begin; what a map
of 100,000 items needs more than one of 1,000 is the list itself, which TRELLIS_VALUE_MAX_BYTES limits.

Results: a line for each, and benchmarks/out/maps.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import actions
import stack
from stack import new_database, settings_of

from trellis.tasks.app import sender
from trellis.tasks.settings import PREFIX, Settings, load
from trellis.workflows import Client, Workflow
from trellis.workflows.dispatch import unpack
from trellis.workflows.engine import Engine

COUNTS = (1_000, 10_000, 100_000)
BUNDLE = 500


def main() -> None:
    """Measure all, and print and keep what came out."""
    stack.leave_on_sigterm()
    found = []
    with stack.servers() as (running, home):
        url = new_database(running, "maps")
        settings = settings_of(home, url, running.redis.url(0))
        for count in COUNTS:
            with Client(settings) as client:
                workflow = Workflow(f"map-{count}", params={"items": list[int]}, register=False)
                workflow.map("each", actions.noop, over=workflow.params.items, gather=False)
                run = client.start(workflow, {"items": list(range(count))}).id
            line = {
                "items": count,
                "expand": child(settings, "expand", run),
                "work": child(settings, "work", run),
            }
            print(json.dumps(line), flush=True)
            found.append(line)
    (stack.OUT / "maps.json").write_text(json.dumps(found, indent=2))


def child(settings: Settings, role: str, run: str) -> dict[str, float]:
    """What a process of its own says."""
    environment = {
        **os.environ,
        f"{PREFIX}DATABASE_URL": settings.need_database(),
        f"{PREFIX}BROKER_URL": settings.need_broker(),
        f"{PREFIX}HOME": str(settings.home),
        f"{PREFIX}DEFAULT_QUEUE": settings.default_queue,
        f"{PREFIX}LOG_LEVEL": "warning",
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), role, run], env=environment, check=True, stdout=subprocess.PIPE
    )
    said: dict[str, float] = json.loads(done.stdout)
    return said


def measured(role: str, run: str) -> dict[str, float]:
    """Expand a map, or run all its items, in this process."""
    settings = load()
    engine = Engine(settings, sender(settings.need_broker()))
    engine.run_bundle(
        "trellis.map", run, [1_000_000]
    )  # no such step: connections and code are there afterwards
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before, began = peak(), time.monotonic()
    if role == "expand":
        engine.run_bundle("trellis.map", run, [0])
    else:
        last = 2 + Client(settings).get(run).steps - 2
        for first in range(2, last, BUNDLE):
            engine.run_bundle("bench.noop", run, unpack([first, min(BUNDLE, last - first)]))
        engine.run_bundle("trellis.gather", run, [1])
    return {
        "seconds": round(time.monotonic() - began, 2),
        "mib": round(peak() - before, 1),
        "base": round(before, 1),
    }


def peak() -> float:
    """The most memory that this process had, in MiB."""
    [line] = [each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM")]
    return int(line.split()[1]) / 1024.0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measured(*sys.argv[1:])))
    else:
        main()
