"""A worker, a broker and a tick without processes, threads or servers: the real engine on the journal in memory.

The law: bodies run in the test's own thread, one after the other, the most urgent message first. What a real process
does by a timer or a signal happens here where a body touches the clock.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import count
from typing import Any

from ...tasks.errors import ExecutionError, HeartbeatTimeout, NotInProcess, StepTimeout
from ...tasks.settings import Settings
from .. import foreign, recovery, registry
from ..admission import Admission
from ..bundle import Bundle
from ..dispatch import Dispatcher, is_ranked
from ..durations import Durations
from ..engine import Engine
from ..keeper import Held, Keeper, Watched
from ..limits import Guard
from ..records import Ready, Span
from . import purging
from .bodies import Bodies, WorkerCrash
from .clock import NEVER, Clock
from .database import MemoryDatabase
from .outbox import Outbox
from .store import Store

_WORKER = "in-process"
_ROUNDS = 1000  # of ticks and work without a pause, before it is called a loop


class HandClock(Guard):
    """Holds bodies to their limits by the clock that the test moves."""

    def __init__(self, clock: Clock, keeper: HandKeeper) -> None:
        # Not that of a real guard, which takes the process's alarm signal.
        self._clock = clock
        self._keeper = keeper
        self._bounds: list[tuple[datetime, float]] = []
        self.turn = 0

    def call(self, body: Callable[[], Any], timeout: float, grace: float) -> Any:
        """Run a body. Raises StepTimeout where the clock was moved past its limit meanwhile."""
        self.turn += 1
        end = self._clock.time + timedelta(seconds=timeout)
        self._bounds.append((end, timeout))
        try:
            value = body()
        finally:
            self._bounds.pop()
            self._keeper.look()
        if self._clock.time > end:
            raise StepTimeout(timeout)
        return value

    def call_async(self, coroutine: Coroutine[Any, Any, Any], timeout: float, grace: float) -> Any:
        """Run a coroutine to its end, beside the test's own event loop if it has one."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self.call(lambda: asyncio.run(coroutine), timeout, grace)
        with ThreadPoolExecutor(1) as beside:
            return self.call(lambda: beside.submit(asyncio.run, coroutine).result(), timeout, grace)

    def spend(self, span: timedelta) -> None:
        """The body at hand takes this long. Raises StepTimeout or HeartbeatTimeout in it where that is too long."""
        later = self._clock.time + span
        limits: list[tuple[datetime, ExecutionError]] = [
            (end, StepTimeout(timeout)) for end, timeout in self._bounds
        ]
        limits += [
            (end, HeartbeatTimeout(silence)) for end, silence in self._keeper.silences(self._clock.time)
        ]
        end, error = min(limits, key=lambda limit: limit[0])
        self._clock.move(min(later, end))
        self._keeper.look()
        if later > end:
            raise error

    @property
    def busy(self) -> bool:
        """Whether a body runs."""
        return bool(self._bounds)

    def rest(self) -> None:
        """No watchdog runs here."""

    def kill(self, turn: int) -> None:
        """Nothing here can be killed but by `Runner.crash`."""


