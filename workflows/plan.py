"""From a definition and its parameters to the rows of a run.

The law: pure, linear, without recursion over steps. Rows come in a topological order (parents before
children, else in the order of the definition). A row's inputs are a template: parameters are already in
their places, and where a step's result belongs there is None and a binding that says what goes there.

A binding is `[at, parent, path]` (the value itself) or `[at, "text", [literal | [parent, path], …]]`;
`at` and `path` are lists of keys and positions; `parent` is the row of a step, or "item" / "index"
inside the template of a map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..tasks.errors import DefinitionError, ParameterError
from . import collector, expressions, graph
from .binding import Bindings, bind, filled
from .records import Ready
from .references import Hole, Path, Reference, follow, text_of
from .registry import PLAIN, ActionInfo, Catalogue, unknown_action
from .spec import Default, StepSpec, UndoSpec, WorkflowSpec

__all__ = ["EXPAND", "GATHER", "GATHER_SUFFIX", "Plan", "PlannedStep", "bind", "plan"]

EXPAND = "trellis.map"
GATHER = "trellis.gather"
GATHER_SUFFIX = "[]"


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One row of a run; the fields are those of the journal."""

    idx: int
    name: str
    action: str
    queue: str
    priority: int
    missing: int
    dependents: tuple[int, ...]
    inputs: dict[str, Any]
    bindings: Bindings | None
    refs: tuple[int, ...]
    options: dict[str, Any] | None
    rank: float | None = None  # seconds of the longest path that begins with it, where that decides its turn
    waits_for: str | None = (
        None  # the limit in front of it: it is parked, not ready, once its parents are done
    )
    fair: str | None = None  # whose turn it is to be, where tenants take turns
    expect: float | None = None  # seconds that it is expected to take, where it has a rank

    @property
    def ready(self) -> Ready:
        """The same as a step to publish."""
        return Ready(
            self.idx, self.name, self.action, self.queue, self.priority, self.rank, self.expect, False
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """All rows; `sinks` counts those that nobody waits for."""

    steps: list[PlannedStep]
    sinks: int
    undo: dict[
        str, list[dict[str, Any]]
    ]  # the state in which a run ends → the steps that then follow, as rows


def plan(spec: WorkflowSpec, params: Mapping[str, Any], catalogue: Catalogue, default_queue: str) -> Plan:
    """Compile a validated definition with checked parameters into rows."""
    with collector.paused():
        return _plan(spec, params, catalogue, default_queue)


def _plan(spec: WorkflowSpec, params: Mapping[str, Any], catalogue: Catalogue, default_queue: str) -> Plan:
    parents = graph.parents(spec)
    order = graph.order(parents, workflow=spec.name)
    first: dict[str, int] = {}  # the row that waits for a step's parents
    last: dict[str, int] = {}  # the row that holds a step's result: the same, but for a map
    count = 0
    for name in order:
        first[name] = count
        count += 1 if spec.steps[name].map is None else 2
        last[name] = count - 1
    dependents: list[list[int]] = [[] for _ in range(count)]
    for name in order:
        for parent in parents[name]:
            dependents[last[parent]].append(first[name])  # ascending, because `order` is
    builder = _Builder(spec.name, params, catalogue, default_queue, last)
    rows: list[PlannedStep] = []
    for name in order:
        step = spec.steps[name]
        below = tuple(dependents[last[name]])
        if step.map is None:
            rows.append(builder.row(first[name], name, step, len(parents[name]), below))
        else:
            rows.extend(builder.map_rows(first[name], name, step, len(parents[name]), below))
    undo = {"failed": builder.undo(spec.on_failure), "cancelled": builder.undo(spec.on_cancel)}
    return Plan(
        rows, sum(1 for row in rows if not row.dependents), {end: each for end, each in undo.items() if each}
    )


class _Builder:
    """What the rows of one plan have in common."""

    def __init__(
        self,
        workflow: str,
        params: Mapping[str, Any],
        catalogue: Catalogue,
        default_queue: str,
        rows: Mapping[str, int],
    ) -> None:
        self.workflow = workflow
        self.params = params
        self.catalogue = catalogue
        self.default_queue = default_queue
        self.rows = rows
        self._plain: dict[str, bool] = {}  # action: whether it has no retries of its own

    def row(
        self, idx: int, name: str, step: StepSpec, missing: int, dependents: tuple[int, ...]
    ) -> PlannedStep:
        """The row of an ordinary step."""
        info = self._info(name, step)
        needed: set[int] = set()
        if not step.holes:
            inputs, bindings = step.inputs, None
        else:
            inputs, bindings = self.template(step.inputs, step.holes, needed)
        options = self._running(step, info)
        if step.when is not None:
            options = {**(options or {}), **self._when(step, needed)}
        return PlannedStep(
            idx,
            name,
            step.action,
            step.queue or info.queue or self.default_queue,
            info.priority if step.priority is None else step.priority,
            missing,
            dependents,
            inputs,
            bindings,
            tuple(sorted(needed)) if needed else (),
            options,
        )

    def map_rows(
        self, idx: int, name: str, step: StepSpec, missing: int, dependents: tuple[int, ...]
    ) -> tuple[PlannedStep, PlannedStep]:
        """The two rows of a map: one makes the items' rows, the other collects their results."""
        assert step.map is not None
        info = self._info(name, step)
        priority = info.priority if step.priority is None else step.priority
        needed: set[int] = set()
        inputs, bindings = self.template({"over": step.map.over}, _below("over", step.map.holes), needed)
        item_inputs, item_bindings = self.template(step.inputs, step.holes, needed)
        mapped: dict[str, Any] = {
            "action": step.action,
            "queue": step.queue or info.queue or self.default_queue,
            "priority": priority,
            "inputs": item_inputs,
            "bindings": item_bindings,
            "concurrency": step.map.concurrency,
            "retry": None,
            "timeout": None,
            "on_failure": None,
            **(self._running(step, info) or {}),
        }
        options = {"map": mapped, **self._when(step, needed)}
        expand = PlannedStep(
            idx,
            name,
            EXPAND,
            self.default_queue,
            priority,
            missing,
            (idx + 1,),
            inputs,
            bindings,
            tuple(sorted(needed)),
            options,
        )
        gather = PlannedStep(
            idx + 1,
            name + GATHER_SUFFIX,
            GATHER,
            self.default_queue,
            priority,
            1,
            dependents,
            {},
            None,
            (),
            None,
        )
        return expand, gather

    def undo(self, steps: Mapping[str, UndoSpec]) -> list[dict[str, Any]]:
        """Steps that may follow the end of the run: planned now, so that they need no definition then."""
        found = []
        for name, each in steps.items():
            row = self.row(0, name, each.step, 0, ())
            found.append(
                {
                    "of": None if each.of is None else self.rows[each.of],
                    "name": name,
                    "action": row.action,
                    "queue": row.queue,
                    "priority": row.priority,
                    "inputs": row.inputs,
                    "bindings": row.bindings,
                    "refs": list(row.refs),
                    "options": row.options,
                }
            )
        return found

    def template(
        self, value: dict[str, Any], holes: tuple[tuple[Path, Hole], ...], needed: set[int]
    ) -> tuple[dict[str, Any], Bindings | None]:
        """Inputs with the parameters in place, and the bindings of what is known only later."""
        bindings: Bindings = []
        places: list[tuple[Path, Any]] = []
        for at, hole in holes:
            found: Any = None
            if isinstance(hole, str):
                found = hole
            elif isinstance(hole, Reference):
                if hole.kind == "params":
                    found = self._param(hole)
                else:
                    bindings.append([list(at), self._row(hole, needed), list(hole.path)])
            else:
                parts = self._text(hole, needed)
                if len(parts) == 1 and isinstance(parts[0], str):
                    found = parts[0]
                else:
                    bindings.append([list(at), "text", parts])
            places.append((at, found))
        return filled(value, places), bindings or None

    def _text(self, hole: tuple[str | Reference, ...], needed: set[int]) -> list[Any]:
        parts: list[Any] = []
        for part in hole:
            if isinstance(part, Reference) and part.kind != "params":
                parts.append([self._row(part, needed), list(part.path)])
                continue
            text = part if isinstance(part, str) else text_of(self._param(part))
            if parts and isinstance(parts[-1], str):
                parts[-1] += text
            else:
                parts.append(text)
        return parts

    def _row(self, reference: Reference, needed: set[int]) -> int | str:
        if reference.kind != "steps":
            return reference.kind
        row = self.rows[reference.name]
        needed.add(row)
        return row

    def _param(self, reference: Reference) -> Any:
        try:
            return follow(self.params[reference.name], reference.path)
        except KeyError:
            raise ParameterError({reference.name: "is missing"}, workflow=self.workflow) from None
        except LookupError as error:
            raise ParameterError({reference.name: str(error)}, workflow=self.workflow) from None

    def _when(self, step: StepSpec, needed: set[int]) -> dict[str, Any]:
        if step.when is None:
            return {}
        rows = {name: self.rows[name] for name in sorted(expressions.names(step.when).steps)}
        needed.update(rows.values())
        return {"when": step.when, "when_refs": rows}

    def _running(self, step: StepSpec, info: ActionInfo) -> dict[str, Any] | None:
        """How the action is run, where that is no plain default: as the step says, or else the action."""
        retry = info.retry if step.retry is None else step.retry
        timeout = info.timeout if step.timeout is None else step.timeout
        # Compared by identity first: comparing two models costs more than the rest of a row.
        plain = retry is info.retry and self._is_plain(info)
        if plain and timeout is None and step.on_failure is None:
            return None
        options: dict[str, Any] = {}
        if not plain and retry != PLAIN:
            options["retry"] = retry.model_dump(exclude_defaults=True)
        if timeout is not None:
            options["timeout"] = timeout
        if step.on_failure is not None:
            failure = step.on_failure
            options["on_failure"] = {"default": failure.default} if isinstance(failure, Default) else failure
        return options or None

    def _is_plain(self, info: ActionInfo) -> bool:
        known = self._plain.get(info.name)
        if known is None:
            known = self._plain[info.name] = info.retry == PLAIN
        return known

    def _info(self, name: str, step: StepSpec) -> ActionInfo:
        info = self.catalogue.get(step.action)
        if info is None:
            raise DefinitionError(
                unknown_action(step.action, self.catalogue),
                workflow=self.workflow,
                step=name,
            )
        return info


def _below(key: str, holes: tuple[tuple[Path, Hole], ...]) -> tuple[tuple[Path, Hole], ...]:
    return tuple(((key, *at), hole) for at, hole in holes)
