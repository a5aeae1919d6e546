"""Limits as gates with lines in front of them: how they are called, and whose turn it is. Pure.

The law: a step behind a gate is never ready before it is let in. Its row names its gates with their limits, and
its rate; until it is let in it is parked in the line of the first of them that is full, and holds nothing. It is let
in through all of them at once, or not at all. So no order of locking is needed, and nobody waits for somebody
who waits.

    gate:key:K     steps that share the concurrency key K            as many at once as the step's `limit` says
    gate:runs:K    runs that share the workflow's concurrency key K  a run holds its place until it is over
    gate:run:ID    the steps of one run                              `max_parallel`
    gate:fair:Q    the steps of tenants on queue Q                   TRELLIS_FAIR_WINDOW; tenants take turns
    gate:rate:K    steps that share the rate K                       one more each period / n seconds

In every line tenants take turns; among the steps of one tenant the priority decides, then the age of the run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeGuard

from ..tasks.errors import DefinitionError
from .references import Hole, Reference, follow, parse, references, text_of

PREFIX = "gate:"
RATE = "gate:rate:"
RUNS = "gate:runs:"
FAIR = "gate:fair:"
ENTRY = "entry:"  # roots of a run whose representative stands in the run's line
KEY_MAX = 200  # characters of a key as they are; a longer one is known by its digest

_BRACES = re.compile(r"(?<!\$)\{((?:params\.|item\b|index\b)[^{}]*)\}")
_MARKED = re.compile("\x00(\\$\\{[^\x00]*\\})\x00")  # a reference in an f-string (references.Ref.__format__)
_OTHER = re.compile(r"\{[^{}]*\}?")

Known = Mapping[int | str, Any]


def key_line(key: str) -> str:
    """The line of a concurrency key of steps."""
    return f"gate:key:{short(key)}"


def runs_line(key: str) -> str:
    """The line of a concurrency key of runs."""
    return f"{RUNS}{short(key)}"


def run_line(run: str) -> str:
    """The line of a run's own steps."""
    return f"gate:run:{run}"


def fair_line(queue: str) -> str:
    """The line of the tenants on a queue."""
    return f"{FAIR}{short(queue)}"


def rate_line(key: str) -> str:
    """The line of a rate."""
    return f"{RATE}{short(key)}"


def short(key: str) -> str:
    """A key that fits an index: itself, or its beginning and its digest."""
    if len(key) <= KEY_MAX:
        return key
    return f"{key[:100]}…{hashlib.sha256(key.encode()).hexdigest()}"


def is_line(waits_for: str | None) -> TypeGuard[str]:
    """Whether this is what a step in a line waits for."""
    return waits_for is not None and waits_for.startswith(PREFIX)


def canonical_key(text: str) -> str:
    """A key in the notation of definitions: `customer:{params.id}` means `customer:${params.id}`."""
    return _BRACES.sub(lambda found: f"${{{found[1]}}}", _MARKED.sub(r"\1", text))


def template(text: str, *, item: bool) -> Hole:
    """A canonical key, parsed. Raises DefinitionError for what a key cannot hold.

    item: whether it may use the item and index of a map.
    """
    if not text:
        raise DefinitionError("a key is a text of at least one character")
    hole = parse(text)
    for reference in references(hole):
        if reference.kind == "steps":
            raise DefinitionError(
                f"the key {text!r} uses {reference}, which is known only at run time: a key is made of params"
                + (", ${item} and ${index}" if item else "")
            )
        if reference.kind != "params" and not item:
            raise DefinitionError(f"the key {text!r} uses {reference} outside a map: a key is made of params")
    parts = [hole] if isinstance(hole, str) else [] if isinstance(hole, Reference) else hole
    for part in parts:
        if isinstance(part, str) and (odd := _OTHER.search(part)) is not None:
            raise DefinitionError(
                f"the key {text!r} holds {odd[0]!r}, which is no reference: write {{params.NAME}}"
                + (", {item}, {item.FIELD} or {index}" if item else "")
            )
    return hole


def known_parts(hole: Hole, params: Mapping[str, Any]) -> list[Any]:
    """A key with its params filled in: texts, and `[kind, path]` for what differs from item to item.

    Raises LookupError where a param does not have the path.
    """
    parts: list[Any] = []
    for part in (hole,) if isinstance(hole, str | Reference) else hole:
        if isinstance(part, str):
            parts.append(part)
        elif part.kind == "params":
            parts.append(text_of(follow(params[part.name], part.path)))
        else:
            parts.append([part.kind, list(part.path)])
    return parts


def key_of(parts: Sequence[Any], known: Known) -> str:
    """The key of an item. Raises LookupError where the item does not have the path."""
    return "".join(
        part if isinstance(part, str) else text_of(follow(known[part[0]], part[1])) for part in parts
    )


def of_item(limits: Mapping[str, Any], known: Known) -> dict[str, Any]:
    """The gates and the rate of one item of a map, as its row states them."""
    found: dict[str, Any] = {}
    gates = list(limits.get("gates") or ())
    if "key" in limits:
        parts, limit = limits["key"]
        gates.insert(0, [key_line(key_of(parts, known)), limit])
    if gates:
        found["gates"] = gates
    if "rate" in limits:
        parts, count, per = limits["rate"]
        found["rate"] = [rate_line(key_of(parts, known)), count, per]
    return found


