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
from dataclasses import dataclass, field, replace
from typing import Any

from ..tasks.errors import DefinitionError, ParameterError
from . import collector, expressions, gates, graph
from .binding import Bindings, bind, filled
from .records import Ready
from .references import Hole, Path, Reference, follow, references, text_of
from .registry import PLAIN, ActionInfo, Catalogue, unknown_action
from .spec import CHILD, TASK, Default, StepSpec, UndoSpec, WorkflowSpec

__all__ = ["EXPAND", "GATHER", "GATHER_SUFFIX", "INNER", "LOOP", "Plan", "PlannedStep", "bind", "plan"]

EXPAND = "trellis.map"
GATHER = "trellis.gather"
GATHER_SUFFIX = "[]"
LOOP = "trellis.loop"
INNER = (EXPAND, GATHER, LOOP)  # what the engine runs on its own account: no steps that anybody wrote
_OWN = "trellis."  # the engine's own kinds of step, which hold no worker while they wait


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
    tenant: str | None = None  # whose it is, as the caller or the workflow's fair key says
    gates: list[str] | None = (
        None  # limits that the run itself holds places of; None: nothing of it is limited
    )


@dataclass(frozen=True, slots=True)
class Place:
    """Where the rows of a fragment land in a run that is there already."""

    first: int = 0  # the id of the first of them
    prefix: str = ""  # of their names
    behind: tuple[int, ...] = ()  # who waits for the final ones
    known: Mapping[Reference, tuple[int, Path]] = field(default_factory=dict)  # finished steps that it uses


START = Place()


def plan(
    spec: WorkflowSpec,
    params: Mapping[str, Any],
    catalogue: Catalogue,
    default_queue: str,
    place: Place = START,
    scope: gates.Scope = gates.NO_SCOPE,
) -> Plan:
    """Compile a validated definition with checked parameters into rows."""
    with collector.paused():
        return _plan(spec, params, catalogue, default_queue, place, scope)


def _plan(
    spec: WorkflowSpec,
    params: Mapping[str, Any],
    catalogue: Catalogue,
    default_queue: str,
    place: Place,
    scope: gates.Scope,
) -> Plan:
    parents = graph.parents(spec)
    order = graph.order(parents, workflow=spec.name)
    first: dict[str, int] = {}  # the row that waits for a step's parents
    last: dict[str, int] = {}  # the row that holds a step's result: the same, but for a map
    count = place.first
    for name in order:
        first[name] = count
        count += 2 if spec.steps[name].repeats else 1
        last[name] = count - 1
    dependents: dict[str, list[int]] = {name: [] for name in order}
    for name in order:
        for parent in parents[name]:
            dependents[parent].append(first[name])  # ascending, because `order` is
    builder = _Builder(spec.name, params, catalogue, default_queue, last, place)
    if scope.tenant is None and spec.fair_key is not None:
        scope = replace(scope, tenant=builder.key(spec.fair_key))
    builder.limited = gates.Shared.of(spec.max_parallel, scope)
    rows: list[PlannedStep] = []
    for name in order:
        step = spec.steps[name]
        below = tuple(dependents[name]) or place.behind
        if not step.repeats:
            rows.append(builder.row(first[name], name, step, len(parents[name]), below))
        else:
            rows.extend(builder.repeated(first[name], name, step, len(parents[name]), below))
    sinks = sum(1 for row in rows if row.dependents == place.behind)
    if spec.concurrency_key is not None:
        line = gates.runs_line(builder.key(spec.concurrency_key))
        rows = _behind_entry(rows, [line, spec.limit or 1], scope)
        held: list[str] | None = [line]
    else:
        held = [] if builder.is_limited else None
    undo = {"failed": builder.undo(spec.on_failure), "cancelled": builder.undo(spec.on_cancel)}
    return Plan(rows, sinks, {end: each for end, each in undo.items() if each}, scope.tenant, held)