class HandKeeper(Keeper):
    """Looks after the body at hand when the clock moves and when it ends, instead of now and then."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.journal, engine.settings)
        self._watched: list[Watched] = []
        self._beats: tuple[Held, float, datetime] | None = None  # the last sign of life, and when that was

    def watch(self, bundle: Watched) -> None:
        """Look after a bundle until `unwatch`."""
        self._watched.append(bundle)

    def unwatch(self, bundle: Watched) -> None:
        """The bundle is over."""
        self._watched.remove(bundle)

    def silences(self, now: datetime) -> Iterator[tuple[datetime, float]]:
        """When the body at hand will have been silent for too long, and how long that is.

        Nothing moves the clock between two calls, so a sign of life that is new was given now.
        """
        for each in self._watched:
            held = each.current
            if held is None or held.silence is None or held.context is None:
                continue
            beaten = held.context.beaten
            if self._beats is None or self._beats[0] is not held or self._beats[1] != beaten:
                self._beats = (held, beaten, now)
            yield self._beats[2] + timedelta(seconds=held.silence), held.silence

    def look(self) -> None:
        """Renew the leases of the bodies at hand, keep their progress, tell them what they lost."""
        held = [found for each in self._watched if (found := each.current) and found.lost_at is None]
        if held:
            self._renew(held, max(each.began for each in held))


class Messages(Dispatcher):
    """The broker: one message a step, the most urgent first."""

    def __init__(self, engine: Engine) -> None:
        self.stand_ins: dict[str, Callable[..., Any]] = {}  # of other applications' tasks
        self.outbox = Outbox(self.stand_ins, engine.actions)
        super().__init__(self.outbox, engine.settings, engine.durations)
        self._engine = engine
        self._numbers = count()
        self._waiting: list[tuple[int, int, str, str, str, int, str | None]] = []

    def call(
        self,
        task: str,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        queue: str,
        priority: int | None,
        run: str,
        callbacks: Sequence[Any],
        errbacks: Sequence[Any],
    ) -> bool:
        """Let the stand-in of another application's task do it, and answer for it."""
        about = callbacks[0].kwargs
        stand_in = self.stand_ins.get(name)
        try:
            if stand_in is None:
                raise NotInProcess(f"task {name!r} of another application without a stand-in (replace_task)")
            value = stand_in(*args, **kwargs)
        except Exception as error:
            foreign.raised_by(self._engine, error, **about)
        else:
            foreign.returned(self._engine, value, **about)
        return True

    def revoke(self, tasks: Sequence[str]) -> None:
        """Nothing waits here to be begun."""

    def publish(self, run: str, workflow: str, ready: Iterable[Ready]) -> int:
        """Announce ready steps."""
        steps = sorted(ready, key=lambda step: (-step.priority, -(step.rank or 0.0), step.idx))
        for step in steps:
            ranked = step.queue if is_ranked(step) else None
            head = (-step.priority, next(self._numbers))
            heapq.heappush(self._waiting, (*head, step.queue, step.action, run, step.idx, ranked))
        return len(steps)

    def publish_spans(self, run: str, workflow: str, spans: Iterable[Span]) -> int:
        """Announce ranges of ready steps."""
        ready = (
            Ready(span.first + at, f"{span.name}[{at}]", span.action, span.queue, span.priority,
                  0.0 if span.ranked else None, span.expect, False)
            for span in spans
            for at in range(span.many)
        )  # fmt: skip
        return self.publish(run, workflow, ready)

    def waiting(self, queue: str) -> int:
        """How many messages a queue holds."""
        return sum(1 for message in self._waiting if message[2] == queue)

    def take(self) -> tuple[str, str, int, str | None] | None:
        """The action, run and step of the next message; its queue where it may be for a more urgent step."""
        return heapq.heappop(self._waiting)[3:] if self._waiting else None

    def lose(self) -> None:
        """Forget all messages, as Redis may."""
        self._waiting.clear()

    def holds(self) -> set[tuple[str, int]]:
        """The steps that a message is on its way for."""
        return {message[4:6] for message in self._waiting}


class HandEngine(Engine):
    """Everything that running steps takes, in one thread."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.clock = clock
        self.store = Store(clock)
        super().__init__(settings, database=MemoryDatabase(settings, self.store))
        self.durations = Unmeasured(self.journal)
        self.bodies = self.actions = Bodies(registry.actions)
        self.messages = self.dispatcher = Messages(self)
        self.admission = Admission(self.database, self.messages, settings)
        self.admission.patience = 0.0  # the clock here does not move while somebody waits
        self.hand = self.keeper = HandKeeper(self)
        self.bounds = HandClock(clock, self.hand)

    @property
    def worker(self) -> str:
        """The one worker."""
        return _WORKER

    def guard(self) -> HandClock:
        """What holds bodies to their limits."""
        return self.bounds

    def work(self, limit: int | None = None) -> int:
        """Take messages until none is left, or so many; answers with how many."""
        done = 0
        while (limit is None or done < limit) and (message := self.messages.take()) is not None:
            action, run, idx, ranked = message
            with suppress(WorkerCrash):  # without a word: its lease has to run out
                Bundle(self, action, run, [idx], ranked).run()
            done += 1
        return done

    def settle(self, *, working: bool = True) -> None:
        """Ticks and work, until neither finds anything to do at this moment."""
        for _ in range(_ROUNDS):
            worked = self.work() if working else 0
            if not (self._tick() or worked):
                return
        raise AssertionError("the tick finds something to do again and again at one moment")

    def _tick(self) -> bool:
        """One round of recovery; whether it did anything."""
        done = 0
        self.journal.beat("tick", {"worker": self.worker})
        for chore in recovery.CHORES.values():
            try:
                done += chore(self)
            except NotInProcess:
                continue  # whatever would give this chore something to do is refused as well
        return bool(done)

    def next_moment(self, *, purging_too: bool = False) -> datetime | None:
        """When something will be due again, if nobody does anything; also that a run has been kept for long enough?"""
        now, never = self.clock.time, NEVER
        moments = [moment for moment in self.store.moments() if now < moment < never]
        queued = self.messages.holds()
        lost = timedelta(seconds=self.settings.redelivery_seconds)
        moments += [
            step["due_at"] + lost
            for step in self.store.where("step", state="ready", sent=True)
            if (step["run_id"], step["idx"]) not in queued
        ]
        if purging_too:
            moments += [moment for moment in purging.expiries(self.store, self.settings) if moment > now]
        return min(moments, default=None)


class Unmeasured(Durations):
    """No action is short here: every step travels alone, and in the same order each time."""

    def measured(self, action: str, seconds: float) -> None:
        """Take no note: the time here is not that of a clock."""
