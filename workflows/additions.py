"""The steps that a run has besides those of its definition, as a picture shows them.

The law: pure. What the items of a map append under one name is one addition, like the items themselves, and
additions never form a circle, whatever the single steps do.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .plan import GATHER, GATHER_SUFFIX, INNER

BARRIER = f".{GATHER_SUFFIX}"  # ends the name of a row that only stands between appended steps and what waits

_ITEM = re.compile(r"\[[?\d]*\]")


class AppendedRow(NamedTuple):
    """A row that some step of the run has appended."""

    idx: int
    name: str
    action: str  # of a map, that of its items
    kind: str  # the row's own action
    state: str
    dependents: list[int]


@dataclass(slots=True)
class Addition:
    """One or more appended steps that are shown as one."""

    name: str
    action: str = ""
    is_map: bool = False
    parents: dict[str, None] = field(default_factory=dict)
    behind: dict[str, None] = field(default_factory=dict)  # steps of the definition that wait for it
    states: Counter[str] = field(default_factory=Counter)


def shown(name: str) -> str:
    """The name under which an appended step is shown: `each[7].search[2]` as `each[].search`."""
    return _ITEM.sub(GATHER_SUFFIX, name).removesuffix(GATHER_SUFFIX)


def additions(rows: Iterable[AppendedRow], others: Mapping[int, str]) -> list[Addition]:
    """The additions of a run, each behind its parents; `others` names the rows that were not appended."""
    every = sorted(rows)
    barriers = {row.idx: row for row in every if row.name.endswith(BARRIER)}
    every = [row for row in every if row.idx not in barriers]
    home = {row.idx: shown(row.name) for row in every}
    place: dict[str, int] = {}
    found: dict[str, Addition] = {}
    inner: dict[str, dict[str, str]] = defaultdict(dict)
    for row in every:
        name = home[row.idx]
        place.setdefault(name, row.idx)
        here = found.setdefault(name, Addition(name))
        here.action = here.action or row.action
        if row.kind in INNER:
            here.is_map = True
            inner[name].setdefault("result" if row.kind == GATHER else "grows", row.state)
        else:
            here.states[row.state] += 1
        for target in _targets(row, barriers):
            below = home.get(target)
            if below is None:
                here.behind.update({others[target]: None} if target in others else {})
            elif place.get(below, target) > place[name]:  # so that steps shown as one make no circle
                found.setdefault(below, Addition(below)).parents[name] = None
    for name, here in found.items():
        states = inner[name]
        if not here.states and states:  # a map that has no items, or not yet
            done = states.get("grows") == "succeeded"
            here.states[states.get("result" if done else "grows", "waiting")] += 1
        here.parents.pop(name, None)
        grower = shown(name.rpartition(".")[0])
        here.behind = {each: None for each in here.behind if shown(each) != _root(name)}
        if not here.parents:
            here.parents[grower] = None
    return sorted(found.values(), key=lambda each: place[each.name])


def _targets(row: AppendedRow, barriers: Mapping[int, AppendedRow]) -> Iterable[int]:
    for dependent in row.dependents:
        target = ~dependent if dependent < 0 else dependent
        if target in barriers:
            yield from _targets(barriers[target], barriers)
        else:
            yield target


def _root(name: str) -> str:
    """The step of the definition from which an addition grew."""
    return shown(name.partition(".")[0])
