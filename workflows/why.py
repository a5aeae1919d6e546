"""Why a run does not move, in words.

The law: reads only, and asks the workers no longer than a moment. Steps that wait for the same thing are one reason, so
that ten thousand of them are one line; a reason is true of all steps that it speaks of, and says what would end it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import func, select

from ..tasks.database import Database
from ..tasks.hints import listed
from . import compensation, holders, lingering, rollcall, standing, whereabouts, words
from .control import ask
from .dispatch import BROKER_GONE, Dispatcher
from .queries import Queries, as_uuid
from .records import Reason, Run
from .standing import Group
from .states import RunState, StepState
from .tables import HeartbeatRow, PauseRow, RunRow

_TICK_LATE = timedelta(seconds=15)  # ticks come every second; half a minute without one is no hiccup
# What steps of a kind do that have no sentence of their own, of one and of several.
_OTHERS = {
    "signal": ("waits for another signal", "wait for other signals"),
    "approval": ("waits for another approval", "wait for other approvals"),
    "run": ("waits for another child run", "wait for other child runs"),
    "task": ("waits for another Celery task", "wait for other Celery tasks"),
    "gate": ("waits for a place in another limit", "wait for places in other limits"),
    "later": ("is not due yet", "are not due yet"),
    "now": ("is ready", "are ready"),
    "busy": ("runs on another worker", "run on other workers"),
    "silent": ("runs on another worker that is silent", "run on other workers that are silent"),
}


class Diagnosis:
    """The part of a `Client` that explains."""

    database: Database
    _dispatcher: Dispatcher | None
    _queries: Queries

    def why(self, run: Run | str) -> Sequence[Reason]:
        """Why a run does not move: one reason for all steps of which it is true, ten of a kind at most.

        None where it is over; where it is still to be compensated, which body of it may be at work. Raises NotFound.
        """
        found = self._queries.run(run.id if isinstance(run, Run) else run)
        if found.finished:
            return [] if found.state is RunState.SUCCEEDED else self._afterwards(found.id)
        explanation = _Explanation(
            found, self.database, self._dispatcher, lacking=self._lacking, unheard=self._unheard
        )
        return list(explanation.reasons())

    def _afterwards(self, run: str) -> list[Reason]:
        with self.database.connection() as connection:
            if not compensation.waits(connection, run):
                return []
            last = lingering.last(connection, run)
        if last is None:
            return [Reason("its compensation begins with the next tick")]
        whose = "" if last.run == run else f" of child run {last.run}"
        return [
            Reason(
                f"its compensation waits for the end of step {last.step!r}{whose} on {last.worker}, "
                f"until {words.moment(last.until)} at the latest"
            )
        ]

    def _lacking(self, needs: Collection[rollcall.Need]) -> Mapping[str, Collection[rollcall.Need]]:
        """Why steps may wait for ever, and which of these needs are theirs."""
        assert self._dispatcher is not None
        return rollcall.lacking(self._dispatcher.app, needs)

    def _unheard(self, queues: Collection[str]) -> Mapping[str, str]:
        """Of queues of other applications those where tasks may wait for ever, and why."""
        assert self._dispatcher is not None
        return whereabouts.unheard(self._dispatcher.app, queues)


class _Explanation:
    """The reasons of one run."""

    def __init__(
        self,
        run: Run,
        database: Database,
        dispatcher: Dispatcher | None,
        *,
        lacking: Callable[[Collection[rollcall.Need]], Mapping[str, Collection[rollcall.Need]]],
        unheard: Callable[[Collection[str]], Mapping[str, str]],
    ) -> None:
        self.run = run
        self.database = database
        self.dispatcher = dispatcher
        self.lacking = lacking
        self.unheard = unheard
        self.silence: Mapping[str, str] = {}  # of queues of other applications
        self.now: datetime = database.read(select(func.clock_timestamp()))[0][0]

    def reasons(self) -> Iterator[Reason]:
        """All of them, the most decisive first."""
        if self.run.state is RunState.PAUSED:
            yield self._paused()
        groups = standing.groups(self.database, self.run.id)
        queues = {str(group.wait.get("queue")) for group in groups if group.kind == "task"}
        if queues and self.dispatcher is not None:
            self.silence = self.unheard(queues)
        yield from self._every([group for group in groups if group.state is StepState.PARKED], self._parked)
        yield from self._every([group for group in groups if group.kind == "later"], self._later)
        yield from self._ready([group for group in groups if group.kind == "now"])
        yield from self._every([group for group in groups if group.state is StepState.RUNNING], self._running)

    def _every(self, groups: Sequence[Group], explain: Callable[[Group], Reason]) -> Iterator[Reason]:
        yield from map(explain, groups)
        yield from _beyond(groups)

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

    # --- parked

    def _parked(self, group: Group) -> Reason:
        kind, _, what = group.waits_for.partition(":")
        explain = getattr(self, f"_waits_{kind}", None)
        if explain is not None:
            reason: Reason = explain(group, what)
            return reason
        return Reason(f"{group.waits()} for {group.waits_for}{_until(group)}")

    def _waits_signal(self, group: Group, what: str) -> Reason:
        return Reason(
            f"{group.waits()} for signal {what!r}{_until(group)}",
            f"trellis signal {self.run.id} {what} --payload JSON",
        )

    def _waits_approval(self, group: Group, _: str) -> Reason:
        wait = group.wait
        needed = wait["needed"] - len(wait["yes"])
        asked = [name for name in wait["who"] if name not in wait["yes"]]
        people = listed(asked) if asked else "anybody"
        return Reason(
            f"{group.waits()} for {words.plural(needed, 'approval')} by {people}{_until(group)}",
            f"trellis approve {self.run.id} {group.name} --by NAME",
        )

    def _waits_time(self, group: Group, _: str) -> Reason:
        return Reason(f"{group.said()} {group.have('sleeps', 'sleep')}{_until(group)}")

    def _waits_start(self, group: Group, _: str) -> Reason:
        return Reason(f"{group.said()} {group.have('does', 'do')} not begin before {_when(group)}")

    def _waits_run(self, group: Group, child: str) -> Reason:
        rows = self.database.read(select(RunRow.workflow, RunRow.state).where(RunRow.id == as_uuid(child)))
        workflow, state = rows[0] if rows else ("?", "gone")
        return Reason(
            f"{group.waits()} for child run {child} of {workflow!r}, which is {state}", f"trellis why {child}"
        )

    def _waits_gate(self, group: Group, _: str) -> Reason:
        what = holders.waits_for(self.database, group.waits_for, group.options)
        return Reason(f"{group.waits()} for {what}")

    def _waits_entry(self, group: Group, _: str) -> Reason:
        return Reason(f"{group.waits()} for the turn of the run")

    def _waits_slot(self, group: Group, _: str) -> Reason:
        slots = group.have("its slot", "their slots")
        return Reason(f"{group.waits()} for {slots} of {holders.rate(group.options)}{_until(group)}")

    def _waits_action(self, group: Group, action: str) -> Reason:
        misfit = group.wait.get("misfit", f"no worker knows action {action!r}")
        return Reason(f"{group.waits()} for a worker whose code fits: {misfit}", "trellis check")

    def _waits_pause(self, group: Group, _: str) -> Reason:
        return Reason(f"{group.said()} {group.have('is', 'are')} held back by the pause")

    def _waits_doubt(self, group: Group, _: str) -> Reason:
        lost = group.have("its worker", "their workers")
        return Reason(
            f"{group.said()} {group.have('is', 'are')} in doubt: {lost} fell silent in the midst of an effect "
            "that may happen once only",
            f"trellis resolve {self.run.id} {group.name}",
        )

    # --- parked for a task of another application

    def _waits_task(self, group: Group, task: str) -> Reason:
        queue = group.wait.get("queue", "?")
        which = f" ({task})" if group.number == 1 else ""
        said = (
            f"{group.waits()} for Celery task {group.wait.get('name', '?')!r}{which}, "
            f"which was sent to queue {queue!r} of another application"
        )
        if self._paused_queues([queue]):
            return Reason(
                f"{said}; that queue is paused: what is lost on the way is sent again when it is resumed",
                f"trellis resume --queue {queue}",
            )
        if self.dispatcher is None:
            return Reason(f"{said}, but this process has no broker to ask", "set TRELLIS_BROKER_URL")
        return Reason(f"{said}, but {self.silence[queue]}" if queue in self.silence else said)

    def _waits_queue(self, group: Group, queue: str) -> Reason:
        sends = group.have("sends its task", "send their tasks")
        paused = bool(self._paused_queues([queue]))
        return Reason(
            f"{group.said()} {sends} to queue {queue!r}, which "
            + ("is paused" if paused else "was paused: the next tick lets it go on"),
            f"trellis resume --queue {queue}" if paused else "",
        )

    # --- ready

    def _later(self, group: Group) -> Reason:
        text = f"{group.said()} {group.have('is', 'are')} not due before {_when(group)}"
        if not (group.failures and group.error):
            return Reason(text)
        if group.number == 1:
            return Reason(f"{text} after {words.cause(group.error)}")
        kind, message = group.error.get("type", "Error"), group.error.get("message", "")
        return Reason(f"{text}, each after {kind}, the first one: {message}")

    def _ready(self, waiting: Sequence[Group]) -> Iterator[Reason]:
        if not waiting:
            return
        yield from _beyond(waiting)
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
        if self.dispatcher is None:
            yield Reason(
                f"{_are_ready(groups)}, but this process has no broker to ask", "set TRELLIS_BROKER_URL"
            )
            return
        lost: set[rollcall.Need] = set()
        for why, needs in self.lacking({(group.action, group.queue) for group in groups}).items():
            lost.update(needs)
            theirs = [group for group in groups if (group.action, group.queue) in needs]
            yield Reason(f"{_are_ready(theirs)}, but {why}")
        taken = [group for group in groups if (group.action, group.queue) not in lost]
        if not taken:
            return
        try:
            ahead = {group.queue: self.dispatcher.waiting(group.queue) for group in taken}
        except BROKER_GONE:
            ahead = {}
        queues = ", ".join(
            f"{words.plural(number, 'message')} in queue {queue!r}" for queue, number in sorted(ahead.items())
        )
        yield Reason(f"{_are_ready(taken)} and will be taken when the workers come to it: {queues}")

    # --- running

    def _running(self, group: Group) -> Reason:
        said = (
            f"{group.said()} {group.have('runs', 'run')} on {group.worker} since {words.moment(group.first)}"
        )
        if group.number > 1:
            said = f"{group.said()} run on {group.worker}, the first since {words.moment(group.first)}"
        if group.kind == "silent":
            return Reason(f"{said}, but that worker is silent since {words.moment(group.leased)}")
        return Reason(said)


def _are_ready(groups: Sequence[Group]) -> str:
    count = sum(group.number for group in groups)
    names = [group.name for group in groups][:3]
    few = listed(names) if count == len(names) else f"{listed(names)}, …"
    return f"{words.plural(count, 'step')} ({few}) {'is' if count == 1 else 'are'} ready"


def _beyond(groups: Sequence[Group]) -> Iterator[Reason]:
    """One reason for all steps of a kind that are in none of its groups: those are the first ones."""
    told: dict[str, int] = {}
    for group in groups:
        told[group.kind] = told.get(group.kind, 0) + group.number
    for kind, of in {group.kind: group.of for group in groups}.items():
        left = of - told[kind]
        if left:
            one, several = _OTHERS.get(kind, ("waits as well", "wait as well"))
            yield Reason(f"… and {words.plural(left, 'other')} {one if left == 1 else several}")


def _when(group: Group) -> str:
    """When the first of them is due, and the last where that is later."""
    first, last = words.moment(group.first), words.moment(group.last)
    return first if first == last else f"{first}, the last not before {last}"


def _until(group: Group) -> str:
    """How long they wait at most."""
    first, last = words.moment(group.first), words.moment(group.last)
    if group.first is None:
        return ""
    return f", until {first}" if first == last else f", the first until {first}, the last until {last}"
