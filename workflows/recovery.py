"""The tick: puts right what crashes, restarts and lost messages have left behind.

The law: a tick only takes what is due, under row locks that skip what another tick holds, so any number of
ticks at once is safe, and one that dies half-way has done half the work and harmed nothing. It never
guesses: a step belongs to its worker until its lease has run out.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable

from ..tasks.errors import StepTimeout, WorkerLost
from ..tasks.logs import get_logger
from ..tasks.retry import Retry
from ..tasks.settings import Settings
from . import deadlines, effects, following
from .beginnings import begin as begin_runs
from .dispatch import BROKER_GONE, Dispatcher
from .engine import Engine
from .execution import describe, settle
from .journal import Journal
from .pauses import Pauses
from .records import Expired, Outcome
from .retention import Purge
from .schedules import fire as fire_schedules
from .states import StepState
from .trimming import Trim

_BATCH = 5000  # steps in one statement
_CROWDED = 1000  # messages in a queue from which on nothing is announced again
_FEW = 100  # steps that are, below that
_ROUNDS = 20  # statements of one kind in one tick: the next tick goes on

log = get_logger("trellis.recovery")


def tick(engine: Engine) -> dict[str, int]:
    """One round of recovery; answers with what it did."""
    engine.journal.beat("tick", {"worker": engine.worker})
    engine.durations.refresh()
    done: dict[str, int] = {}
    failure: Exception | None = None
    for name, chore in CHORES.items():
        try:
            done[name] = chore(engine)
        except Exception as error:
            log.exception("chore.failed", chore=name)  # the others must not wait for it
            failure = failure or error
    if failure is not None:
        raise failure
    return done


def _publish(engine: Engine) -> int:
    """Announce ready steps: new ones and due retries at once, others when their message seems lost."""
    journal, settings, dispatcher = engine.journal, engine.settings, engine.dispatcher
    published = 0
    for queue in journal.ready_queues():
        published += _take(journal, dispatcher, queue, sent=False, age=0.0)
        # No message in a queue, and still ready steps that were announced a while ago: the messages are gone
        # (FLUSHALL, a crash between two lines). While there are some, ours may be among them: announcing 100,000
        # waiting steps again and again would fill the broker, so a few of the oldest are, and only into a short queue.
        waiting = _waiting(dispatcher, queue)
        if waiting == 0:
            lost = _take(journal, dispatcher, queue, sent=True, age=settings.redelivery_seconds)
        elif waiting is not None and waiting < _CROWDED:
            lost = _take(journal, dispatcher, queue, sent=True, age=settings.redelivery_max_seconds, few=True)
        else:
            continue
        if lost:
            log.info("steps.republished", queue=queue, steps=lost)
        published += lost
    return published


def _take(
    journal: Journal, dispatcher: Dispatcher, queue: str, *, sent: bool, age: float, few: bool = False
) -> int:
    taken = 0
    batch = _FEW if few else _BATCH
    for _ in range(1 if few else _ROUNDS):
        found = journal.take_ready(queue, sent=sent, age=age, limit=batch)
        for (run, workflow), steps in found.items():
            if workflow:
                dispatcher.publish(run, workflow, steps)
            else:
                Pauses(journal.database).park(run)  # what became ready after its run was paused
        count = sum(map(len, found.values()))
        taken += count
        if count < batch:
            break
    return taken


def _waiting(dispatcher: Dispatcher, queue: str) -> int | None:
    try:
        return dispatcher.waiting(queue)
    except BROKER_GONE:
        return None


def _expired(engine: Engine) -> int:
    """Decide what becomes of steps whose worker is silent."""
    count = 0
    for _ in range(_ROUNDS):
        late = engine.journal.take_expired(_BATCH)
        runs: dict[tuple[str, str], list[Expired]] = defaultdict(list)
        for step in late:
            runs[step.run, step.workflow].append(step)
        for (run, workflow), steps in runs.items():
            log.warning(
                "leases.expired", run=run, steps=len(steps), workers=sorted({s.worker for s in steps})
            )
            try:
                _settle(engine, run, workflow, steps)
            except Exception:
                log.exception("recovery.failed", run=run)  # the others must not wait for it
        count += len(late)
        if len(late) < _BATCH:
            break
    return count


def _woken(engine: Engine) -> int:
    """Announce parked steps whose time has come, or whose queue is paused no longer."""
    count = 0
    for take in (engine.journal.take_due, engine.journal.take_resumed):
        for _ in range(_ROUNDS):
            found = take(_BATCH)
            for (run, workflow), steps in found.items():
                engine.dispatcher.publish(run, workflow, steps)
            taken = sum(map(len, found.values()))
            count += taken
            if taken < _BATCH:
                break
    return count


def _settle(engine: Engine, run: str, workflow: str, steps: list[Expired]) -> None:
    doubtful = {step.idx: parked for step in steps if (parked := effects.expired(step, engine.settings))}
    for parked in doubtful.values():
        effects.put_aside(engine.journal, run, parked)
    others = [step for step in steps if step.idx not in doubtful]
    if others:
        outcomes = [verdict(step, engine.settings) for step in others]
        deadlines.record(engine, run, workflow, others, outcomes)


def verdict(late: Expired, settings: Settings) -> Outcome:
    """What becomes of a step whose lease has run out for good: pure but for the jitter.

    Its worker vanished, which is not the step's fault, until it has happened too often to be chance. Claims that
    ended in no recorded failure were crashes. A body that is stopped for its time limit is recorded by its own
    worker; only a C call that holds the interpreter is killed without a word, and looks like a crash.
    """
    options = late.options or {}
    timeout = float(options.get("timeout") or settings.step_timeout)
    crashes = late.attempt - late.failures
    now = time.monotonic()
    if crashes <= settings.max_crashes:
        lost = WorkerLost(f"worker {late.worker} fell silent (crash {crashes} of this step)")
        error = describe(lost, late.name)
        return Outcome(late.idx, late.lease, StepState.READY, error=error, ran=late.ran, ended=now)
    last = (
        StepTimeout(timeout)
        if late.ran >= timeout
        else WorkerLost(f"{crashes} workers in a row fell silent with this step, the last was {late.worker}")
    )
    final = settle(late.idx, late.lease, 1, Retry(1), options, describe(last, late.name))
    return final._replace(ran=late.ran, ended=now)


# What a tick does, in order: each chore takes what is due and answers with how much that was.
CHORES: dict[str, Callable[[Engine], int]] = {
    "begun": begin_runs,
    "woken": _woken,
    "scheduled": fire_schedules,
    "published": _publish,
    "expired": _expired,
    "paused": lambda engine: Pauses(engine.database).stray(),
    "purged": lambda engine: Purge(engine.database, engine.settings).expired(),
    "trimmed": lambda engine: Trim(engine.database, engine.settings).outlived(),
    "followed": lambda engine: following.follow_all(engine.journal, engine.dispatcher),
    "admitted": lambda engine: engine.admission.sweep(),
    "overdue": deadlines.queue_timeouts,
    "late": deadlines.run_deadlines,
    "sealed": lambda engine: engine.sealing.look(),
    "swept": lambda engine: engine.sweeping.look(),
}