def first_line(options: Mapping[str, Any] | None) -> str | None:
    """Where a step with these options stands when its turn has come; None: it has no limit."""
    if options is None:
        return None
    gates = options.get("gates")
    if gates:
        return str(gates[0][0])
    rate = options.get("rate")
    return str(rate[0]) if rate else None


def lines_of(options: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The gates in which an admitted step with these options holds a place."""
    return tuple(gate[0] for gate in (options or {}).get("gates") or ())


@dataclass(frozen=True, slots=True)
class Scope:
    """What a run's limits depend on besides its definition and its parameters."""

    run: str = ""  # its id
    tenant: str | None = None  # whose it is
    window: int = 0  # steps of tenants at once on a queue


NO_SCOPE = Scope()


@dataclass(frozen=True, slots=True)
class Shared:
    """What limits all steps of a run."""

    gates: tuple[list[Any], ...] = ()  # gates of every step: [line, limit]
    tenant: str | None = None
    window: int = 0

    @classmethod
    def of(cls, max_parallel: int | None, scope: Scope) -> Shared | None:
        """The limits of a run; None where it has none."""
        if max_parallel is None and scope.tenant is None:
            return None
        shared = () if max_parallel is None else ([run_line(scope.run), max_parallel],)
        return cls(shared, scope.tenant, scope.window)

    def before(self, queue: str) -> list[list[Any]]:
        """The gates of a step on this queue."""
        fair = () if self.tenant is None else ([fair_line(queue), self.window],)
        return [*self.gates, *fair]


# --- whose turn it is


class Waiter(NamedTuple):
    """A step in a line."""

    run: str
    idx: int
    fair: str
    gates: list[list[Any]]  # [line, limit]
    rate: list[Any] | None  # [line, n, seconds]
    entry: list[Any] | None  # [line, limit] of its run, for which it stands


class Gate(NamedTuple):
    """A gate as it is now."""

    used: int = 0  # places that are held
    wait: float = 0.0  # seconds until the next slot of a rate


@dataclass
class Decision:
    """What is to be done, in terms of steps."""

    admitted: list[tuple[Waiter, float]] = field(default_factory=list)  # and seconds until their slot
    moved: list[tuple[Waiter, str]] = field(
        default_factory=list
    )  # and the line in which they wait from now on
    entered: list[tuple[Waiter, str]] = field(default_factory=list)  # whose runs may begin, and their line
    turns: dict[str, str] = field(default_factory=dict)  # line: the tenant whose turn was last
    next_slots: dict[str, float] = field(default_factory=dict)  # line: seconds until the next free slot
    roomy: set[str] = field(default_factory=set)  # lines that had room for more waiters than were looked at


def others(waiting: Mapping[str, Sequence[Waiter]]) -> set[str]:
    """The gates that the waiters of some lines must pass besides those."""
    found = {
        line
        for waiters in waiting.values()
        for each in waiters
        if each.entry is None
        for line in (*[gate[0] for gate in each.gates], *([each.rate[0]] if each.rate else ()))
    }
    return found - waiting.keys()


def decide(waiting: Mapping[str, Sequence[Waiter]], gates: Mapping[str, Gate], horizon: float) -> Decision:
    """Who is let in: each line in order, until the first that finds its own gate full.

    A waiter that finds another of its gates full goes to that line. Everybody is held to the limit that it states
    itself. Slots of a rate are given out as far as they begin within `horizon` seconds.
    """
    found = Decision()
    used = {line: gate.used for line, gate in gates.items()}
    slots = {line: max(0.0, gate.wait) for line, gate in gates.items()}
    for line, waiters in waiting.items():
        for each in waiters:
            if _stands_for_run(each, line):
                if _is_full(each, line, used, slots, horizon):
                    break
                used[line] += 1
                found.entered.append((each, line))
                found.turns[line] = each.fair
                continue
            full = _full(each, used, slots, horizon)
            if full == line:
                break
            found.turns[line] = each.fair
            if full is not None:
                found.moved.append((each, full))
                continue
            for gate, _ in each.gates:
                used[gate] += 1
            delay = 0.0
            if each.rate is not None:
                name, count, per = each.rate
                delay = slots[name]
                slots[name] = found.next_slots[name] = delay + per / count
            found.admitted.append((each, delay))
        if waiters and not _is_full(waiters[-1], line, used, slots, horizon):
            found.roomy.add(line)
    return found


def _stands_for_run(each: Waiter, line: str) -> bool:
    return each.entry is not None and line.startswith(RUNS)


def _is_full(
    each: Waiter, line: str, used: Mapping[str, int], slots: Mapping[str, float], horizon: float
) -> bool:
    """Whether the line is full for one who stands in it."""
    if _stands_for_run(each, line):
        assert each.entry is not None
        return bool(used[line] >= each.entry[1])
    if line.startswith(RATE):
        return slots[line] > horizon
    return any(gate == line and used[line] >= limit for gate, limit in each.gates)


def _full(each: Waiter, used: Mapping[str, int], slots: Mapping[str, float], horizon: float) -> str | None:
    for line, limit in each.gates:
        if used[line] >= limit:
            return str(line)
    if each.rate is not None and slots[each.rate[0]] > horizon:
        return str(each.rate[0])
    return None


def union(*lines: Iterable[str]) -> list[str]:
    """Lines, each once, in order: the same order for everybody."""
    return sorted({line for each in lines for line in each})
