"""One message's worth of work: claim its steps, run them, record them, go on with what they free.

The law: a result counts when the journal has it, and a message may vanish at any line of this file. Short
steps are recorded together, at the latest when their time is up or something slow begins; a step whose
action says `effects="once"` is recorded alone, before anything else runs.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import psycopg
import structlog

from ..tasks.database import Connection
from ..tasks.errors import CommunicationError, ExecutionError, RunTooLarge, StateError
from ..tasks.logs import get_logger
from . import draining, effects, ending, growth, misfit, wire
from .appending import Appending
from .context import Context
from .execution import blocked, execute, failed, skipped, timeout_of, unkept, wanted
from .growing import not_ours
from .here import Here
from .joint import Joint
from .journal import Ahead
from .keeper import Held
from .natives import NATIVES, Native
from .pacing import is_early
from .parts import Parts
from .records import Claimed, Completed, Json, Outcome, Parked, Ready
from .registry import ActionInfo
from .states import StepState
from .upstream import Upstream

log = get_logger("trellis.bundle")

_JOURNAL_GONE = (psycopg.OperationalError, psycopg.InterfaceError, CommunicationError)
_MIN_COST_MS = 0.02  # what a step costs even if its body costs nothing
_LOOK_SECONDS = 0.01  # for so long run-ahead goes on without a look whether something is paused


class Bundle:
    """The steps that this thread has claimed of one run."""

    def __init__(
        self, parts: Parts, action: str, run: str, idx: Sequence[int], ranked: str | None = None
    ) -> None:
        """Claim steps: the named ones, or with `ranked`, a queue, as many of the most urgent ones in it."""
        self._parts = parts
        self._ranked = ranked
        self._kept: Ready | None = None  # a freed step whose right this process uses itself
        self._run = run
        self._began = self._flushed = time.monotonic()
        self._lock = threading.Lock()
        self._workflow = self._correlation = ""
        self._leased: dict[str, float] = {}  # by lease: a moment before it was given
        self._todo: deque[Claimed] = deque()
        asked = self._looked = time.monotonic()  # what is paused is not claimed
        self._take(self._named(action, idx) if ranked is None else self._urgent(ranked, idx), asked)
        self._queue = self._todo[0].queue if self._todo else ""
        self._done: list[Outcome] = []
        self._recording: list[Outcome] = []
        # Steps whose body a shutdown has ended; in the midst of an effect?
        self._cut: list[tuple[Claimed, bool]] = []
        self._refused = False  # something of this bundle was no longer ours: its run may be over
        self._dying = False  # this process is about to be killed
        self._known = Upstream(parts.journal, run)
        self._limited: dict[int, dict[str, Json]] = {}  # the options of steps with limits
        self.current: Held | None = None

    def run(self) -> None:
        """Run everything that was claimed, and what it frees for as long as run-ahead allows."""
        if not self._todo:
            return
        keeper = self._parts.keeper
        keeper.watch(self)
        structlog.contextvars.bind_contextvars(run=self._run, correlation_id=self._correlation)
        try:
            self._known.fetch(self._todo)
            while (step := self._next()) is not None:
                info = self._parts.actions.get(step.action)
                alone = effects.policy(step.options) is not None
                if alone:
                    self._flush(ahead=False)
                try:
                    outcome = self._one(step, info)
                except StateError:  # mostly its run was ended meanwhile
                    log.warning("step.lost", step=step.name)
                    self._refused, outcome = True, None
                if outcome is not None:
                    self._keep(step, outcome)
                if alone or not self._todo or self._full() or (outcome is not None and outcome.fatal):
                    self._flush(ahead=True)
            self._let_go()
        except (*_JOURNAL_GONE, SystemExit, KeyboardInterrupt) as error:
            # The journal is gone, or a shutdown: what was not begun need not wait for its lease to run out. Any
            # other error waits and counts as a crash, else a step that breaks the engine would come back for ever.
            with suppress(*_JOURNAL_GONE):
                if isinstance(error, SystemExit):
                    self._after_cut()
                self.relieve()
                self._let_go()
            raise
        finally:
            keeper.unwatch(self)
            self._parts.guard().rest()
            structlog.contextvars.clear_contextvars()
            self._parts.durations.share()

    def _after_cut(self) -> None:
        """A signal has ended this process in the midst of something: what it held goes on elsewhere at once."""
        with (
            self._lock
        ):  # once more, where it was being recorded: who heard of it the first time is fenced off
            self._done = [*self._recording, *self._done]
        self._hand_back([step for step, once in self._cut if not (once and self._doubt(step))])

    def _let_go(self) -> None:
        """No body of this bundle is at work any more: the end of the run may have waited for that."""
        if self._refused:
            ending.let_go(self._parts.journal, self._parts.dispatcher, self._run, self._leased)

    # --- claiming

    def _named(self, action: str, idx: Sequence[int]) -> list[Claimed]:
        parts = self._parts
        info = parts.actions.get(action)
        durable = action not in parts.durations.short() or (info is not None and info.in_doubt is not None)
        claimed, self._workflow, self._correlation = parts.journal.claim(
            self._run, idx, parts.worker, durable=durable
        )
        return claimed

    def _urgent(self, queue: str, rights: Sequence[int]) -> list[Claimed]:
        """Use rights, named after the steps that they were made for; those that are left over go back."""
        parts = self._parts
        settings = parts.settings
        claimed, workflow, correlation = parts.journal.claim_ranked(
            self._run,
            queue,
            [*NATIVES, *parts.actions.names()],
            parts.worker,
            room=settings.bundle_max,
            seconds=(settings.ahead_ms if settings.bundle_ms > 0 else 0.0) / 1000.0,
        )
        if claimed:
            self._workflow, self._correlation = workflow, correlation
            like = growth.as_ready(claimed[0])
            parts.dispatcher.pass_on(self._run, workflow, like, rights[len(claimed) :])
        return claimed

    def _go_on(self) -> None:
        """Use the right that was kept: take the most urgent step by now, without a message."""
        kept, self._kept = self._kept, None
        if kept is None:
            return
        if self._left_ms() <= 0:
            self._parts.dispatcher.publish(self._run, self._workflow, [kept])
            return
        asked = time.monotonic()
        claimed = self._urgent(kept.queue, [kept.idx])
        self._known.fetch(claimed)
        with self._lock:
            self._take(claimed, asked)

    def _kept_back(self, free: list[Ready]) -> list[Ready]:
        """What to announce: while run-ahead lasts, the right of one freed step is used here instead."""
        if self._ranked is None or self._kept is not None or self._left_ms() <= 0:
            return free
        for place, step in enumerate(free):
            if step.rank is not None and step.queue == self._ranked:
                self._kept = step
                return free[:place] + free[place + 1 :]
        return free

    def _left_ms(self) -> float:
        """Milliseconds for which this message may go on with what it frees."""
        settings = self._parts.settings
        if settings.bundle_ms <= 0:
            return 0.0
        return settings.ahead_ms - (time.monotonic() - self._began) * 1000.0

    # --- the keeper's side

    def relieve(self) -> None:
        """Record what is finished and hand back what is not begun: the step at hand takes its time."""
        with self._lock:
            waiting = list(self._todo)
            self._todo.clear()
            kept, self._kept = self._kept, None
        if kept is not None:
            self._parts.dispatcher.publish(self._run, self._workflow, [kept])
        self._hand_back(waiting)
        self._flush(ahead=False)

    def _hand_back(self, steps: Sequence[Claimed]) -> None:
        """Their attempt does not count, and others hear of them at once."""
        if not steps:
            return
        free = set(self._parts.journal.release(self._run, steps))
        self._refused |= len(free) < len(steps)
        ready = [growth.as_ready(step) for step in steps if step.idx in free]
        self._parts.dispatcher.publish(self._run, self._workflow, ready)

    def give_up(self, held: Held, reason: ExecutionError) -> None:
        """Record the step at hand as failed: its process is about to be killed.

        Not in the midst of an effect that may happen once only: its lease runs out, and it is in doubt.
        """
        if held.once:
            return
        self._dying = True  # if that ends the run, the tick does what follows: the body is no more by then
        self._record([failed(held.step, reason, held.began)], None)

    # --- the parts of the loop

    def _take(self, steps: Sequence[Claimed], asked: float) -> None:
        if steps:
            self._leased[steps[0].lease] = asked
            self._todo.extend(steps)

    def _ours(self, step: Claimed) -> bool:
        """Whether this process may begin the step: one that was stopped for longer than the lease has to ask.

        Otherwise it would begin, when it wakes up, what somebody else has finished meanwhile.
        """
        settings = self._parts.settings
        lasts = min(settings.lease_seconds, timeout_of(step, settings) + settings.timeout_grace)
        if time.monotonic() - self._leased[step.lease] < lasts:
            return True
        return bool(self._parts.journal.renew([(self._run, step.idx, step.lease, lasts, None)]))

    def _next(self) -> Claimed | None:
        if draining.draining():
            self.relieve()
        elif not self._todo:
            self._go_on()
        with self._lock:
            return self._todo.popleft() if self._todo else None

    def _full(self) -> bool:
        return (time.monotonic() - self._flushed) * 1000.0 >= self._parts.settings.bundle_ms

    def _keep(self, step: Claimed, outcome: Outcome) -> None:
        if outcome.result is not None:
            self._known.keep(step.idx, outcome.result)
        with self._lock:
            self._done.append(outcome)

    def _one(self, step: Claimed, info: ActionInfo | None) -> Outcome | None:
        """The outcome of one step; None where it was recorded on the way. Raises StateError where it is not ours."""
        if step.options is not None and ("gates" in step.options or "rate" in step.options):
            self._limited[step.idx] = step.options
        if blocked(step):
            return skipped(step)
        began = time.monotonic()
        try:
            results = self._known.results(step)
            if not wanted(step, self._known.parameters(step), results):
                return skipped(step)
            inputs = self._known.inputs(step, results)
            if not self._ours(step):
                raise not_ours(self._run, step)
            native = NATIVES.get(step.action)
            if native is not None:
                return self._native(native, step, inputs)
            if info is None:
                return misfit.put_back(self._parts.journal, self._run, step, misfit.UNKNOWN)
        except (*_JOURNAL_GONE, StateError):
            raise  # not the step's fault: its lease runs out, and it runs again
        except Exception as error:
            return failed(step, error, began)
        if not effects.noted(step) and is_early(self._parts.journal, self._parts.admission, self._run, step):
            return None
        if effects.policy(step.options) is not None:
            return effects.run(self._parts.journal, self._run, step, info, inputs, self._execute)
        return self._execute(step, info, inputs)

    def _execute(
        self, step: Claimed, info: ActionInfo, inputs: Mapping[str, Json], effect: bool = False
    ) -> Outcome | None:
        """Run a body, or with `effect` one whose effect may happen once only and is announced."""
        watch = self._parts.guard()
        settings = self._parts.settings
        timeout = timeout_of(step, settings)
        held = Held(self._run, step, timeout, watch)
        held.once = effect
        joint = Joint(self._parts.journal.database, timeout + settings.timeout_grace)

        def context() -> Context:
            about = (self._run, self._workflow, step.name, step.attempt, self._correlation)
            held.context = Context(*about, settings.artifacts_root(), Appending(self._here(), step), joint)
            return held.context

        structlog.contextvars.bind_contextvars(step=step.name, attempt=step.attempt)
        self.current = held
        try:
            outcome = execute(step, info.contract, inputs, context, watch, settings)
            if joint.lost:
                raise psycopg.OperationalError("the connection of ctx.transaction() broke")
            if joint.open and outcome.state is StepState.SUCCEEDED and held.lost_at is None:
                return self._commit(joint, held, outcome)
        except SystemExit:
            self._cut.append((step, held.once))
            raise
        finally:
            self.current = None
            joint.abandon()
        if self._was_stopped(held, outcome):
            return None
        self._parts.durations.measured(step.action, outcome.ran)
        if held.lost_at is not None:
            raise not_ours(self._run, step)
        why = misfit.of_outcome(outcome, info, inputs)
        if why is not None:
            return misfit.put_back(self._parts.journal, self._run, step, why)
        if outcome.error is not None:
            log.warning(
                "step.failed",
                error=outcome.error["type"],
                message=outcome.error["message"],
                then=outcome.state.value,
            )
        door = None if held.context is None else held.context.door
        return self._grow(step, outcome, door) if isinstance(door, Appending) and door.grows else outcome

    def _grow(self, step: Claimed, outcome: Outcome, door: Appending) -> Outcome | None:
        """Record a step together with what its body appended; what did not succeed has appended nothing."""
        if outcome.state is not StepState.SUCCEEDED:
            return outcome
        try:
            if self._record([outcome], None, first=door.insert):
                door.announce()
        except RunTooLarge as error:
            return failed(step, error, outcome.ended - outcome.ran)
        return None

    def _was_stopped(self, held: Held, outcome: Outcome) -> bool:
        """Whether the body was stopped from outside and its step has been given back, or put aside in doubt."""
        if outcome.state is StepState.SUCCEEDED or outcome.error is None or held.lost_at is not None:
            return False
        late = outcome.error["type"] in effects.STOPPED
        if held.once and (held.handed_back or late) and self._doubt(held.step):
            return True
        if held.handed_back:
            log.info("step.handed_back", ran=outcome.ran)
            self._hand_back([held.step])
        return held.handed_back

    def _doubt(self, step: Claimed) -> bool:
        parts, self._refused = self._parts, True  # if it is not ours any more, nobody says so
        return effects.stopped(parts.journal, self._run, step, parts.worker, parts.settings.max_crashes)

    def _commit(self, joint: Joint, held: Held, outcome: Outcome) -> Outcome | None:
        """Record a result together with what its body wrote in our database; None: it is recorded, or lost."""
        parts, asked, wish, step = self._parts, time.monotonic(), self._ahead(), held.step
        door = None if held.context is None else held.context.door
        growing = door if isinstance(door, Appending) and door.grows else None

        def record(connection: Connection) -> Completed | None:
            if growing is not None:
                growing.insert(connection)
            return parts.journal.complete_in(connection, self._run, outcome, ahead=wish, worker=parts.worker)

        try:
            completed = joint.commit(record)
        except (psycopg.DataError, psycopg.IntegrityError, RunTooLarge) as error:
            return failed(step, error, outcome.ended - outcome.ran)
        if completed is None:
            raise not_ours(self._run, step)
        if outcome.result is not None:
            self._known.keep(step.idx, outcome.result)
        self._recorded([outcome], completed, asked, wish)
        if growing is not None:
            growing.announce()
        return None

    def _native(self, native: Native, step: Claimed, inputs: dict[str, Json]) -> Outcome | None:
        """A kind of step that the engine runs itself: it may grow the run, or wait."""
        parts, here = self._parts, self._here()
        self.current = Held(self._run, step, parts.settings.step_timeout, parts.guard())
        try:
            answer = native(here, step, inputs)
        finally:
            self.current = None
        if answer is None or isinstance(answer, Outcome):
            return answer
        if isinstance(answer, Parked):
            parts.journal.park(self._run, answer)
            return None
        self._announce(answer.completed)
        self._leave([step.idx], answer.completed)
        parts.dispatcher.publish(self._run, self._workflow, answer.ready)
        parts.dispatcher.publish_spans(self._run, self._workflow, answer.spans)
        return None

    def _here(self) -> Here:
        parts = self._parts
        return Here(
            parts.settings,
            parts.journal,
            parts.dispatcher,
            parts.admission,
            parts.actions,
            parts.worker,
            self._run,
            self._workflow,
            self._correlation,
        )

    # --- recording

    def _flush(self, *, ahead: bool) -> None:
        with self._lock:
            outcomes, self._done = self._done, []
        self._flushed = time.monotonic()
        if outcomes:
            self._recording = outcomes
            self._record(outcomes, self._ahead() if ahead else None)
            self._recording = []

    def _record(
        self,
        outcomes: list[Outcome],
        wish: Ahead | None,
        *,
        first: Callable[[Connection], None] | None = None,
    ) -> bool:
        """Record outcomes, and with them what `first` writes; whether all came in time and as they are."""
        journal, worker = self._parts.journal, self._parts.worker
        asked = time.monotonic()
        kept = True
        try:
            completed = journal.complete(self._run, outcomes, ahead=wish, worker=worker, first=first)
        except psycopg.DataError as error:
            # Postgres refuses a value that JSON allows. One of them must not take its neighbours along.
            if len(outcomes) > 1:
                for outcome in outcomes:
                    self._record([outcome], None)
                return False
            kept = False
            completed = journal.complete(self._run, [unkept(outcomes[0], error)], worker=worker)
        return self._recorded(outcomes, completed, asked, wish) and kept

    def _recorded(
        self, outcomes: list[Outcome], completed: Completed, asked: float, wish: Ahead | None
    ) -> bool:
        """Go on from what a completion has changed; whether all came in time."""
        late = [outcome.idx for outcome in outcomes if outcome.idx not in completed.won]
        if late:
            log.warning("outcomes.late", steps=late)
        self._refused |= bool(late or (completed.closed and self._todo))
        with self._lock:
            for idx in late:  # somebody else's result counts
                self._known.forget(idx)
            if completed.closed:
                self._todo.clear()  # nothing more of this run should begin
            self._take(completed.mine, asked)
        if len(late) == len(outcomes):
            self.relieve()  # the run may be over, or this process was away: the journal knows what is still ours
        if wish is not None:
            completed = completed._replace(free=self._kept_back(completed.free))
        self._announce(completed)
        if self._limited or completed.gates:
            over = [outcome.idx for outcome in outcomes if outcome.state is not StepState.READY]
            self._leave([idx for idx in over if idx in completed.won], completed)
        self._known.fetch(completed.mine)
        return not late

    def _announce(self, completed: Completed) -> None:
        if completed.free:
            self._parts.dispatcher.publish(self._run, self._workflow, completed.free)
        if completed.closed:
            ending.announce(self._parts.journal, None if self._dying else self._parts.dispatcher, self._run)

    def _leave(self, over: list[int], completed: Completed) -> None:
        """Give up the places of steps that are over, and ask for whoever waits for a place."""
        if self._limited or completed.gates:
            self._parts.admission.left(
                self._run, [(idx, self._limited.pop(idx, None)) for idx in over], completed
            )

    def _ahead(self) -> Ahead | None:
        settings = self._parts.settings
        left = self._left_ms()
        if left <= 0 or draining.draining():
            return None
        known = self._parts.actions.get
        means = self._parts.durations.short().items()
        short = {action: max(_MIN_COST_MS, ms) for action, ms in means if known(action) is not None}
        budget = min(left, settings.bundle_ms)
        now = time.monotonic()
        look = now - self._looked >= _LOOK_SECONDS
        if look:
            self._looked = now
        return Ahead(self._queue, wire.dumps(short), budget, settings.bundle_max, look)
