"""What a body appends to its own run, and what it reads there.

The law: everything is checked when it is appended, inside the body, and written with the body's completion, in one
transaction and under the same fence: a body that fails, is tried again or has lost its lease appends nothing. What
stands behind the growing step waits for all that was appended, however it ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..tasks.database import Connection
from ..tasks.errors import DefinitionError, NotFinished, NotFound, RunFailed
from ..tasks.hints import choices
from . import gates, plan, ranks
from .definition import Workflow
from .fragment import MAX_NAME, Fragment, fragment_of, readings, uses
from .here import Here
from .plan import Place, PlannedStep
from .records import Claimed, Json, Ready, StepResult
from .references import Path, Reference, follow
from .spec import TASK, WorkflowSpec
from .states import STEP_ENDS, RunState, StepState

_EDGES = 10_000  # between the ends of what is appended and what waits for it; beyond that a row stands between them


class _Part(NamedTuple):
    """One fragment, with the finished steps that it uses."""

    spec: WorkflowSpec
    known: dict[Reference, tuple[int, Path]]
    steps: int  # rows
    sinks: int
    limited: bool


class Appending:
    """The door of one body to its run."""

    def __init__(self, here: Here, step: Claimed) -> None:
        self._here = here
        self._step = step
        self._parts: list[_Part] = []
        self._names: set[str] = set()
        self._bytes = 0
        self._ready: list[Ready] = []  # what may run at once, when `insert` is through
        self._lines: list[str] = []  # limits in front of others

    @property
    def grows(self) -> bool:
        """Whether anything was appended."""
        return bool(self._parts)

    # --- the body's side

    def fragment(self) -> Fragment:
        """An empty fragment."""
        return Fragment(self._here.workflow, catalogue=self._here.actions)

    def append(self, steps: Workflow | WorkflowSpec | Mapping[str, Any]) -> tuple[str, ...]:
        """Check a fragment and keep it for the completion; answers with the whole names of its steps."""
        here = self._here
        spec = fragment_of(steps, here.workflow)
        for name in spec.steps:
            if name in self._names:
                raise DefinitionError(
                    "this step was appended twice: give one of the two another name",
                    workflow=spec.name,
                    step=name,
                )
            if len(self._prefix) + len(name) > MAX_NAME:
                raise DefinitionError(
                    f"its whole name would be longer than {MAX_NAME} characters, since steps that were appended append "
                    "steps in turn: go round in a loop, or give shorter names",
                    workflow=spec.name,
                    step=name,
                )
        size, limit = self._bytes + len(spec.canonical()), here.settings.definition_max_bytes
        if size > limit:
            raise DefinitionError(
                f"what the step appends is {size:,} bytes of JSON, the limit is {limit:,}: let a map make the steps, "
                "pass large values as artifacts, or raise TRELLIS_DEFINITION_MAX_BYTES",
                workflow=spec.name,
            )
        known = self._known(spec)
        laid = self._plan(spec, Place(known=known))
        limited = laid.gates is not None or bool(self._limits)
        self._parts.append(_Part(spec, known, len(laid.steps), laid.sinks, limited))
        self._names.update(spec.steps)
        self._bytes = size
        return tuple(self._prefix + name for name in spec.steps)

    def result(self, name: str) -> Json:
        """The result of a finished step of the run."""
        run = self._here.run
        found = _gathered(self._here.journal.find(run, [name, name + plan.GATHER_SUFFIX]), name)
        if found is None:
            raise NotFound("step", name, f"run {run} has none of this name")
        if found.state is StepState.FAILED and not found.defaulted:
            raise RunFailed(run, name, found.error or {})
        if found.state not in STEP_ENDS:
            raise NotFinished(run, RunState.RUNNING)
        return found.result

    def appended(self, name: str) -> dict[str, StepResult]:
        """The steps that a step has appended, by their names in the fragment."""
        found = self._here.journal.below(self._here.run, name)
        names = [each.removesuffix(plan.GATHER_SUFFIX) for each in found]
        return {
            each[len(name) + 1 :]: whole for each in names if (whole := _gathered(found, each)) is not None
        }

    # --- the bundle's side

    def insert(self, connection: Connection) -> None:
        """Write the rows, inside the transaction that completes the step. Raises StateError, RunTooLarge."""
        here, step = self._here, self._step
        sinks = sum(part.sinks for part in self._parts)
        count = sum(part.steps for part in self._parts)
        behind = here.journal.hold(connection, here.run, step, sinks)
        between = sinks * len(behind) > _EDGES
        first = here.journal.grow(
            connection,
            here.run,
            count + between,
            0 if behind else sinks,
            limited=any(part.limited for part in self._parts),
            tasks=any(TASK in part.spec.actions for part in self._parts),
        )
        ends = tuple(
            each if each < 0 else ~each for each in behind
        )  # edges of order alone: a skip stays inside
        rows: list[PlannedStep] = []
        if between:
            here.journal.hold(connection, here.run, step, 1 - sinks)
            rows.append(self._barrier(first, sinks, ends))
            first, ends = first + 1, (~first,)
        # Only what is behind the limits of a tenant needs to know who that is.
        tenant = here.journal.tenant(connection, here.run) if self._window else None
        for part in self._parts:
            place = Place(first + len(rows) - between, self._prefix, ends, part.known)
            laid = self._plan(part.spec, place, tenant)
            means = here.dispatcher.mean_ms
            rows += ranks.ranked(
                laid, part.spec, {}, here.actions, means, place=place, beyond=self._beyond
            ).steps
        here.journal.add(connection, here.run, rows, sent=True)
        here.journal.tell(connection, here.run, "step.appended", step.idx, {"steps": len(self._names)})
        self._ready = [row.ready for row in rows if not row.missing and row.waits_for is None]
        self._lines = gates.union(
            row.waits_for for row in rows if not row.missing and row.waits_for is not None
        )

    def announce(self) -> None:
        """Tell the workers of what was inserted, now that it is committed, and let in what has limits."""
        here = self._here
        here.dispatcher.publish(here.run, here.workflow, self._ready)
        if self._lines:
            here.admission.admit(self._lines)

    # --- parts

    @property
    def _prefix(self) -> str:
        return f"{self._step.name}."

    @property
    def _limits(self) -> dict[str, int]:
        return dict((self._step.options or {}).get("gates") or ())

    @property
    def _window(self) -> int:
        """The places of all tenants on the step's queue; 0 where the run has no tenant."""
        return next((limit for line, limit in self._limits.items() if line.startswith(gates.FAIR)), 0)

    @property
    def _beyond(self) -> float | None:
        """Seconds of the longest path behind the growing step; None where its run has no ranks."""
        step = self._step
        return None if step.rank is None else max(0.0, step.rank - (step.expect or 0.0))

    def _plan(self, spec: WorkflowSpec, place: Place, tenant: str | None = None) -> plan.Plan:
        here = self._here
        line = gates.run_line(here.run)
        limits = self._limits
        if line in limits:  # what the run has of steps at once is a limit of all its steps
            spec = spec.model_copy(update={"max_parallel": limits[line]})
        scope = gates.Scope(here.run, tenant, self._window)
        return plan.plan(spec, {}, here.actions, here.settings.default_queue, place, scope)

    def _barrier(self, idx: int, sinks: int, behind: tuple[int, ...]) -> PlannedStep:
        """One row that waits for all ends, where each of them would else name everything behind the step."""
        inputs = {"first": idx, "count": 0}
        queue = self._here.settings.default_queue
        name = self._prefix + plan.GATHER_SUFFIX
        return PlannedStep(
            idx,
            name,
            plan.GATHER,
            queue,
            self._step.priority,
            sinks,
            behind,
            inputs,
            None,
            (),
            None,
            rank=self._beyond,
        )

    def _known(self, spec: WorkflowSpec) -> dict[Reference, tuple[int, Path]]:
        """The rows of the finished steps that a fragment uses. Raises DefinitionError."""
        wanted = list(uses(spec))
        if not wanted:
            return {}
        names = {name for _, reference in wanted for name, _ in readings(reference)}
        there = self._here.journal.find(
            self._here.run, [each + suffix for each in names for suffix in ("", plan.GATHER_SUFFIX)]
        )
        known: dict[Reference, tuple[int, Path]] = {}
        for step, reference in wanted:
            try:
                known[reference] = _meant(reference, there)
            except LookupError as error:
                raise DefinitionError(str(error.args[0]), workflow=spec.name, step=step) from None
        return known


def _meant(reference: Reference, there: Mapping[str, StepResult]) -> tuple[int, Path]:
    """The row and the path that a reference to a finished step means. Raises LookupError, which says what is wrong."""
    for name, path in readings(reference):
        found = _gathered(there, name)
        if found is None:
            continue
        if found.state is StepState.FAILED and not found.defaulted:
            raise LookupError(f"it uses {reference}, but step {name!r} failed")
        if found.state not in STEP_ENDS:
            raise LookupError(
                f"it uses {reference}, but step {name!r} is {found.state.value}: a fragment can use what is finished; "
                "what it has to wait for belongs into the same fragment"
            )
        try:
            follow(found.result, path)
        except LookupError as error:
            raise LookupError(f"it uses {reference}: in the result of step {name!r}, {error}") from None
        return found.idx, path
    tops = [name for name in there if "[" not in name]
    raise LookupError(
        f"it uses {reference}, but the run has no step {reference.name!r}{choices(reference.name, tops, 'there are')}"
    )


def _gathered(there: Mapping[str, StepResult], name: str) -> StepResult | None:
    """The row with a step's result: of a map, the one that gathers."""
    return there.get(name + plan.GATHER_SUFFIX) or there.get(name)
