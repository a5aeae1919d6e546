"""The same definition as a native Celery canvas: for those who have only a broker, and as a yardstick.

The law: nothing is journalled here. Each signature is the action's own task; the results that later
steps need travel with the messages (the carry, `{step: result}`), pruned at every step to what is still
needed. The shape is the closest that Celery has: a chain where the steps follow each other, a group where
they are independent, a chord where a group is followed by a step; any other shape goes level by level,
which only makes some steps wait longer than they had to.

Parallel steps and chords need a Celery result backend. What the last part returns (one carry, or the
list of a group's) holds the results of its steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from celery import group, signature
from celery.canvas import _chain

from ..tasks.app import app
from ..tasks.errors import DefinitionError
from . import graph, kinds, plan, secret
from .contract import Contract
from .plan import PlannedStep
from .registry import Catalogue
from .spec import WorkflowSpec

_STEP_OPTIONS = (
    "map", "loop", "when", "join", "on_failure", "concurrency_key", "rate", "queue_timeout", "heartbeat",
)  # fmt: skip
_RUN_OPTIONS = ("concurrency_key", "max_parallel", "fair_key", "deadline")

STEP = "trellis_canvas"  # the keyword by which an action knows that it runs in a canvas

Branch = list[str]  # steps one after the other
Part = list[Branch]  # branches side by side


def compile(spec: WorkflowSpec, params: Mapping[str, Any], catalogue: Catalogue) -> Any:  # noqa: A001
    """A validated definition with checked parameters as a signature, ready for `apply_async()`.

    Raises DefinitionError for steps that need the engine.
    """
    _refuse_durable(spec)
    parents = graph.parents(spec)
    rows = {row.name: row for row in plan.plan(spec, params, catalogue, "").steps}
    layout = parts(parents)
    writer = _Writer(rows, layout, catalogue)
    signatures = [writer.part(number, part) for number, part in enumerate(layout)]
    # `_chain` and not `chain`: the public name folds its members two by two, which takes seconds for fifty
    # chords in a row; what Celery makes of both when they are applied is the same.
    return signatures[0] if len(signatures) == 1 else _chain(*signatures)


def parts(parents: graph.Parents) -> list[Part]:
    """The layout: parts one after the other, each of branches side by side, which are chains of steps."""
    found: list[Part] = []
    segment: list[str] = []
    waists = _waists(parents)
    for name in graph.order(parents):
        if name in waists:
            found.extend(_segment(parents, segment))
            found.append([[name]])
            segment = []
        else:
            segment.append(name)
    found.extend(_segment(parents, segment))
    return found


def _waists(parents: graph.Parents) -> set[str]:
    """The steps that every other step comes before or behind. Linear: at such a step, and only there, all
    steps so far lead to it, and it leads to all that are left."""
    order = graph.order(parents)
    below = graph.children(parents)
    reached = _alone(order, parents)
    return reached & _alone(order[::-1], below)


def _alone(order: Sequence[str], before: Mapping[str, Iterable[str]]) -> set[str]:
    """The steps that, when they come, are the only end of all that came so far."""
    found: set[str] = set()
    ends: set[str] = set()
    for name in order:
        ends.difference_update(before[name])
        ends.add(name)
        if len(ends) == 1:
            found.add(name)
    return found


def _segment(parents: graph.Parents, names: list[str]) -> list[Part]:
    """Steps between two waists: side by side where they are chains that do not touch, else level by level."""
    members = set(names)
    inside = {name: tuple(parent for parent in parents[name] if parent in members) for name in names}
    below = graph.children(inside)
    if all(len(above) <= 1 for above in inside.values()) and all(len(each) <= 1 for each in below.values()):
        return [[_branch(name, below) for name, above in inside.items() if not above]] if names else []
    return [[[name] for name in level] for level in graph.levels(inside)]


def _branch(name: str, below: Mapping[str, list[str]]) -> Branch:
    found = [name]
    while below[found[-1]]:
        found.append(below[found[-1]][0])
    return found


def _refuse_durable(spec: WorkflowSpec) -> None:
    secret.refuse(spec.params, "a canvas carries it through the broker as it is", spec.name)
    if spec.then is not None:
        problem = "then needs the engine: leave it out, and give the canvas its link"
        raise DefinitionError(problem, workflow=spec.name)
    for option, undo in (("on_failure", spec.on_failure), ("on_cancel", spec.on_cancel)):
        for name in undo:
            raise DefinitionError(
                f"{option} steps need the engine, a Celery canvas has nothing like them: start the workflow with "
                "Client.start, or leave them out",
                workflow=spec.name,
                step=name,
            )
    for option in _RUN_OPTIONS:
        if getattr(spec, option) is not None:
            raise DefinitionError(
                f"{option} needs the engine, a Celery canvas has nothing like it: start the workflow "
                f"with Client.start, or leave {option} out",
                workflow=spec.name,
            )
    for name, step in spec.steps.items():
        for option in _STEP_OPTIONS:
            value = getattr(step, option)
            if value is not None and (option, value) != ("join", "all"):
                raise DefinitionError(
                    f"{option} needs the engine, a Celery canvas has nothing like it: start the workflow "
                    f"with Client.start, or leave {option} out",
                    workflow=spec.name,
                    step=name,
                )
        if step.action in kinds.CONTRACTS:
            raise DefinitionError(
                f"{step.action} needs the engine, a Celery canvas cannot wait: start the workflow with Client.start",
                workflow=spec.name,
                step=name,
            )


class _Writer:
    """Writes signatures, and works out which results each message has to carry."""

    def __init__(self, rows: Mapping[str, PlannedStep], layout: list[Part], catalogue: Catalogue) -> None:
        self.rows = rows
        self.names = {row.idx: row.name for row in rows.values()}
        self.catalogue = catalogue
        self.final = len(layout) - 1
        part_of = {name: number for number, part in enumerate(layout) for branch in part for name in branch}
        self.last_use: dict[str, int] = {}  # the last part that needs a step's result
        for name, number in part_of.items():
            for source in self._needs(name):
                self.last_use[source] = max(number, self.last_use.get(source, -1))
        self.carried: list[str] = []  # what a part receives

    def part(self, number: int, branches: Part) -> Any:
        """The signature of a part. The first branch alone carries on what others made before."""
        written = []
        leaving: list[str] = []
        for position, branch in enumerate(branches):
            signatures, kept = self._branch(number, branch, passes=position == 0)
            written.append(signatures[0] if len(signatures) == 1 else _chain(*signatures))
            leaving.extend(kept)
        self.carried = leaving
        return written[0] if len(written) == 1 else group(written)

    def _branch(self, number: int, branch: Branch, *, passes: bool) -> tuple[list[Any], list[str]]:
        last_inside = {source: place for place, name in enumerate(branch) for source in self._needs(name)}
        carry = self.carried
        made: set[str] = set()
        signatures = []
        for place, name in enumerate(branch):
            made.add(name)
            leaving = {
                source
                for source in (*carry, name)
                if last_inside.get(source, -1) > place
                or ((passes or source in made) and self.last_use.get(source, -1) > number)
            }
            keep = [source for source in carry if source in leaving]
            own = name in leaving or (number == self.final and place == len(branch) - 1)
            signatures.append(self._signature(name, keep, own))
            carry = [*keep, name] if own else keep
        return signatures, carry

    def _needs(self, name: str) -> list[str]:
        return [self.names[idx] for idx in self.rows[name].refs]

    def _signature(self, name: str, keep: list[str], own: bool) -> Any:
        row = self.rows[name]
        step: dict[str, Any] = {
            "step": name
        }  # only what is needed: a chain sends all its signatures every time
        if row.inputs:
            step["inputs"] = row.inputs
        if keep:
            step["keep"] = keep
        if own:
            step["own"] = True
        if row.bindings:
            step["bindings"] = row.bindings
            step["refs"] = {self.names[idx]: idx for idx in row.refs}
        options = row.options or {}
        if "retry" in options:
            step["retry"] = options["retry"]
        # Chords count results, which the application otherwise throws away.
        celery_options: dict[str, Any] = {"ignore_result": False}
        if row.queue:
            celery_options["queue"] = row.queue
        if "timeout" in options:
            celery_options["soft_time_limit"] = options["timeout"]
        info = self.catalogue.get(row.action)
        if info is not None and row.priority != info.priority:
            celery_options["priority"] = 9 - row.priority  # in Celery on Redis 0 is the most urgent
        return signature(row.action, kwargs={STEP: step}, options=celery_options, app=app)


def run_canvas(
    call: Callable[[Mapping[str, Any]], Any], contract: Contract, step: Mapping[str, Any], carry: Any = None
) -> dict[str, Any]:
    """What an action does in a canvas: fill its inputs from the carry, run, and carry on what is needed."""
    results = _merged(carry)
    refs: dict[str, int] = step.get("refs", {})
    inputs = plan.bind(
        step.get("inputs", {}),
        step.get("bindings"),
        {idx: results[name] for name, idx in refs.items()},
        action=contract.name,
        names={idx: name for name, idx in refs.items()},
    )
    value = json.loads(contract.dump(call(inputs)))
    leaving = {name: results[name] for name in step.get("keep", ())}
    if step.get("own"):
        leaving[step["step"]] = value
    return leaving


def _merged(carry: Any) -> dict[str, Any]:
    """One carry from a predecessor's, or from those of all members of a group."""
    if isinstance(carry, Mapping):
        return dict(carry)
    found: dict[str, Any] = {}
    for each in carry or ():
        found.update(_merged(each))
    return found
