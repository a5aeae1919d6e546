"""The tick: puts right what crashes, restarts and lost messages have left behind.

The law: a tick only takes what is due, under row locks that skip what another tick holds, so any number of
ticks at once is safe, and one that dies half-way has done half the work and harmed nothing. It never
guesses: a step belongs to its worker until its lease has run out.
"""

from __future__ import annotations

from collections import defaultdict

from ..tasks.errors import StepTimeout, WorkerLost
from ..tasks.logs import get_logger
from ..tasks.retry import Retry
from ..tasks.settings import Settings
from .dispatch import BROKER_GONE, Dispatcher
from .engine import Engine
from .execution import describe, settle
from .journal import Journal
from .records import Expired, Outcome
from .states import StepState

_BATCH = 5000  # steps in one statement
_ROUNDS = 20  # statements of one kind in one tick: the next tick goes on

log = get_logger("trellis.recovery")


def tick(engine: Engine) -> dict[str, int]:
    """One round of recovery; answers with what it did."""
    engine.journal.beat("tick", {"worker": engine.worker})
    engine.durations.refresh()
    return {"expired": _expired(engine), "published": _publish(engine)}


def _publish(engine: Engine) -> int:
    """Announce ready steps: new ones and due retries at once, others when their message seems lost."""
    journal, settings = engine.journal, engine.settings
    published = 0
    for queue in journal.ready_queues():
        published += _take(journal, engine.dispatcher, queue, sent=False, age=0.0)
        # A queue without messages, and still ready steps that were announced a while ago: the messages are
        # gone (FLUSHALL, a crash between two lines). While there are messages, ours may be among them, and
        # announcing 100,000 waiting steps again and again would only grow the queue.
        age = (
            settings.redelivery_seconds if _dry(engine.dispatcher, queue) else settings.redelivery_max_seconds
        )
        lost = _take(journal, engine.dispatcher, queue, sent=True, age=age)
        if lost:
            log.info("steps.republished", queue=queue, steps=lost)
        published += lost
    return published


def _take(journal: Journal, dispatcher: Dispatcher, queue: str, *, sent: bool, age: float) -> int:
    taken = 0
    for _ in range(_ROUNDS):
        found = journal.take_ready(queue, sent=sent, age=age, limit=_BATCH)
        for (run, workflow), steps in found.items():
            dispatcher.publish(run, workflow, steps)
        count = sum(map(len, found.values()))
        taken += count
        if count < _BATCH:
            break
    return taken


def _dry(dispatcher: Dispatcher, queue: str) -> bool:
    try:
        return dispatcher.dry(queue)
    except BROKER_GONE:
        return False


def _expired(engine: Engine) -> int:
    """Decide what becomes of steps whose worker is silent."""
    count = 0
    for _ in range(_ROUNDS):
        late = engine.journal.take_expired(_BATCH)
        runs: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
        for step in late:
            runs[step.run, step.workflow].append(verdict(step, engine.settings))
        for (run, workflow), outcomes in runs.items():
            silent = sorted({step.worker for step in late if step.run == run})
            log.warning("leases.expired", run=run, steps=len(outcomes), workers=silent)
            completed = engine.journal.complete(run, outcomes, worker=engine.worker)
            engine.dispatcher.publish(run, workflow, completed.free)
            if completed.closed:
                engine.journal.notify(run)
        count += len(late)
        if len(late) < _BATCH:
            break
    return count


def verdict(late: Expired, settings: Settings) -> Outcome:
    """What becomes of a step whose lease has run out: pure but for the jitter.

    A step past its own time limit was killed for it: a failure like any other. Else its worker vanished,
    which is not the step's fault, until it has happened too often to be chance. Claims that ended in no
    recorded failure were crashes.
    """
    options = late.options or {}
    timeout = float(options.get("timeout") or settings.step_timeout)
    if late.ran >= timeout:
        retry = Retry.model_validate(options.get("retry") or {"attempts": 1})
        error = describe(StepTimeout(timeout), late.name)
        return settle(late.idx, late.lease, late.failures + 1, retry, options, error)
    crashes = late.attempt - late.failures
    error = describe(
        WorkerLost(f"worker {late.worker} fell silent (crash {crashes} of this step)"), late.name
    )
    if crashes <= settings.max_crashes:
        return Outcome(late.idx, late.lease, StepState.READY, error=error)
    return settle(late.idx, late.lease, 1, Retry(1), options, error)
