"""The shape of a workflow: who waits for whom.

The law: pure functions over `{step: its parents}`, each linear in steps plus edges and without
recursion, so that a chain of 100,000 steps is as good as any other shape. Orders are stable: steps
keep the order of their definition wherever the dependencies allow it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from heapq import heappop, heappush

from ..tasks.errors import CycleError, DefinitionError
from . import expressions
from .references import references
from .spec import StepSpec, WorkflowSpec

Parents = Mapping[str, tuple[str, ...]]


def parents_of(step: StepSpec) -> tuple[str, ...]:
    """The steps that one step waits for: `after`, the results its inputs use, and those of its condition."""
    if not step.holes and step.map is None and step.when is None and step.loop is None:
        return step.after if len(step.after) < 2 else tuple(dict.fromkeys(step.after))
    found: dict[str, None] = dict.fromkeys(step.after)
    for _, hole in step.places:
        for reference in references(hole):
            if reference.kind == "steps":
                found[reference.name] = None
    if step.when is not None:
        found.update(dict.fromkeys(sorted(expressions.names(step.when).steps)))
    if step.loop is not None:
        found.update(dict.fromkeys(sorted(expressions.names(step.loop.until, turns=True).steps)))
    return tuple(found)


def parents(spec: WorkflowSpec) -> dict[str, tuple[str, ...]]:
    """The parents of every step, in the order of definition."""
    return {name: parents_of(step) for name, step in spec.steps.items()}


def children(parents: Parents) -> dict[str, list[str]]:
    """The other direction: the steps that wait for each step. Raises DefinitionError for unknown parents."""
    found: dict[str, list[str]] = {name: [] for name in parents}
    for name, above in parents.items():
        for parent in above:
            if parent not in found:
                raise DefinitionError(f"it waits for a step {parent!r} that does not exist", step=name)
            found[parent].append(name)
    return found


def order(parents: Parents, *, workflow: str | None = None) -> list[str]:
    """The steps, each behind its parents. Raises CycleError."""
    if _is_ordered(parents):  # how Python definitions come, where a reference always exists before its use
        return list(parents)
    names = list(parents)
    rank = {name: position for position, name in enumerate(names)}
    below = children(parents)
    missing = {name: len(above) for name, above in parents.items()}
    # Ascending, and so a heap already: the earliest definition comes first, which makes the order stable.
    ready = [rank[name] for name, count in missing.items() if count == 0]
    found: list[str] = []
    while ready:
        name = names[heappop(ready)]
        found.append(name)
        for child in below[name]:
            missing[child] -= 1
            if missing[child] == 0:
                heappush(ready, rank[child])
    if len(found) < len(names):
        raise CycleError(_circle(parents, {name for name in names if missing[name]}), workflow=workflow)
    return found


def _is_ordered(parents: Parents) -> bool:
    seen: set[str] = set()
    for name, above in parents.items():
        for parent in above:
            if parent not in seen:
                return False
        seen.add(name)
    return True


def _circle(parents: Parents, stuck: set[str]) -> list[str]:
    """A circle among steps that never become ready: each of them waits for another one of them."""
    name = next(name for name in parents if name in stuck)
    position: dict[str, int] = {}
    trail: list[str] = []
    while name not in position:
        position[name] = len(trail)
        trail.append(name)
        name = next(parent for parent in parents[name] if parent in stuck)
    circle = trail[position[name] :][::-1]  # walked upwards; told in the direction of the work
    return [*circle, circle[0]]


def depths(parents: Parents) -> dict[str, int]:
    """The level of each step: 0 without parents, else one below its deepest parent."""
    found: dict[str, int] = {}
    for name in order(parents):
        found[name] = 1 + max((found[parent] for parent in parents[name]), default=-1)
    return found


def levels(parents: Parents) -> list[list[str]]:
    """The steps by level; the steps of one level do not wait for each other."""
    by_depth = depths(parents)
    found: list[list[str]] = [[] for _ in range(1 + max(by_depth.values(), default=-1))]
    for name in parents:
        found[by_depth[name]].append(name)
    return found


def sinks(parents: Parents) -> list[str]:
    """The steps that nobody waits for."""
    needed = {parent for above in parents.values() for parent in above}
    return [name for name in parents if name not in needed]


def ancestors(parents: Parents, names: Iterable[str]) -> set[str]:
    """The given steps and all that they wait for, directly or not."""
    found: set[str] = set()
    stack = list(names)
    while stack:
        name = stack.pop()
        if name not in found:
            found.add(name)
            stack.extend(parents[name])
    return found
