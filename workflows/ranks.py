"""How much still hangs on a step: its upward rank, the seconds of the longest path that begins with it.

The law: pure and linear. A rank is an order for steps that wait at the same time, below the user's priority, and
never more than that: a wrong expectation costs time and nothing else. Where it cannot matter (everything is
short, nothing is known, or all that wait together have as far to go) there are no ranks, and the run is served
as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from .plan import EXPAND, START, Place, Plan, PlannedStep
from .references import Hole, Path, Reference, follow
from .registry import Catalogue
from .spec import StepSpec, WorkflowSpec

SHORT_SECONDS = 0.02  # up to this a step counts as short, and a difference of paths as none

CROWD = 64  # ready steps from which on short ones go together: more slots than that wait seldom

Means = Callable[[str], float | None]  # an action's measured mean in milliseconds; None where there is none


class Ranking(NamedTuple):
    """What a plan's rows are expected to take, and the longest path from each on, both in seconds."""

    expected: Sequence[float | None]  # None: nobody has said or measured it
    ranks: Sequence[float]


def unmeasured(action: str) -> float | None:
    """The means of a process that has measured nothing."""
    return None


def slow(seconds: Iterable[float | None]) -> bool:
    """Whether any of these is known and not short: else no rank can matter."""
    return any(each is not None and each > SHORT_SECONDS for each in seconds)


def upward(
    dependents: Sequence[Sequence[int]], seconds: Sequence[float | None], beyond: float = 0.0
) -> list[float]:
    """The rank of each row, given in topological order; an edge of order alone (~row) counts like any other.

    beyond: seconds of the longest path behind the last rows.
    """
    ranks = [each or 0.0 for each in seconds]
    for at in range(len(ranks) - 1, -1, -1):
        below = dependents[at]
        ranks[at] += max(ranks[child if child >= 0 else ~child] for child in below) if below else beyond
    return ranks


def differ(dependents: Sequence[Sequence[int]], ranks: Sequence[float]) -> bool:
    """Whether rows that may wait together, being as many steps away from the start, differ in rank."""
    levels = [0] * len(ranks)
    low: list[float] = []
    high: list[float] = []
    for at, rank in enumerate(ranks):
        level = levels[at]
        if level == len(low):
            low.append(rank)
            high.append(rank)
        low[level] = min(low[level], rank)
        high[level] = max(high[level], rank)
        for child in dependents[at]:
            row = child if child >= 0 else ~child
            levels[row] = max(levels[row], level + 1)
    return any(top - bottom > SHORT_SECONDS for bottom, top in zip(low, high, strict=True))


def ranking(
    dependents: Sequence[Sequence[int]], seconds: Sequence[float | None], beyond: float | None = None
) -> Ranking | None:
    """The ranks of a plan's rows; None where they cannot matter. `beyond`: what they come among has ranks."""
    if beyond is not None:
        return Ranking(seconds, upward(dependents, seconds, beyond))
    if not slow(seconds):
        return None
    ranks = upward(dependents, seconds)
    return Ranking(seconds, ranks) if differ(dependents, ranks) else None


def lane(count: int, lanes: int, index: int = 0) -> int:
    """How many of a map's items come one after the other, from this one on."""
    return (count - index + lanes - 1) // lanes


def ranked(
    plan: Plan,
    spec: WorkflowSpec,
    params: Mapping[str, Any],
    catalogue: Catalogue,
    means: Means = unmeasured,
    *,
    place: Place = START,
    beyond: float | None = None,
) -> Plan:
    """A plan with the ranks of its rows where they can matter; else the plan as it is.

    A step takes what it says itself, else what its action says, else what was measured. A fragment lands in its
    `place`, with a longest path of `beyond` seconds behind its last rows where the run has ranks.
    """
    usual = {action: _usual(action, catalogue, means) for action in spec.actions}
    if beyond is None and not spec.timed and not slow(usual.values()):
        return plan
    written = [spec.steps.get(row.name[len(place.prefix) :]) for row in plan.steps]
    own = [_own(step, usual) for step in written]
    seconds = [
        each if each is None or row.action != EXPAND or step is None else each * _laps(step, params)
        for row, step, each in zip(plan.steps, written, own, strict=True)
    ]
    found = ranking([_inner(row, place.first) for row in plan.steps], seconds, beyond)
    if found is None:
        return plan
    rows = [
        # A step under a rate has a moment of its own, so no other's message may be the right to it.
        row if row.options and "rate" in row.options else replace(row, rank=rank, expect=each)
        for row, rank, each in zip(plan.steps, found.ranks, own, strict=True)
    ]
    for at, row in enumerate(rows):
        if row.action == EXPAND:  # the row behind it is the one that gathers
            rows[at] = replace(row, expect=None, options=_told(row, rows[at + 1].rank))
    return replace(plan, steps=rows)


def _inner(row: PlannedStep, first: int) -> Sequence[int]:
    """The rows of the same plan that wait for this one, by their place in it."""
    if not first:
        return row.dependents
    rows = (~each if each < 0 else each for each in row.dependents)
    return [each - first for each in rows if each >= first]


def _usual(action: str, catalogue: Catalogue, means: Means) -> float | None:
    info = catalogue.get(action)
    if info is not None and info.expect is not None:
        return info.expect
    mean = means(action)
    return None if mean is None else mean / 1000.0


def _own(step: StepSpec | None, usual: Mapping[str, float | None]) -> float | None:
    """What a row is expected to take; one of the engine's own that stands for no step, nothing."""
    if step is None:
        return None
    return usual[step.action] if step.expect is None else step.expect


def _laps(step: StepSpec, params: Mapping[str, Any]) -> int:
    """How many items of a map come one after the other; one where nobody knows yet."""
    assert step.map is not None
    lanes, over = step.map.concurrency, _list(step.map.over, step.map.holes, params)
    return 1 if lanes is None or over is None else max(1, lane(len(over), lanes))


def _list(over: Any, holes: tuple[tuple[Path, Hole], ...], params: Mapping[str, Any]) -> list[Any] | None:
    """The list that a map goes over, where it is known before the run."""
    found = over
    if len(holes) == 1 and not holes[0][0] and isinstance(holes[0][1], Reference):
        reference = holes[0][1]
        found = follow(params[reference.name], reference.path) if reference.kind == "params" else None
    return found if isinstance(found, list) else None


def _told(row: PlannedStep, below: float | None) -> dict[str, Any]:
    """What a map tells its items: how long each is expected to take, and how long the path behind them is."""
    options = row.options or {}
    return {**options, "map": {**options["map"], "expect": row.expect, "rank": below}}
