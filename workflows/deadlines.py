"""What waited or ran too long: steps that no worker took in time, runs past their deadline.

The law: chores of the tick. What becomes of a step goes through the same fence as any outcome, and what becomes of a
run through the same end as any failure; times are those of Postgres' clock.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from uuid import uuid4

from psycopg.rows import tuple_row

from ..tasks.errors import DeadlineExceeded, QueueTimeout
from ..tasks.logs import get_logger
from ..tasks.retry import Retry
from . import ending
from .admission import SQL
from .engine import Engine
from .execution import describe, settle
from .records import Expired, Outcome
from .states import RunState, StepState

_STEPS = 1000  # in one tick
_RUNS = 100  # in one tick

log = get_logger("trellis.deadlines")


def record(
    engine: Engine, run: str, workflow: str, steps: Sequence[Expired], outcomes: list[Outcome]
) -> None:
    """Complete steps that the tick took over, and announce what follows."""
    completed = engine.journal.complete(run, outcomes, worker=engine.worker)
    if len(completed.won) < len(
        outcomes
    ):  # the run was ended meanwhile, and nothing of these steps is at work
        ending.let_go(engine.journal, engine.dispatcher, run, {outcome.lease for outcome in outcomes})
    engine.dispatcher.publish(run, workflow, completed.free)
    if completed.closed:
        ending.announce(engine.journal, engine.dispatcher, run)
    over = {o.idx for o in outcomes if o.idx in completed.won and o.state is not StepState.READY}
    engine.admission.left(run, [(step.idx, step.options) for step in steps if step.idx in over], completed)


def queue_timeouts(engine: Engine) -> int:
    """Steps that were ready for longer than their `queue_timeout` fail, as their policy says."""
    lease = str(uuid4())

    def once() -> list[Expired]:
        with engine.database.connection() as connection:
            cursor = connection.cursor(row_factory=tuple_row)
            rows = cursor.execute(SQL["take_overdue"], {"lease": lease, "limit": _STEPS}).fetchall()
            never_begun = (lease, None, None)  # no effect was announced, nothing was noted
            return [Expired._make((str(run), *rest, *never_begun)) for run, *rest in rows]

    runs: dict[tuple[str, str], list[Expired]] = defaultdict(list)
    for step in engine.database.again(once):
        runs[step.run, step.workflow].append(step)
    for (run, workflow), steps in runs.items():
        log.warning("steps.overdue", run=run, steps=[step.name for step in steps[:10]], count=len(steps))
        record(engine, run, workflow, steps, [overdue(step) for step in steps])
    return sum(map(len, runs.values()))


def overdue(late: Expired) -> Outcome:
    """What becomes of a step that waited too long: pure but for the jitter."""
    options = late.options or {}
    retry = Retry.model_validate(options.get("retry") or {"attempts": 1})
    error = describe(QueueTimeout(float(options["queue_timeout"])), late.name)
    outcome = settle(late.idx, late.lease, late.failures + 1, retry, options, error)
    return outcome._replace(ended=time.monotonic())


def run_deadlines(engine: Engine) -> int:
    """Runs that are not over at their deadline fail."""

    def once() -> list[tuple[str, float]]:
        with engine.database.connection() as connection:
            cursor = connection.cursor(row_factory=tuple_row)
            rows = cursor.execute(SQL["late_runs"], {"limit": _RUNS}).fetchall()
            return [(str(run), seconds) for run, seconds in rows]

    late = engine.database.again(once)
    for run, seconds in late:
        # The two moments are some hundred microseconds apart from what was asked for.
        error = {**describe(DeadlineExceeded(round(seconds, 2)), ""), "step": None}
        if engine.journal.end(run, RunState.FAILED, error):
            log.warning("run.late", run=run, deadline=seconds)
            ending.announce(engine.journal, engine.dispatcher, run)
    return len(late)
