"""Growth: a running step adds steps to its own run. `map` over a list known only at run time is its first use.

The law: new steps land in the same transaction as the completion of the step that grew them, or not at
all. A map is two rows: one becomes an item row per element, the other waits for all of them and gathers
their results in order. A loop (`looping`) is the same pair, whose first row grows one turn at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ..tasks.database import Connection
from ..tasks.errors import InputError, ValueTooLarge
from . import gates, plan, ranks, wire
from .execution import RECORD
from .here import Here
from .plan import PlannedStep
from .records import Claimed, Completed, Json, Outcome, Ready, Recorded, Span
from .references import follow, text_of
from .states import StepState


def as_ready(step: Claimed) -> Ready:
    """A claimed step as one to publish."""
    return Ready(step.idx, step.name, step.action, step.queue, step.priority, step.rank, step.expect, False)


class Item(NamedTuple):
    """One item of a map: its inputs, and the bindings to other steps' results that are still open."""

    inputs: dict[str, Json]
    bindings: list[Json] | None
    known: dict[int | str, Json]  # the item itself and its place, for the keys of limits


def listed(step: Claimed, inputs: Mapping[str, Json]) -> list[Json]:
    """What a map goes over. Raises InputError where it is no list."""
    over = inputs["over"]
    if not isinstance(over, list):
        raise InputError(step.name, {"over": f"a map goes over a list, this is {type(over).__name__}"})
    return over


def items(step: Claimed, over: Iterable[Json]) -> Iterator[Item]:
    """The inputs of each item, from the map's template: pure. Raises InputError for an item that does not fit it.

    Only what differs from item to item is filled in; what all share stays a reference, so that a hundred
    thousand items do not hold a hundred thousand copies of it.
    """
    mapped = _mapped(step)
    own = [binding for binding in mapped["bindings"] or () if not sources(binding)]
    shared = [binding for binding in mapped["bindings"] or () if sources(binding)]
    for index, item in enumerate(over):
        known: dict[int | str, Json] = {"item": item, "index": index}
        given = plan.bind(mapped["inputs"], own, known, action=mapped["action"])
        yield Item(given, [partly(binding, known) for binding in shared] or None, known)


def sources(binding: list[Json]) -> list[int]:
    """The steps whose results a binding needs."""
    _, parent, rest = binding
    sources = [part[0] for part in rest if not isinstance(part, str)] if parent == "text" else [parent]
    return [source for source in sources if isinstance(source, int)]


def partly(binding: list[Json], known: Mapping[int | str, Json]) -> list[Json]:
    """A binding with the item filled in: a text may hold both the item and other steps' results."""
    at, parent, rest = binding
    if parent != "text":
        return binding
    parts = [
        text_of(follow(known[part[0]], part[1])) if not isinstance(part, str) and part[0] in known else part
        for part in rest
    ]
    return [at, parent, parts]


def rows(step: Claimed, inputs: Iterable[Item], first: int, gather: int, count: int) -> Iterator[PlannedStep]:
    """The rows of a map's `count` items, one at a time: pure.

    A limit of n at once makes n lanes: item i also waits for item i - n, along an edge of order alone, so
    that the limit needs no counter that a crash could leave behind.
    """
    mapped = _mapped(step)
    lanes = mapped.get("concurrency") or count
    options = {
        name: mapped[name]
        for name in ("retry", "timeout", "on_failure", "queue_timeout", "heartbeat", "in_doubt", "tenant")
        if mapped.get(name) is not None
    }
    if "join" in mapped:
        options["join"] = mapped["join"]
    if mapped.get("on_item_failure") is not None:
        options["on_failure"] = RECORD
    expect, below = mapped.get("expect"), mapped.get("rank")
    refs = tuple(sorted({source for binding in mapped["bindings"] or () for source in sources(binding)}))
    limits, fair = mapped.get("limits"), mapped.get("fair")
    for index, each in enumerate(inputs):
        own = {**options, **_limits(step, limits, each.known)} if limits else options
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
            own or None,
            rank=None
            if below is None or "rate" in own
            else (expect or 0.0) * ranks.lane(count, lanes, index) + below,
            waits_for=gates.first_line(own) if limits else None,
            fair=fair,
            expect=expect,
        )


