"""Growth: a running step adds steps to its own run. `map` over a list known only at run time is its first use.

The law: new steps land in the same transaction as the completion of the step that grew them, or not at
all. A map is two rows: one becomes an item row per element, the other waits for all of them and gathers
their results in order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ..tasks.database import Connection
from ..tasks.errors import InputError, ValueTooLarge
from . import plan
from .journal import Journal
from .plan import PlannedStep
from .records import Claimed, Completed, Json, Outcome, Ready
from .states import StepState


class Expanded(NamedTuple):
    """What an expansion did."""

    completed: Completed
    ready: list[Ready]  # items that may run at once


def as_ready(step: Claimed) -> Ready:
    """A claimed step as one to publish."""
    return Ready(step.idx, step.name, step.action, step.queue, step.priority)


def items(
    step: Claimed, inputs: Mapping[str, Json], results: Mapping[int | str, Json]
) -> list[dict[str, Json]]:
    """The inputs of each item, from the map's template: pure. Raises InputError where `over` is no list."""
    over = inputs["over"]
    if not isinstance(over, list):
        raise InputError(step.name, {"over": f"a map goes over a list, this is {type(over).__name__}"})
    mapped = _mapped(step)
    return [
        plan.bind(
            mapped["inputs"],
            mapped["bindings"],
            {**results, "item": item, "index": index},
            action=mapped["action"],
        )
        for index, item in enumerate(over)
    ]


def rows(step: Claimed, inputs: list[dict[str, Json]], first: int, gather: int) -> Iterator[PlannedStep]:
    """The rows of a map's items: pure.

    A limit of n at once makes n lanes: item i also waits for item i - n, along an edge of order alone, so
    that the limit needs no counter that a crash could leave behind.
    """
    mapped = _mapped(step)
    count = len(inputs)
    lanes = mapped.get("concurrency") or count
    options = {
        name: mapped[name] for name in ("retry", "timeout", "on_failure") if mapped.get(name) is not None
    }
    for index, each in enumerate(inputs):
        follower = (~(first + index + lanes),) if index + lanes < count else ()
        yield PlannedStep(
            first + index,
            f"{step.name}[{index}]",
            mapped["action"],
            mapped["queue"],
            mapped["priority"],
            1 if index >= lanes else 0,
            (gather, *follower),
            each,
            None,
            (),
            options or None,
        )


def expand(journal: Journal, run: str, step: Claimed, inputs: list[dict[str, Json]], worker: str) -> Expanded:
    """Replace a map by its items, in one transaction with the map's own completion."""
    ready: list[Ready] = []

    def insert(connection: Connection) -> None:
        first = journal.grow(connection, run, len(inputs))
        gather = journal.widen(connection, run, step.idx, first, len(inputs))
        planned = list(rows(step, inputs, first, gather))
        journal.add(connection, run, planned, sent=True)
        ready[:] = [Ready(r.idx, r.name, r.action, r.queue, r.priority) for r in planned if not r.missing]

    began = time.monotonic()
    outcome = Outcome(step.idx, step.lease, StepState.SUCCEEDED, str(len(inputs)).encode(), ended=began)
    completed = journal.complete(run, [outcome], worker=worker, first=insert)
    return Expanded(completed, ready if completed.won else [])


def gather(journal: Journal, run: str, step: Claimed, limit: int) -> Outcome:
    """The results of a map's items as one list. Raises ValueTooLarge where it passes `limit` bytes."""
    where = step.inputs or {}
    began = time.monotonic()
    size, data = journal.gather(run, where["first"], where["count"], limit)
    if data is None:
        raise ValueTooLarge(
            f"the list of results of step {step.name.removesuffix(plan.GATHER_SUFFIX)!r}", size, limit
        )
    ended = time.monotonic()
    return Outcome(step.idx, step.lease, StepState.SUCCEEDED, data, ran=ended - began, ended=ended)


def _mapped(step: Claimed) -> dict[str, Any]:
    mapped: dict[str, Any] = (step.options or {})["map"]
    return mapped
