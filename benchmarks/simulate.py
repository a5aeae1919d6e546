"""What a perfect engine would need: list schedulers without any overhead, on equal slots.

The law: pure arithmetic. Whenever a slot is free and a task is ready, a task starts at once; nothing is
pre-empted. The two schedulers differ only in which ready task they take:

    fifo    the one that has been ready for longest; of those ready together, the first in the file
    best    the one with the longest remaining path (upward rank: its own time and the longest below it)

`best` is the usual heuristic, not the optimum, which nobody can compute for a thousand tasks; on some graphs
`fifo` is luckier.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Task:
    """One task: `runtime` in seconds, `parents` by id."""

    id: str
    parents: tuple[str, ...]
    runtime: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """When each task starts and ends, in the order of the tasks, from 0 on."""

    starts: list[float]
    ends: list[float]

    @property
    def makespan(self) -> float:
        """The end of the last task."""
        return max(self.ends, default=0.0)


def fifo(tasks: Sequence[Task], slots: int) -> Schedule:
    """First come, first served. Raises ValueError for a graph that cannot run."""
    return _schedule(tasks, slots, [0.0] * len(tasks))


def best(tasks: Sequence[Task], slots: int) -> Schedule:
    """Longest remaining path first. Raises ValueError for a graph that cannot run."""
    return _schedule(tasks, slots, [-rank for rank in upward_ranks(tasks)])


def upward_ranks(tasks: Sequence[Task]) -> list[float]:
    """Each task's runtime plus the longest path below it. Raises ValueError for a circle."""
    waits, children = _graph(tasks)
    ranks = [task.runtime for task in tasks]
    for at in reversed(_order(waits, children)):
        ranks[at] += max((ranks[child] for child in children[at]), default=0.0)
    return ranks


def critical_path(tasks: Sequence[Task]) -> float:
    """The longest path: no number of slots is faster."""
    return max(upward_ranks(tasks), default=0.0)


def total(tasks: Iterable[Task]) -> float:
    """The sum of all runtimes: what one slot needs."""
    return sum(task.runtime for task in tasks)


def _schedule(tasks: Sequence[Task], slots: int, urgency: Sequence[float]) -> Schedule:
    if slots < 1:
        raise ValueError(f"{slots} slots: a schedule needs one at least")
    waits, children = _graph(tasks)
    starts, ends = [0.0] * len(tasks), [0.0] * len(tasks)
    # Ready tasks: (urgency, when it became ready, place in the file). Running ones: (end, place).
    ready = [(urgency[at], 0.0, at) for at, missing in enumerate(waits) if not missing]
    heapq.heapify(ready)
    running: list[tuple[float, int]] = []
    now, done = 0.0, 0
    while ready or running:
        while ready and len(running) < slots:
            at = heapq.heappop(ready)[2]
            starts[at], ends[at] = now, now + tasks[at].runtime
            heapq.heappush(running, (ends[at], at))
        now = running[0][0]
        while running and running[0][0] <= now:  # all that end now, before anything starts
            at = heapq.heappop(running)[1]
            done += 1
            for child in children[at]:
                waits[child] -= 1
                if not waits[child]:
                    heapq.heappush(ready, (urgency[child], now, child))
    if done < len(tasks):
        raise ValueError(f"{len(tasks) - done} tasks wait for each other in a circle")
    return Schedule(starts, ends)


def _graph(tasks: Sequence[Task]) -> tuple[list[int], list[list[int]]]:
    """How many parents each task waits for, and its children."""
    place = {task.id: at for at, task in enumerate(tasks)}
    if len(place) < len(tasks):
        raise ValueError("two tasks have the same id")
    children: list[list[int]] = [[] for _ in tasks]
    waits = [0] * len(tasks)
    for at, task in enumerate(tasks):
        if task.runtime < 0:
            raise ValueError(f"task {task.id!r} has the runtime {task.runtime}")
        for parent in set(task.parents):
            if parent not in place:
                raise ValueError(f"task {task.id!r} has the parent {parent!r}, which is no task")
            children[place[parent]].append(at)
            waits[at] += 1
    return waits, children


def _order(waits: Sequence[int], children: Sequence[Sequence[int]]) -> list[int]:
    """A topological order."""
    left = list(waits)
    found = [at for at, missing in enumerate(left) if not missing]
    for at in found:  # grows while it is read
        for child in children[at]:
            left[child] -= 1
            if not left[child]:
                found.append(child)
    if len(found) < len(left):
        raise ValueError(f"{len(left) - len(found)} tasks wait for each other in a circle")
    return found
