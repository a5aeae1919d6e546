"""What a picture of a workflow shows: its steps as boxes, few enough to be read.

The law: pure, and quick for any size. A map is one box, whatever number of items a run made of it.
Beyond `LIMIT` boxes, steps that look the same (same action, same parents, same children) become one,
then steps in a row with the same action, then all of one level and action; what is left beyond
`CUT` boxes is cut off, and the picture says so.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from . import graph
from .additions import Addition
from .plan import GATHER_SUFFIX
from .spec import Default, StepSpec, WorkflowSpec

LIMIT = 300
CUT = 2000

# From the most telling to the least: a box of many steps has the first that occurs among them.
STATES = ("failed", "running", "parked", "ready", "waiting", "cancelled", "skipped", "succeeded")
SYMBOLS = {
    "failed": "✗",
    "running": "▶",
    "parked": "‖",
    "ready": "○",
    "waiting": "·",
    "cancelled": "⊘",
    "skipped": "-",
    "succeeded": "✓",
}
_ITEM = re.compile(r"^(.+)\[\d+\]$")


@dataclass(slots=True)
class Box:
    """One box: a step, or several that are shown as one."""

    name: str
    action: str
    parents: tuple[str, ...]
    steps: tuple[str, ...]
    is_map: bool = False
    condition: str = ""
    notes: tuple[str, ...] = ()
    states: Counter[str] = field(default_factory=Counter)

    @property
    def state(self) -> str | None:
        """The state to show; None where nothing is known."""
        return next((state for state in STATES if self.states[state]), None)

    @property
    def title(self) -> str:
        """The name to show."""
        return self.name if len(self.steps) < 2 else f"{self.steps[0]} … {self.steps[-1]}"

    @property
    def detail(self) -> str:
        """What a box of several says about them, such as `12 steps` or `8/12`."""
        total = sum(self.states.values())
        if total > 1:
            return f"{self.states['succeeded']}/{total} succeeded"
        if len(self.steps) > 1:
            return f"{len(self.steps):,} steps"
        return "map" if self.is_map else ""


@dataclass(frozen=True, slots=True)
class Overview:
    """The boxes in a topological order, and how many steps did not fit."""

    boxes: list[Box]
    left_out: int


def overview(
    spec: WorkflowSpec,
    states: Mapping[str, str] | None = None,
    added: Sequence[Addition] = (),
    *,
    limit: int = LIMIT,
) -> Overview:
    """The boxes of a workflow; `states` gives those of a run's steps (and of a map's items) by name.

    added: what the run's steps have appended.
    """
    parents = graph.parents(spec)
    order = graph.order(parents, workflow=spec.name)
    items = _item_states(states or {})
    boxes = {
        name: _box(
            name, spec.steps[name], parents[name], _states(name, spec.steps[name], states or {}, items)
        )
        for name in order
    }
    if added:
        boxes = _with(boxes, added)
    for fold in (_alike, _in_a_row, _by_level):
        if len(boxes) > limit:
            boxes = fold(boxes)
    kept = list(boxes.values())[:CUT]
    names = {box.name for box in kept}
    for box in kept:
        box.parents = tuple(parent for parent in box.parents if parent in names)
    return Overview(kept, sum(len(box.steps) for box in list(boxes.values())[CUT:]))


def _with(boxes: dict[str, Box], added: Sequence[Addition]) -> dict[str, Box]:
    """The boxes of the definition with those that were appended, in a topological order."""
    for each in added:
        parents = tuple(parent for parent in each.parents if parent in boxes)
        boxes[each.name] = Box(
            each.name,
            each.action,
            parents,
            (each.name,),
            each.is_map,
            notes=("appended",),
            states=each.states,
        )
        for below in each.behind:
            boxes[below].parents = (*boxes[below].parents, each.name)
    order = graph.order({name: box.parents for name, box in boxes.items()})
    return {name: boxes[name] for name in order}


def _box(name: str, step: StepSpec, parents: tuple[str, ...], states: Counter[str]) -> Box:
    return Box(
        name,
        step.action,
        parents,
        (name,),
        step.repeats,
        step.when or "",
        tuple(_notes(step)),
        states,
    )


def _notes(step: StepSpec) -> Iterable[str]:
    if step.map is not None and step.map.concurrency is not None:
        yield f"{step.map.concurrency} at once"
    if step.loop is not None:
        yield f"until {step.loop.until}, at most {step.loop.limit:,} times"
    if step.map is not None and step.map.on_item_failure != "fail":
        yield f"{step.map.on_item_failure} failed items"
    if step.join == "any":
        yield "joins"
    if step.retry is not None:
        yield f"{step.retry.attempts} attempts"
    if step.timeout is not None:
        yield f"timeout {step.timeout:g} s"
    yield from _limits(step)
    if step.queue is not None:
        yield f"queue {step.queue}"
    if step.priority is not None:
        yield f"priority {step.priority}"
    if isinstance(step.on_failure, Default):
        yield "a default on failure"
    elif step.on_failure is not None:
        yield f"{step.on_failure} on failure"


def _limits(step: StepSpec) -> Iterable[str]:
    if step.concurrency_key is not None:
        yield f"{step.limit or 1} at once of {step.concurrency_key}"
    if step.rate is not None:
        yield f"{step.rate.limit} in {step.rate.per:g} s of {step.rate.key}"
    if step.queue_timeout is not None:
        yield f"queue timeout {step.queue_timeout:g} s"
    if step.heartbeat is not None:
        yield f"heartbeat {step.heartbeat:g} s"


def _item_states(states: Mapping[str, str]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for name, state in states.items():
        item = _ITEM.match(name)
        if item is not None:
            found[item[1]][str(state)] += 1
    return found


def _states(
    name: str, step: StepSpec, states: Mapping[str, str], items: Mapping[str, Counter[str]]
) -> Counter[str]:
    if name not in states:
        return Counter()
    state = str(states[name])
    if not step.repeats or state != "succeeded":
        return Counter({state: 1})
    # The map itself has succeeded when its items are there; what counts then are they, or what gathers them.
    return items.get(name) or Counter({str(states.get(name + GATHER_SUFFIX, state)): 1})


def _alike(boxes: dict[str, Box]) -> dict[str, Box]:
    """Steps with the same action, parents and children as one box."""
    children: dict[str, list[str]] = defaultdict(list)
    for box in boxes.values():
        for parent in box.parents:
            children[parent].append(box.name)
    return _merged(
        boxes,
        {
            name: (box.action, box.is_map, frozenset(box.parents), tuple(children[name]))
            for name, box in boxes.items()
        },
    )


def _in_a_row(boxes: dict[str, Box]) -> dict[str, Box]:
    """Steps that follow each other, alone and with the same action, as one box."""
    count: Counter[str] = Counter(parent for box in boxes.values() for parent in box.parents)
    head: dict[str, Hashable] = {}
    for name, box in boxes.items():
        before = boxes[box.parents[0]] if len(box.parents) == 1 else None
        joined = before is not None and count[before.name] == 1 and before.action == box.action
        head[name] = head[before.name] if joined and before is not None else name
    return _merged(boxes, head)


def _by_level(boxes: dict[str, Box]) -> dict[str, Box]:
    """All steps of one level with the same action as one box."""
    depth = graph.depths({name: box.parents for name, box in boxes.items()})
    return _merged(boxes, {name: (depth[name], box.action) for name, box in boxes.items()})


def _merged(boxes: dict[str, Box], group: Mapping[str, Hashable]) -> dict[str, Box]:
    first: dict[Hashable, str] = {}
    home = {name: first.setdefault(group[name], name) for name in boxes}
    steps: dict[str, list[str]] = defaultdict(list)
    parents: dict[str, dict[str, None]] = defaultdict(dict)
    states: dict[str, Counter[str]] = defaultdict(Counter)
    conditions: dict[str, dict[str, None]] = defaultdict(dict)
    for name, box in boxes.items():
        steps[home[name]].extend(box.steps)
        states[home[name]].update(box.states)
        conditions[home[name]][box.condition] = None
        parents[home[name]].update(
            (home[parent], None) for parent in box.parents if home[parent] != home[name]
        )
    merged = {
        name: Box(
            name,
            boxes[name].action,
            tuple(parents[name]),
            tuple(steps[name]),
            boxes[name].is_map,
            boxes[name].condition if len(conditions[name]) == 1 else "",
            boxes[name].notes if len(steps[name]) == 1 else (),
            states[name],
        )
        for name in steps
    }
    order = graph.order({name: box.parents for name, box in merged.items()})
    return {name: merged[name] for name in order}
