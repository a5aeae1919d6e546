"""Recorded workflows, run for real: `python benchmarks/dags.py FOLDER --seconds 10 --slots 8`.

FOLDER holds `{"tasks": [{"id", "parents", "runtime"}]}` files. Each is run by the engine on `--slots` worker
threads that sleep for as long as its tasks ran, with all runtimes scaled by one factor, so that an ideal
first-come-first-served scheduler without any overhead needs `--seconds`. One JSON line a file on stdout:

    {"name": "montage-58", "tasks": 58, "makespan": 10.2, "fifo": 10.0, "best": 9.1}

What each step takes is said by `expect=`. With `--measured` it is not said: each kind of task (its id up to the
first number) is an action, the graph is run twice, and the second run, which is the one that counts, goes by the
means of the first.

`fifo` and `best` are simulated (simulate.py). `makespan` is by the journal's clock, from `created_at`, which the
run gets inside the call of `Client.start`, before its steps are written and published, to `finished_at`:
one clock, and stricter than to begin when `start` returns.

Servers are embedded ones of its own, unless TRELLIS_DATABASE_URL and TRELLIS_BROKER_URL are both set.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import simulate
import stack
from actions import KINDS, work
from sides import PATIENCE, Durable
from simulate import Task

from trellis.tasks.errors import TrellisError
from trellis.tasks.logs import configure
from trellis.tasks.settings import PREFIX, Settings
from trellis.workflows import Workflow

SECONDS = 10.0
SLOTS = 8


def read(path: Path) -> list[Task]:
    """The tasks of a file. Raises ValueError where it is not one."""
    try:
        tasks = json.loads(path.read_text())["tasks"]
        return [Task(str(t["id"]), tuple(map(str, t["parents"])), float(t["runtime"])) for t in tasks]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'this is no {{"tasks": [{{"id", "parents", "runtime"}}]}} file: {error!r}'
        ) from error


def scaled(tasks: list[Task], seconds: float, slots: int) -> list[Task]:
    """The same graph with runtimes for which `fifo` takes `seconds`; tasks of 0 seconds keep them."""
    makespan = simulate.fifo(tasks, slots).makespan
    factor = seconds / makespan if makespan else 0.0
    return [Task(task.id, task.parents, task.runtime * factor) for task in tasks]


def graphs_of(folder: Path, seconds: float, slots: int) -> dict[str, list[Task]]:
    """The graphs of a folder by file name, scaled. Raises ValueError that names the file, before anything starts."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found[path.stem] = scaled(read(path), seconds, slots)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if not found:
        raise ValueError(f"{folder}: there is no *.json file here")
    return found


def workflow_of(name: str, tasks: list[Task], *, measured: bool = False) -> Workflow:
    """The graph as a workflow; steps have numbers for names, since ids may be anything.

    measured: nobody says what a step takes, and each kind of task is an action of its own.
    """
    names = {task.id: f"t{at}" for at, task in enumerate(tasks)}
    kinds = {kind: at for at, kind in enumerate(dict.fromkeys(kind_of(task) for task in tasks))}
    workflow = Workflow(name, register=False)
    for task in tasks:
        after = [names[parent] for parent in task.parents]
        action = KINDS[kinds[kind_of(task)] % len(KINDS)] if measured else work
        expect = None if measured else task.runtime
        workflow.step(names[task.id], action, seconds=task.runtime, after=after, expect=expect)
    workflow.validate()
    return workflow


def kind_of(task: Task) -> str:
    """The kind of a task: `map_ID00012` and `map_ID00013` are alike."""
    return re.split(r"[_.:-]*(?:ID)?\d", task.id, maxsplit=1)[0]


def measure(
    graphs: dict[str, list[Task]], settings: Settings, slots: int, *, measured: bool = False
) -> Iterator[dict[str, Any]]:
    """Run each graph; yields what is printed about it."""
    # Every thread holds a connection while it claims and records, the keeper one more.
    settings = settings.model_copy(update={"pool_max_size": slots + 2})
    with ExitStack() as held:
        group = held.enter_context(stack.Group("dags", settings, concurrency=slots, pool="threads").running())
        side = Durable(group)
        held.callback(side.close)
        held.enter_context(group.awake())
        side.warm(slots)
        for name, tasks in graphs.items():
            fifo, best = simulate.fifo(tasks, slots).makespan, simulate.best(tasks, slots).makespan
            workflow = workflow_of(name, tasks, measured=measured)
            if measured:
                side.forget()
                side.finish(side.client.start(workflow), PATIENCE + 10 * fifo)
                side.warm(slots)  # by then the workers have written their means, and the client is a new one
            run = side.client.start(workflow)
            ended = side.finish(run, PATIENCE + 10 * fifo)
            assert ended.finished_at is not None
            yield {
                "name": name,
                "tasks": len(tasks),
                "makespan": round((ended.finished_at - ended.created_at).total_seconds(), 4),
                "fifo": round(fifo, 4),
                "best": round(best, 4),
            }


def _settings(held: ExitStack) -> Settings:
    """Servers of the environment, or our own."""
    urls = [os.environ.get(f"{PREFIX}{name}_URL") for name in ("DATABASE", "BROKER")]
    if all(urls):
        home = held.enter_context(stack.folder())
        # A queue of our own: whoever else works on this broker does not take these steps.
        return stack.settings_of(home, *urls, default_queue=f"bench-{os.getpid()}")
    if any(urls):
        raise ValueError(f"set both {PREFIX}DATABASE_URL and {PREFIX}BROKER_URL, or neither")
    servers, home = held.enter_context(stack.servers())
    return stack.settings_of(home / "dags", stack.new_database(servers, "dags"), servers.redis.url(1))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Run recorded workflows on the engine; one JSON line each.")
    parser.add_argument("folder", type=Path, help='folder of {"tasks": [{"id", "parents", "runtime"}]} files')
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="what the ideal fifo scheduler takes (10)"
    )
    parser.add_argument("--slots", type=int, default=SLOTS, help="worker threads (8)")
    parser.add_argument("--measured", action="store_true", help="go by measured means instead of `expect=`")
    given = parser.parse_args()
    stack.leave_on_sigterm()
    try:
        graphs = graphs_of(given.folder, given.seconds, given.slots)
        with ExitStack() as held:
            settings = _settings(held)
            configure(settings)  # to stderr: stdout is for the lines of JSON
            for line in measure(graphs, settings, given.slots, measured=given.measured):
                print(json.dumps(line), flush=True)
    except (TrellisError, ValueError) as error:
        print(f"dags.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