def _limits(step: Claimed, limits: Mapping[str, Any], known: Mapping[int | str, Json]) -> dict[str, Any]:
    try:
        return gates.of_item(limits, known)
    except LookupError as error:
        raise InputError(step.name, {"the key of its limit": f"of item {known['index']}: {error}"}) from None


def expand(here: Here, step: Claimed, inputs: dict[str, Json]) -> Recorded:
    """Replace a map by its items, in one transaction with the map's own completion.

    The rows are made while they are written, and announced as a range of ids: besides the list itself, a map of
    100,000 items takes no more memory than one of 1,000.
    """
    journal, run = here.journal, here.run
    over = listed(step, inputs)
    count = len(over)
    mapped = _mapped(step)
    spans: list[Span] = []
    lines: set[str] = set()  # limits in front of items

    def insert(connection: Connection) -> None:
        first = journal.grow(connection, run, count)
        gather = journal.widen(connection, run, step.idx, count, {"first": first, "count": count})
        planned = rows(step, items(step, over), first, gather, count)
        if mapped.get("limits"):
            journal.add(connection, run, _noted(planned, lines), sent=True)
            return
        journal.add(connection, run, planned, sent=True)
        at_once = min(count, mapped.get("concurrency") or count)
        kind = mapped["action"], mapped["queue"], mapped["priority"]
        spans[:] = [
            Span(first, at_once, step.name, *kind, mapped.get("rank") is not None, mapped.get("expect"))
        ]

    completed = complete(here, step, str(count).encode(), insert)
    if not completed.won:
        return Recorded(completed, [], [])
    return Recorded(completed._replace(gates=(*completed.gates, *lines)), [], spans)


def _noted(planned: Iterable[PlannedStep], lines: set[str]) -> Iterator[PlannedStep]:
    """The rows, and on the way the limits in front of those that would be ready."""
    for row in planned:
        if row.waits_for is not None and not row.missing:
            lines.add(row.waits_for)
        yield row


def gather(here: Here, step: Claimed, inputs: dict[str, Json]) -> Outcome:
    """The result of a map or loop: the items' results as one list, or their number; the result of the last turn.

    Raises ValueTooLarge where the list passes TRELLIS_VALUE_MAX_BYTES.
    """
    began = time.monotonic()
    options = step.options or {}
    if "last" in inputs:  # of a loop
        data = wire.dumps(here.journal.results(here.run, [inputs["last"]])[inputs["last"]]).encode()
    elif (
        "first" not in inputs
    ):  # the map or loop itself failed, and its default takes the place of the result
        data = wire.dumps(options["on_failure"]["default"]).encode()
    elif options.get("gather") is False:
        data = str(_counted(here, inputs, options)).encode()
    else:
        data = _list(here, step, inputs, options)
    ended = time.monotonic()
    return Outcome(step.idx, step.lease, StepState.SUCCEEDED, data, ran=ended - began, ended=ended)


def complete(here: Here, step: Claimed, result: bytes, insert: Callable[[Connection], None]) -> Completed:
    """Complete a step together with the rows that it grew."""
    outcome = Outcome(step.idx, step.lease, StepState.SUCCEEDED, result, ended=time.monotonic())
    return here.journal.complete(here.run, [outcome], worker=here.worker, first=insert)


def _counted(here: Here, inputs: Mapping[str, Json], options: Mapping[str, Json]) -> int:
    """How many results a map has."""
    if options.get("on_item_failure") != "skip":
        return int(inputs["count"])
    return here.journal.succeeded(here.run, inputs["first"], inputs["count"])


def _list(here: Here, step: Claimed, inputs: Mapping[str, Json], options: Mapping[str, Json]) -> bytes:
    limit = here.settings.value_max_bytes
    policy = options.get("on_item_failure") or ""
    size, data = here.journal.gather(here.run, inputs["first"], inputs["count"], limit, policy)
    if data is None:
        name = step.name.removesuffix(plan.GATHER_SUFFIX)
        raise ValueTooLarge(f"the list of results of step {name!r}", size, limit)
    return data


def _mapped(step: Claimed) -> dict[str, Any]:
    mapped: dict[str, Any] = (step.options or {})["map"]
    return mapped
