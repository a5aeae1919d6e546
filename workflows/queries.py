"""What people ask about runs: records read through SQLAlchemy.

The law: reads only, and each by key or along an index.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, literal, select, text, tuple_

from ..tasks.database import Database
from ..tasks.errors import NotFound
from .plan import INNER
from .records import Approval, DeadLetter, Event, Json, Progress, Run, Step
from .search import Search, found
from .states import STEP_ENDS, RunState, StepState
from .tables import DeadLetterRow, DefinitionRow, EventRow, RunRow, StepRow

RUN = (
    RunRow.id, RunRow.workflow, RunRow.state, RunRow.key, RunRow.params, RunRow.correlation_id, RunRow.definition,
    RunRow.steps, RunRow.error, RunRow.created_at, RunRow.started_at, RunRow.finished_at,
    RunRow.tags, RunRow.origin, RunRow.origin_kind,
)  # fmt: skip
_STEP = (
    StepRow.idx, StepRow.name, StepRow.action, StepRow.queue, StepRow.priority, StepRow.state, StepRow.attempt,
    StepRow.failures, StepRow.started_at, StepRow.finished_at, StepRow.worker, StepRow.progress, StepRow.error,
)  # fmt: skip
_LETTER = (
    DeadLetterRow.at, DeadLetterRow.run_id, DeadLetterRow.workflow, DeadLetterRow.idx, DeadLetterRow.step,
    DeadLetterRow.action, DeadLetterRow.error,
)  # fmt: skip

_EARLY, _LATE = (each.replace(tzinfo=UTC) for each in (datetime.min, datetime.max))
_ASKING = (StepState.PARKED, StepState.READY, StepState.RUNNING)


class Queries:
    """Reads of the journal."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def _all(self, statement: Select[*tuple[Any, ...]]) -> Sequence[Any]:
        return self._database.read(statement)

    _page = staticmethod(found)

    def run(self, run_id: str) -> Run:
        """A run. Raises NotFound."""
        rows = self._all(select(*RUN).where(RunRow.id == as_uuid(run_id)))
        if not rows:
            raise NotFound("run", run_id, "`trellis runs` lists them")
        return Run.from_row(rows[0])

    def params(self, run_id: str) -> dict[str, Json]:
        """The parameters of a run as the journal has them. Raises NotFound."""
        rows = self._all(select(RunRow.params).where(RunRow.id == as_uuid(run_id)))
        if not rows:
            raise NotFound("run", run_id, "`trellis runs` lists them")
        found: dict[str, Json] = rows[0][0]
        return found

    def run_by_key(self, workflow: str, key: str) -> Run:
        """The run of a workflow that was started under a key. Raises NotFound."""
        rows = self._all(select(*RUN).where(RunRow.workflow == workflow, RunRow.key == key))
        if not rows:
            raise NotFound("run", key, f"no run of workflow {workflow!r} was started with this key")
        return Run.from_row(rows[0])

    def runs(self, wanted: Search, before: str | None, limit: int) -> list[Run]:
        """Runs, newest first (their ids are ordered by time); `before` is the id where the last page ended."""
        statement = self._page(RUN, wanted, None if before is None else as_uuid(before), limit)
        return [Run.from_row(row) for row in self._all(statement)]

    def count(self, wanted: Search, at_most: int) -> int:
        """How many runs, counted no further than `at_most`."""
        some = self._page([RunRow.id], wanted, None, at_most).subquery()
        return int(self._all(select(func.count()).select_from(some))[0][0])

    def steps(
        self, run_id: str, states: Sequence[StepState] | None = None, limit: int | None = None
    ) -> list[Step]:
        """The steps of a run in the order of their ids."""
        statement = select(*_STEP).where(StepRow.run_id == as_uuid(run_id)).order_by(StepRow.idx).limit(limit)
        if states is not None:
            statement = statement.where(StepRow.state.in_([state.value for state in states]))
        return [Step.from_row(row) for row in self._all(statement)]

    def progress(self, run_id: str) -> Progress:
        """How many steps are in which state; of a map its items count, the engine's own two steps do not."""
        rows = self._all(
            select(StepRow.state, func.count())
            .where(StepRow.run_id == as_uuid(run_id), StepRow.action.not_in(INNER))
            .group_by(StepRow.state)
        )
        by_state = {StepState(state): count for state, count in rows}
        done = sum(count for state, count in by_state.items() if state in STEP_ENDS)
        return Progress(sum(by_state.values()), done, by_state)

    def result(self, run_id: str, step: str) -> tuple[StepState, Json, dict[str, Json] | None]:
        """State, result and error of a step by name; of a map, those of the list it gathered. Raises NotFound."""
        rows = self._all(
            select(StepRow.name, StepRow.state, StepRow.result, StepRow.error, StepRow.options["on_failure"])
            .where(StepRow.run_id == as_uuid(run_id), StepRow.name.in_([step, f"{step}[]"]))
            .order_by(func.length(StepRow.name).desc())
        )
        if not rows:
            raise NotFound(
                "step", step, f"run {run_id} has none of this name; `trellis show {run_id}` lists them"
            )
        _, state, result, error, policy = rows[0]
        # A step that failed and was given a default has that for a result, be it null.
        return StepState(state), result, None if isinstance(policy, dict) else error

    def sinks(self, run_id: str) -> dict[str, Json]:
        """The results of the steps on which nothing depends, by name; skipped ones are left out."""
        rows = self._all(
            select(StepRow.name, StepRow.result)
            .where(StepRow.run_id == as_uuid(run_id), func.cardinality(StepRow.dependents) == 0)
            .where(StepRow.state.in_([StepState.SUCCEEDED.value, StepState.FAILED.value]))
            .order_by(StepRow.idx)
        )
        return {name.removesuffix("[]"): result for name, result in rows}

    def approvals(self, run_id: str | None, limit: int) -> list[Approval]:
        """Steps that wait for approval, of one run or of all: by name, the most urgent and the oldest first."""
        statement = (
            self._asked()
            # The word itself and no parameter, or a generic plan would not know that the index of parked steps fits.
            .where(text("step.state = 'parked'"))
            # A range of the index: everything that begins with the prefix (`;` comes after `:`).
            .where(StepRow.waits_for >= "approval:", StepRow.waits_for < "approval;")
            .order_by(StepRow.waits_for, StepRow.fair, StepRow.priority.desc(), StepRow.run_id, StepRow.idx)
            .limit(limit)
        )
        if run_id is not None:
            statement = statement.where(StepRow.run_id == as_uuid(run_id))
        return [Approval.from_row(*row) for row in self._all(statement)]

    def approval(self, run_id: str, step: str) -> Approval | None:
        """What a step asks, also while it is awake for a moment because somebody has just voted."""
        statement = (
            self._asked()
            .where(StepRow.run_id == as_uuid(run_id), StepRow.waits_for == f"approval:{step}")
            .where(StepRow.state.in_([each.value for each in _ASKING]))
        )
        parked = self._all(statement.where(StepRow.state == StepState.PARKED.value))
        rows = parked or self._all(statement)  # the second one reads the run, and is seldom needed
        return Approval.from_row(*rows[0]) if rows else None

    @staticmethod
    def _asked() -> Select[Any]:
        return select(RunRow.id, RunRow.workflow, StepRow.name, StepRow.wait).join(
            RunRow, RunRow.id == StepRow.run_id
        )

    def edges(self, run_id: str) -> list[tuple[int, str, StepState, list[int]]]:
        """Each step with its state and its dependents."""
        rows = self._all(
            select(StepRow.idx, StepRow.name, StepRow.state, StepRow.dependents)
            .where(StepRow.run_id == as_uuid(run_id))
            .order_by(StepRow.idx)
        )
        return [(idx, name, StepState(state), dependents) for idx, name, state, dependents in rows]

    def events(self, run: Run) -> list[Event]:
        """What happened in a run, in order: the journal's events and those that the rows themselves tell."""
        found = [Event(run.created_at, "run.created", None, None, None)]
        if run.started_at is not None:
            found.append(Event(run.started_at, "run.started", None, None, None))
        if run.finished_at is not None and run.state is RunState.SUCCEEDED:
            found.append(Event(run.finished_at, "run.succeeded", None, None, None))
        names: dict[int, str] = {}
        for step in self.steps(run.id):
            names[step.idx] = step.name
            if step.started_at is not None:
                found.append(Event(step.started_at, "step.started", step.name, step.attempt, None))
            if step.finished_at is not None and step.state in STEP_ENDS - {StepState.FAILED}:
                found.append(Event(step.finished_at, f"step.{step.state}", step.name, step.attempt, None))
        rows = self._all(
            select(EventRow.at, EventRow.kind, EventRow.idx, EventRow.attempt, EventRow.detail)
            .where(EventRow.run_id == as_uuid(run.id))
            .order_by(EventRow.id)
        )
        for at, kind, idx, attempt, detail in rows:
            found.append(Event(at, kind, None if idx is None else names.get(idx), attempt, detail))
        return sorted(found, key=lambda event: event.at)

    def linked(self, run_id: str, kind: str | None) -> list[Run]:
        """The runs whose origin a run is, the oldest first."""
        statement = select(*RUN).where(RunRow.origin == as_uuid(run_id)).order_by(RunRow.id)
        if kind is not None:
            statement = statement.where(RunRow.origin_kind == kind)
        return [Run.from_row(row) for row in self._all(statement)]

    def dead_letters(
        self, workflow: str | None, since: datetime | timedelta | None, before: DeadLetter | None, limit: int
    ) -> list[DeadLetter]:
        """Dead letters, the latest first; `before` is where the last page ended."""
        row = DeadLetterRow
        # A workflow is a range of its index, and no equation: else the planner may walk past all the others' letters.
        lead, given = ((), ()) if workflow is None else ((row.workflow,), (literal(workflow),))
        order = (*lead, row.at, row.run_id, row.idx)
        statement = select(*_LETTER).order_by(*(each.desc() for each in order)).limit(limit)
        first = func.now() - since if isinstance(since, timedelta) else literal(since or _EARLY)
        statement = statement.where(tuple_(*lead, row.at) >= tuple_(*given, first))
        if before is None:
            statement = statement.where(tuple_(*lead, row.at) <= tuple_(*given, literal(_LATE)))
        else:
            last = (before.at, as_uuid(before.run), before.idx)
            statement = statement.where(tuple_(*order) < tuple_(*given, *map(literal, last)))
        return [DeadLetter.from_row(found) for found in self._all(statement)]

    def dead_letters_of(self, run_id: str) -> list[DeadLetter]:
        """The dead letters of a run."""
        statement = select(*_LETTER).where(DeadLetterRow.run_id == as_uuid(run_id))
        return [DeadLetter.from_row(row) for row in self._all(statement.order_by(DeadLetterRow.idx))]

    def definition(self, digest: str) -> dict[str, Json]:
        """The definition under a digest. Raises NotFound."""
        rows = self._all(select(DefinitionRow.spec).where(DefinitionRow.digest == digest))
        if not rows:
            raise NotFound("definition", digest)
        spec: dict[str, Json] = rows[0][0]
        return spec

    def latest_definition(self, name: str) -> dict[str, Json] | None:
        """The newest definition under a workflow's name."""
        rows = self._all(
            select(DefinitionRow.spec)
            .where(DefinitionRow.name == name)
            .order_by(DefinitionRow.created_at.desc())
            .limit(1)
        )
        return rows[0][0] if rows else None


def as_uuid(run_id: str) -> UUID:
    """The id of a run. Raises NotFound for what cannot be one."""
    try:
        return UUID(run_id)
    except ValueError:
        raise NotFound("run", run_id, "a run's id is a UUID; `trellis runs` lists them") from None
