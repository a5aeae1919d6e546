"""Loops: one run of an action after the other, each a step of its own, until a condition holds.

The law: a loop is a pair of rows like a map. The first one grows a turn, and behind it a row that looks at what
came of it and grows the next; the second waits for the last of them and has its result. So a loop of 1,000 turns is
1,000 small growths, each of them all or nothing, and nothing is remembered outside the journal.
"""

from __future__ import annotations

from typing import Any

from ..tasks.database import Connection
from ..tasks.errors import LoopLimit
from . import expressions, gates, growth, plan
from .here import Here
from .plan import PlannedStep
from .records import Claimed, Json, Ready, Recorded

LOOK = "[?{}]"  # ends the name of the row that looks at a turn


def turn(here: Here, step: Claimed, inputs: dict[str, Json]) -> Recorded:
    """Look at the turn that is over, and grow the next one or end the loop. Raises LoopLimit, DefinitionError."""
    looped: dict[str, Any] = (step.options or {})["loop"]
    index, previous = looped.get("turn", 0), inputs["previous"]
    if index and _is_over(here, looped, index - 1, previous):
        return _end(here, step, looped, index)
    if index >= looped["limit"]:
        if looped["on_limit"] == "stop":
            return _end(here, step, looped, index)
        raise LoopLimit(_name(step), looped["limit"], looped["until"])
    ready: list[Ready] = []
    lines: list[str] = []  # the limit in front of the turn

    def insert(connection: Connection) -> None:
        journal = here.journal
        gather = journal.widen(connection, here.run, step.idx, 1, {})
        first = journal.grow(connection, here.run, 2)
        begun = row(step, first, index, previous)
        journal.add(connection, here.run, [begun, _look(step, first, index, gather)], sent=True)
        if begun.waits_for is None:
            ready[:] = [begun.ready]
        else:
            lines[:] = [begun.waits_for]

    completed = growth.complete(here, step, str(index).encode(), insert)
    completed = completed._replace(gates=(*completed.gates, *lines))
    return Recorded(completed, ready if completed.won else [])


def row(step: Claimed, idx: int, index: int, previous: Json) -> PlannedStep:
    """The row of a turn: pure. Raises InputError where the first one's template does not fit `start`.

    The result of the turn before stays a reference; what the loop starts with is filled in.
    """
    looped: dict[str, Any] = (step.options or {})["loop"]
    known: dict[int | str, Json] = {"index": index}
    bindings = looped["bindings"] or []
    if index:
        bindings = [_after(binding, looped["last"]) for binding in bindings]
    else:
        known["previous"] = previous
    own = [binding for binding in bindings if not growth.sources(binding)]
    open_ = [binding for binding in bindings if growth.sources(binding)]
    options = {
        name: looped[name]
        for name in (
            "retry",
            "timeout",
            "on_failure",
            "join",
            "queue_timeout",
            "heartbeat",
            "in_doubt",
            "tenant",
        )
        if looped.get(name) is not None
    }
    options |= gates.of_item(looped.get("limits") or {}, known)
    line = gates.first_line(options)
    return PlannedStep(
        idx,
        f"{_name(step)}[{index}]",
        looped["action"],
        looped["queue"],
        looped["priority"],
        0,
        (idx + 1,),
        plan.bind(looped["inputs"], own, known, action=looped["action"], joins="join" in looped),
        [growth.partly(binding, known) for binding in open_] or None,
        tuple(sorted({source for binding in open_ for source in growth.sources(binding)})),
        options or None,
        rank=None if "rate" in options else step.rank,
        waits_for=line,
        fair=None if line is None else looped.get("fair"),
        expect=step.expect,
    )


def _look(step: Claimed, idx: int, index: int, gather: int) -> PlannedStep:
    """The row behind a turn."""
    options = step.options or {}
    looped = options["loop"]
    kept = {name: options[name] for name in ("on_failure",) if name in options}
    return PlannedStep(
        idx + 1,
        f"{_name(step)}{LOOK.format(index)}",
        plan.LOOP,
        step.queue,
        step.priority,
        1,
        (gather,),
        {"previous": None},
        [[["previous"], idx, []]],
        (idx,),
        {**kept, "loop": {**looped, "turn": index + 1, "last": idx}},
        rank=step.rank,
        expect=step.expect,
    )


def _after(binding: list[Json], last: int) -> list[Json]:
    """A binding with the row of the turn before in the place of `previous`."""
    at, parent, rest = binding
    if parent != "text":
        return [at, last if parent == "previous" else parent, rest]
    return [
        at,
        parent,
        [[last, part[1]] if not isinstance(part, str) and part[0] == "previous" else part for part in rest],
    ]


def _is_over(here: Here, looped: dict[str, Any], index: int, result: Json) -> bool:
    journal, until, run = here.journal, looped["until"], here.run
    if isinstance(looped.get("on_failure"), dict) and journal.failed(run, looped["last"]):
        return True  # the default is the loop's result
    params = journal.params(run) if expressions.names(until, turns=True).params else {}
    rows: dict[str, int] = looped.get("until_refs") or {}
    found = journal.results(run, rows.values()) if rows else {}
    steps = {name: found.get(idx) for name, idx in rows.items()}
    return expressions.is_over(until, params, steps, result, index)


def _end(here: Here, step: Claimed, looped: dict[str, Any], turns: int) -> Recorded:
    def tell(connection: Connection) -> None:
        here.journal.widen(connection, here.run, step.idx, 0, {"last": looped["last"]})

    return Recorded(growth.complete(here, step, str(turns).encode(), tell), [])


def _name(step: Claimed) -> str:
    """The loop's own name."""
    return step.name.rpartition("[?")[0] or step.name
