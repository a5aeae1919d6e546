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
from . import plan, ranks
from .here import Here
from .plan import PlannedStep
from .records import Claimed, Json, Outcome, Ready, Recorded
from .references import follow, text_of
from .states import StepState


def as_ready(step: Claimed) -> Ready:
    """A claimed step as one to publish."""
    return Ready(step.idx, step.name, step.action, step.queue, step.priority, step.rank, step.expect, False)


class Item(NamedTuple):
    """One item of a map: its inputs, and the bindings to other steps' results that are still open."""

    inputs: dict[str, Json]
    bindings: list[Json] | None


def items(step: Claimed, inputs: Mapping[str, Json]) -> list[Item]:
    """The inputs of each item, from the map's template: pure. Raises InputError where `over` is no list.

    Only what differs from item to item is filled in; what all share stays a reference, so that a hundred
    thousand items do not hold a hundred thousand copies of it.
    """
    over = inputs["over"]
    if not isinstance(over, list):
        raise InputError(step.name, {"over": f"a map goes over a list, this is {type(over).__name__}"})
    mapped = _mapped(step)
    own = [binding for binding in mapped["bindings"] or () if not _steps(binding)]
    shared = [binding for binding in mapped["bindings"] or () if _steps(binding)]
    found = []
    for index, item in enumerate(over):
        known: dict[int | str, Json] = {"item": item, "index": index}
        given = plan.bind(mapped["inputs"], own, known, action=mapped["action"])
        found.append(Item(given, [_partly(binding, known) for binding in shared] or None))
    return found


def _steps(binding: list[Json]) -> list[int]:
    """The steps whose results a binding needs."""
    _, parent, rest = binding
    sources = [part[0] for part in rest if not isinstance(part, str)] if parent == "text" else [parent]
    return [source for source in sources if isinstance(source, int)]


def _partly(binding: list[Json], known: Mapping[int | str, Json]) -> list[Json]:
    """A binding with the item filled in: a text may hold both the item and other steps' results."""
    at, parent, rest = binding
    if parent != "text":
        return binding
    parts = [
        text_of(follow(known[part[0]], part[1])) if not isinstance(part, str) and part[0] in known else part
        for part in rest
    ]
    return [at, parent, parts]


def rows(step: Claimed, inputs: list[Item], first: int, gather: int) -> Iterator[PlannedStep]:
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
    expect, below = mapped.get("expect"), mapped.get("rank")
    refs = tuple(sorted({source for binding in mapped["bindings"] or () for source in _steps(binding)}))
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
            each.inputs,
            each.bindings,
            refs,
            options or None,
            rank=None if below is None else (expect or 0.0) * ranks.lane(count, lanes, index) + below,
            expect=expect,
        )


def expand(here: Here, step: Claimed, inputs: dict[str, Json]) -> Recorded:
    """Replace a map by its items, in one transaction with the map's own completion."""
    journal, run = here.journal, here.run
    each = items(step, inputs)
    ready: list[Ready] = []

    def insert(connection: Connection) -> None:
        first = journal.grow(connection, run, len(each))
        gather = journal.widen(connection, run, step.idx, first, len(each))
        planned = list(rows(step, each, first, gather))
        journal.add(connection, run, planned, sent=True)
        ready[:] = [r.ready for r in planned if not r.missing]

    began = time.monotonic()
    outcome = Outcome(step.idx, step.lease, StepState.SUCCEEDED, str(len(each)).encode(), ended=began)
    completed = journal.complete(run, [outcome], worker=here.worker, first=insert)
    return Recorded(completed, ready if completed.won else [])


def gather(here: Here, step: Claimed, inputs: dict[str, Json]) -> Outcome:
    """The results of a map's items as one list. Raises ValueTooLarge where it passes TRELLIS_VALUE_MAX_BYTES."""
    began = time.monotonic()
    limit = here.settings.value_max_bytes
    size, data = here.journal.gather(here.run, inputs["first"], inputs["count"], limit)
    if data is None:
        raise ValueTooLarge(
            f"the list of results of step {step.name.removesuffix(plan.GATHER_SUFFIX)!r}", size, limit
        )
    ended = time.monotonic()
    return Outcome(step.idx, step.lease, StepState.SUCCEEDED, data, ran=ended - began, ended=ended)


def _mapped(step: Claimed) -> dict[str, Any]:
    mapped: dict[str, Any] = (step.options or {})["map"]
    return mapped
