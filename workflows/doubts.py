"""Steps in doubt, and what people say about them. The part of `Client` that resolves them.

The law: what is said is in Postgres before the call returns, and is said once: a step is in doubt until then, and
not any more after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import select, text

from ..tasks.database import Database
from ..tasks.errors import DefinitionError, NotFound, StateError, ValueTooLarge
from ..tasks.settings import Settings
from . import effects, wire
from .contract import unkeepable
from .dispatch import Dispatcher
from .journal import Journal
from .queries import as_uuid
from .records import Json, Run
from .tables import RunRow, StepRow


class _Unsaid:
    """No result was given; None is one."""

    def __repr__(self) -> str:
        return "…"


UNSAID: Final = _Unsaid()


@dataclass(frozen=True, slots=True)
class Doubt:
    """A step whose effect may or may not have happened: its worker was lost in the midst of it."""

    run: str
    workflow: str
    step: str
    action: str
    attempt: int  # that announced the effect
    worker: str  # host and pid of the one that was lost
    idempotency_key: str  # that the body had, and that a new attempt would have
    probing: bool  # whether its probe is asked next, and no person has to


class Doubts:
    """Steps in doubt."""

    database: Database
    settings: Settings
    _journal: Journal
    _dispatcher: Dispatcher | None

    def doubts(self, run: Run | str | None = None, *, limit: int = 100) -> Sequence[Doubt]:
        """The steps in doubt, of one run or of all: the most urgent and the oldest first."""
        statement = (
            select(StepRow.run_id, RunRow.workflow, StepRow.name, StepRow.action, StepRow.wait, RunRow.id)
            .join(RunRow, RunRow.id == StepRow.run_id)
            # The word itself and no parameter, or a generic plan would not know that the index of parked steps fits.
            .where(text("step.state = 'parked'"), StepRow.waits_for == effects.DOUBT)
            .order_by(StepRow.fair, StepRow.priority.desc(), StepRow.run_id, StepRow.idx)
            .limit(limit)
        )
        if run is not None:
            statement = statement.where(StepRow.run_id == as_uuid(_id(run)))
        found = []
        for run_id, workflow, name, action, wait, _ in self.database.read(statement):
            note = wait or {}
            found.append(
                Doubt(
                    str(run_id), workflow, name, action, int(note.get("doubt") or 0), str(note.get("worker") or ""),
                    f"{run_id}/{name}", bool(note.get("probe")),
                )
            )  # fmt: skip
        return found

    def resolve(
        self,
        run: Run | str,
        step: str,
        *,
        done: Json = UNSAID,
        retry: bool = False,
        fail: str | None = None,
        by: str = "",
    ) -> None:
        """Say what became of the effect of a step in doubt.

        done: it has happened, and this is the step's result. retry: it has not, and the step runs again, with the same
            idempotency key. fail: nobody knows; the step fails with EffectInDoubt and this message. One of the three.
        by: who says so, for the run's events.

        Raises NotFound, StateError where the step is not in doubt, DefinitionError or ValueTooLarge for what was said.
        """
        said = self._said(step, done, retry, fail)
        run_id = _id(run)
        rows = self.database.read(
            select(StepRow.idx, StepRow.state, RunRow.workflow)
            .join(RunRow, RunRow.id == StepRow.run_id)
            .where(StepRow.run_id == as_uuid(run_id), StepRow.name == step)
        )
        if not rows:
            raise NotFound(
                "step", step, f"run {run_id} has none of this name; `trellis show {run_id}` lists them"
            )
        idx, state, workflow = rows[0]
        publish = self._dispatcher is not None
        ready = effects.resolve(self._journal, run_id, idx, said, by, sent=publish)
        if not ready:
            raise StateError(f"step {step!r} of run {run_id} is not in doubt: it is {state}")
        if self._dispatcher is not None:
            self._dispatcher.publish(run_id, workflow, ready)

    def _said(self, step: str, done: Any, retry: bool, fail: str | None) -> dict[str, Json]:
        given = [done is not UNSAID, retry, fail is not None]
        if sum(given) != 1:
            raise DefinitionError(f"step {step!r} is resolved by one of done=…, retry=True and fail=…")
        if retry:
            return {"retry": True}
        what, value = ("done", done) if fail is None else ("fail", fail)
        try:
            size = len(wire.dumps(value).encode())
        except (TypeError, ValueError) as error:
            raise DefinitionError(f"{what}= of step {step!r} is not JSON: {error}") from None
        problem = unkeepable(value)
        if problem is not None:
            raise DefinitionError(f"{what}= of step {step!r}: {problem}")
        if size > self.settings.value_max_bytes:
            raise ValueTooLarge(f"the result of step {step!r}", size, self.settings.value_max_bytes)
        return {what: value}


def _id(run: Run | str) -> str:
    return run.id if isinstance(run, Run) else str(as_uuid(run))