def _behind_entry(rows: list[PlannedStep], entry: list[Any], scope: gates.Scope) -> list[PlannedStep]:
    """The rows of a run that waits for its turn: its first root stands in the line for all of them."""
    fair = scope.tenant or ""
    first, *rest = rows  # parents come first, so this one has none
    found = [replace(first, options={**(first.options or {}), "entry": entry}, waits_for=entry[0], fair=fair)]
    for row in rest:
        found.append(row if row.missing else replace(row, waits_for=f"{gates.ENTRY}{scope.run}", fair=fair))
    return found


class _Builder:
    """What the rows of one plan have in common."""

    def __init__(
        self,
        workflow: str,
        params: Mapping[str, Any],
        catalogue: Catalogue,
        default_queue: str,
        rows: Mapping[str, int],
        place: Place,
    ) -> None:
        self.workflow = workflow
        self.params = params
        self.catalogue = catalogue
        self.default_queue = default_queue
        self.rows = rows
        self.place = place
        self.limited: gates.Shared | None = None
        self.is_limited = False  # whether any step is
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
        if step.join == "any":
            options = {**(options or {}), "join": missing}
        if step.action == CHILD and self._tenant:
            options = {**(options or {}), "tenant": self._tenant}
        queue = step.queue or info.queue or self.default_queue
        line = fair = None
        if self.limited is not None or step.concurrency_key is not None or step.rate is not None:
            limits = gates.of_item(self.limits(step, queue), {})
            if limits:
                options = {**(options or {}), **limits}
                line = gates.first_line(options)
                fair = self._tenant
        return PlannedStep(
            idx,
            self.place.prefix + name,
            step.action,
            queue,
            info.priority if step.priority is None else step.priority,
            missing,
            dependents,
            inputs,
            bindings,
            tuple(sorted(needed)) if needed else (),
            options,
            None,
            line,
            fair,
        )

    def limits(self, step: StepSpec, queue: str) -> dict[str, Any]:
        """The limits of a step, or of the items of a map, as `gates.of_item` takes them."""
        self.is_limited = True
        found: dict[str, Any] = {}
        if step.concurrency_key is not None:
            found["key"] = [self._key_parts(step.concurrency_key), step.limit or 1]
        if self.limited is not None and (step.action == TASK or not step.action.startswith(_OWN)):
            found["gates"] = self.limited.before(queue)
        if step.rate is not None:
            found["rate"] = [self._key_parts(step.rate.key), step.rate.limit, step.rate.per]
        return found

    @property
    def _tenant(self) -> str:
        return (self.limited.tenant if self.limited is not None else None) or ""

    def key(self, text: str) -> str:
        """A key without items. Raises ParameterError where a parameter does not have what it uses."""
        return gates.key_of(self._key_parts(text), {})

    def _key_parts(self, text: str) -> list[Any]:
        hole = gates.template(text, item=True)
        for reference in references(hole):
            if reference.kind == "params":
                self._param(reference)  # refuses what is not there
        return gates.known_parts(hole, self.params)

    def repeated(
        self, idx: int, name: str, step: StepSpec, missing: int, dependents: tuple[int, ...]
    ) -> tuple[PlannedStep, PlannedStep]:
        """The two rows of a map or a loop: one grows the rows of its items or turns, the other has the result."""
        info = self._info(name, step)
        priority = info.priority if step.priority is None else step.priority
        needed: set[int] = set()
        if step.map is not None:
            inputs, bindings = self.template({"over": step.map.over}, _below("over", step.map.holes), needed)
        else:
            assert step.loop is not None
            begun = {"previous": step.loop.start}
            inputs, bindings = self.template(begun, _below("previous", step.loop.holes), needed)
        mapped = self._item(step, info, priority, needed)
        options = {"map" if step.map is not None else "loop": mapped, **self._when(step, needed)}
        if step.join == "any":
            options["join"] = mapped["join"] = missing
        whole: dict[str, Any] = {}
        if mapped["on_failure"] is not None:
            whole["on_failure"] = options["on_failure"] = mapped["on_failure"]
        if step.map is not None and step.map.on_item_failure != "fail":
            whole["on_item_failure"] = mapped["on_item_failure"] = step.map.on_item_failure
        if step.map is not None and not step.map.gather:
            whole["gather"] = False
        expand = PlannedStep(
            idx,
            self.place.prefix + name,
            LOOP if step.map is None else EXPAND,
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
            self.place.prefix + name + GATHER_SUFFIX,
            GATHER,
            self.default_queue,
            priority,
            1,
            dependents,
            {},
            None,
            (),
            whole or None,
        )
        return expand, gather

    def _item(self, step: StepSpec, info: ActionInfo, priority: int, needed: set[int]) -> dict[str, Any]:
        """What the rows of a map's items, or of a loop's turns, are made of."""
        item_inputs, item_bindings = self.template(step.inputs, step.holes, needed)
        mapped: dict[str, Any] = {
            "action": step.action,
            "queue": step.queue or info.queue or self.default_queue,
            "priority": priority,
            "inputs": item_inputs,
            "bindings": item_bindings,
            "retry": None,
            "timeout": None,
            "on_failure": None,
            **(self._running(step, info) or {}),
        }
        if self.limited is not None or step.concurrency_key is not None or step.rate is not None:
            mapped["limits"] = self.limits(step, mapped["queue"])
            mapped["fair"] = self._tenant
        if step.action == CHILD and self._tenant:
            mapped["tenant"] = self._tenant
        if step.map is not None:
            mapped["concurrency"] = step.map.concurrency
        else:
            mapped |= self._turns(step, needed)
        return mapped

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
                    bindings.append([list(at), *self._source(hole, needed)])
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
                parts.append(self._source(part, needed))
                continue
            text = part if isinstance(part, str) else text_of(self._param(part))
            if parts and isinstance(parts[-1], str):
                parts[-1] += text
            else:
                parts.append(text)
        return parts

    def _source(self, reference: Reference, needed: set[int]) -> list[Any]:
        """Where a value comes from, and the path inside it."""
        if reference.kind == "steps":
            row, path = self.rows[reference.name], reference.path
        elif reference.kind == "run":
            row, path = self.place.known[reference]
        else:
            return [reference.kind, list(reference.path)]
        needed.add(row)
        return [row, list(path)]

    def _param(self, reference: Reference) -> Any:
        try:
            return follow(self.params[reference.name], reference.path)
        except KeyError:
            raise ParameterError({reference.name: "is missing"}, workflow=self.workflow) from None
        except LookupError as error:
            raise ParameterError({reference.name: str(error)}, workflow=self.workflow) from None

    def _turns(self, step: StepSpec, needed: set[int]) -> dict[str, Any]:
        """How a loop ends."""
        assert step.loop is not None
        found: dict[str, Any] = {
            "until": step.loop.until,
            "limit": step.loop.limit,
            "on_limit": step.loop.on_limit,
        }
        used = expressions.names(step.loop.until, turns=True).steps
        if used:
            found["until_refs"] = {name: self.rows[name] for name in sorted(used)}
            needed.update(found["until_refs"].values())
        return found

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
        if (
            plain
            and timeout is None
            and step.on_failure is None
            and step.queue_timeout is None
            and step.heartbeat is None
            and info.in_doubt is None
        ):
            return None
        options: dict[str, Any] = {}
        if not plain and retry != PLAIN:
            options["retry"] = retry.model_dump(exclude_defaults=True)
        if timeout is not None:
            options["timeout"] = timeout
        if step.queue_timeout is not None:
            options["queue_timeout"] = step.queue_timeout
        if step.heartbeat is not None:
            options["heartbeat"] = step.heartbeat
        if info.in_doubt is not None:
            options["in_doubt"] = info.in_doubt
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
