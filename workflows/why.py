"""Why a run does not move, in words.

The law: reads only, and asks the workers no longer than a moment. Steps that wait for the same kind of thing are one
reason, so that ten thousand of them are one line; each reason says what would end it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import case, func, select, text

from ..tasks.database import Database
from ..tasks.hints import listed
from . import holders, rollcall, words
from .control import ask
from .dispatch import BROKER_GONE, Dispatcher
from .queries import Queries, as_uuid
from .records import Json, Reason, Run
from .states import RunState, StepState
from .tables import HeartbeatRow, PauseRow, RunRow, StepRow

_TICK_LATE = timedelta(seconds=15)  # ticks come every second; half a minute without one is no hiccup


class Group(NamedTuple):
    """Steps in the same state that wait for the same kind of thing; the columns are those of the first one."""

    state: StepState
    kind: str  # of what they wait for: "signal", "approval", …; empty unless parked
    number: int
    name: str
    action: str
    queue: str
    waits_for: str
    wait: dict[str, Json]
    attempt: int
    failures: int
    sent: bool
    due_at: datetime | None  # None: never
    started_at: datetime | None
    lease_until: datetime | None
    worker: str | None
    error: dict[str, Json] | None

    def said(self) -> str:
        """The steps, for a sentence."""
        return (
            f"step {self.name!r}" if self.number == 1 else f"{self.name!r} and {self.number - 1:,} more steps"
        )

    def have(self, singular: str, plural: str) -> str:
        """The verb that goes with them."""
        return singular if self.number == 1 else plural


class Diagnosis:
    """The part of a `Client` that explains."""

    database: Database
    _dispatcher: Dispatcher | None
    _queries: Queries

    def why(self, run: Run | str) -> Sequence[Reason]:
        """Why a run does not move: one reason a kind of waiting; none where it is over. Raises NotFound."""
        found = self._queries.run(run.id if isinstance(run, Run) else run)
        if found.finished:
            return []
        return list(_Explanation(found, self.database, self._dispatcher, self._missing).reasons())

    def _missing(self, needs: Iterable[rollcall.Need]) -> str | None:
        """Why steps that need this may wait for ever; None where some worker can do all of it."""
        assert self._dispatcher is not None
        return rollcall.missing(self._dispatcher.app, needs)


class _Explanation:
    """The reasons of one run."""

    def __init__(
        self,
        run: Run,
        database: Database,
        dispatcher: Dispatcher | None,
        missing: Callable[[Iterable[rollcall.Need]], str | None],
    ) -> None:
        self.run = run
        self.database = database
        self.dispatcher = dispatcher
        self.missing = missing
        self.now: datetime = database.read(select(func.clock_timestamp()))[0][0]

    def reasons(self) -> Iterator[Reason]:
        """All of them, the most decisive first."""
        if self.run.state is RunState.PAUSED:
            yield self._paused()
        groups = self._groups()
        for group in groups:
            if group.state is StepState.PARKED:
                yield self._parked(group)
        yield from self._ready([group for group in groups if group.state is StepState.READY])
        for group in groups:
            if group.state is StepState.RUNNING:
                yield self._running(group)

    def _paused(self) -> Reason:
        workflow = self.run.workflow
        if self.database.read(
            select(PauseRow.name).where(PauseRow.kind == "workflow", PauseRow.name == workflow)
        ):
            return Reason(f"workflow {workflow!r} is paused", f"trellis resume --workflow {workflow}")
        with self.database.connection() as connection:
            above = ask(connection, "paused_above", run=self.run.id)
        if above:
            whole = above[0][0]
            return Reason(f"run {whole}, of which it is a part, is paused", f"trellis resume {whole}")
        return Reason("the run is paused", f"trellis resume {self.run.id}")

    def _groups(self) -> list[Group]:
        parked = StepRow.state == StepState.PARKED.value
        kind = case((parked, func.split_part(StepRow.waits_for, ":", 1)), else_="")
        same = [StepRow.state, StepRow.queue, StepRow.action, kind]
        due = func.nullif(StepRow.due_at, text("'infinity'::timestamptz"))
        # One row a kind, that of the step with the smallest id; the scan is that of one run by its key.
        first = (
            select(
                StepRow.idx,
                StepRow.state,
                kind.label("kind"),
                func.count().over(partition_by=same).label("n"),
                func.row_number().over(partition_by=same, order_by=StepRow.idx).label("place"),
                StepRow.name,
                StepRow.action,
                StepRow.queue,
                func.coalesce(StepRow.waits_for, "").label("waits_for"),
                func.coalesce(StepRow.wait, text("'{}'::jsonb")).label("wait"),
                StepRow.attempt,
                StepRow.failures,
                StepRow.sent,
                due.label("due_at"),
                StepRow.started_at,
                StepRow.lease_until,
                StepRow.worker,
                StepRow.error,
            )
            .where(StepRow.run_id == as_uuid(self.run.id))
            .where(StepRow.state.in_(["parked", "ready", "running"]))
            .subquery()
        )
        rows = self.database.read(select(first).where(first.c.place == 1).order_by(first.c.idx))
        return [_group(row) for row in rows]

    # --- parked

    def _parked(self, group: Group) -> Reason:
        kind, _, what = group.waits_for.partition(":")
        explain = getattr(self, f"_waits_{kind}", None)
        if explain is not None:
            reason: Reason = explain(group, what)
            return reason
        return Reason(
            f"{group.said()} {group.have('waits', 'wait')} for {group.waits_for}{self._until(group)}"
        )

    def _until(self, group: Group) -> str:
        return "" if group.due_at is None else f", until {words.moment(group.due_at)}"

    def _waits_signal(self, group: Group, what: str) -> Reason:
        return Reason(
            f"{group.said()} {group.have('waits', 'wait')} for signal {what!r}{self._until(group)}",
            f"trellis signal {self.run.id} {what} --payload JSON",
        )

    def _waits_approval(self, group: Group, _: str) -> Reason:
        wait = group.wait
        needed = wait["needed"] - len(wait["yes"])
        people = listed(wait["who"]) if wait["who"] else "anybody"
        return Reason(
            f"{group.said()} {group.have('waits', 'wait')} for {words.plural(needed, 'approval')} by {people}"
            f"{self._until(group)}",
            f"trellis approve {self.run.id} {group.name} --by NAME",
        )

    def _waits_time(self, group: Group, _: str) -> Reason:
        return Reason(f"{group.said()} {group.have('sleeps', 'sleep')}{self._until(group)}")

    def _waits_run(self, group: Group, child: str) -> Reason:
        rows = self.database.read(select(RunRow.workflow, RunRow.state).where(RunRow.id == as_uuid(child)))
        workflow, state = rows[0] if rows else ("?", "gone")
        return Reason(
            f"{group.said()} {group.have('waits', 'wait')} for child run {child} of {workflow!r}, which is {state}",
            f"trellis why {child}",
        )

    def _waits_task(self, group: Group, task: str) -> Reason:
        return Reason(
            f"{group.said()} {group.have('waits', 'wait')} for Celery task {group.wait.get('name', '?')!r} ({task}), "
            f"which was sent to queue {group.wait.get('queue', '?')!r} of another application"
        )

    def _waits_gate(self, group: Group, _: str) -> Reason:
        what = holders.waits_for(self.database, self.run.id, group.waits_for)
        return Reason(f"{group.said()} {group.have('waits', 'wait')} for {what}")

    def _waits_entry(self, group: Group, _: str) -> Reason:
        return Reason(f"{group.said()} {group.have('waits', 'wait')} for the turn of the run")

    def _waits_slot(self, group: Group, _: str) -> Reason:
        return Reason(
            f"{group.said()} {group.have('waits', 'wait')} for a slot of its rate{self._until(group)}"
        )

    def _waits_action(self, group: Group, action: str) -> Reason:
        return Reason(
            f"{group.said()} {group.have('waits', 'wait')} for a worker whose code fits: "
            f"{group.wait.get('misfit', f'no worker knows action {action!r}')}",
            "trellis check",
        )

    def _waits_pause(self, group: Group, _: str) -> Reason:
        return Reason(f"{group.said()} {group.have('is', 'are')} held back by the pause")

    def _waits_doubt(self, group: Group, _: str) -> Reason:
        return Reason(
            f"{group.said()} {group.have('is', 'are')} in doubt: its worker fell silent in the midst of an effect "
            "that may happen once only",
            f"trellis resolve {self.run.id} {group.name}",
        )

    # --- ready

    def _ready(self, groups: Sequence[Group]) -> Iterator[Reason]:
        backing_off = [
            group for group in groups if not group.sent and group.due_at and group.due_at > self.now
        ]
        for group in backing_off:
            why = f" after {words.cause(group.error)}" if group.failures and group.error else ""
            yield Reason(
                f"{group.said()} {group.have('is', 'are')} not due before {words.moment(group.due_at)}{why}"
            )
        waiting = [group for group in groups if group not in backing_off]
        if not waiting:
            return
        paused = self._paused_queues({group.queue for group in waiting})
        for queue in paused:
            yield Reason(f"queue {queue!r} is paused", f"trellis resume --queue {queue}")
        waiting = [group for group in waiting if group.queue not in paused]
        yield from self._unannounced(waiting)
        yield from self._unheard(waiting)

    def _paused_queues(self, queues: Iterable[str]) -> list[str]:
        statement = select(PauseRow.name).where(PauseRow.kind == "queue", PauseRow.name.in_(sorted(queues)))
        return [name for (name,) in self.database.read(statement)]

    def _unannounced(self, groups: Sequence[Group]) -> Iterator[Reason]:
        if not groups:
            return
        rows = self.database.read(select(HeartbeatRow.at).where(HeartbeatRow.name == "tick"))
        if not rows or self.now - rows[0][0] > _TICK_LATE:
            since = f"since {words.moment(rows[0][0])}" if rows else "ever"
            yield Reason(
                f"no tick has run {since}: nothing due or lost is announced", "trellis beat, and a worker"
            )

    def _unheard(self, groups: Sequence[Group]) -> Iterator[Reason]:
        if not groups:
            return
        steps = listed([group.name for group in groups][:3])
        count = sum(group.number for group in groups)
        ready = f"{words.plural(count, 'step')} ({steps}) {'is' if count == 1 else 'are'} ready"
        if self.dispatcher is None:
            yield Reason(f"{ready}, but this process has no broker to ask", "set TRELLIS_BROKER_URL")
            return
        missing = self.missing({(group.action, group.queue) for group in groups})
        if missing is not None:
            yield Reason(f"{ready}, but {missing}")
            return
        try:
            ahead = {group.queue: self.dispatcher.waiting(group.queue) for group in groups}
        except BROKER_GONE:
            ahead = {}
        queues = ", ".join(
            f"{number:,} messages in queue {queue!r}" for queue, number in sorted(ahead.items())
        )
        yield Reason(f"{ready} and will be taken when the workers come to it: {queues}")

    # --- running

    def _running(self, group: Group) -> Reason:
        said = f"{group.said()} {group.have('runs', 'run')} on {group.worker} since {words.moment(group.started_at)}"
        if group.lease_until is not None and group.lease_until < self.now:
            return Reason(f"{said}, but that worker is silent since {words.moment(group.lease_until)}")
        return Reason(said)


def _group(row: Any) -> Group:
    _, state, kind, count, place, *columns = row
    assert place == 1
    return Group(StepState(state), kind, count, *columns)
