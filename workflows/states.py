"""The states of runs and steps, and the legal moves between them: pure.

The law: whatever changes a state follows this table; the SQL of the journal is held to it by a test, and
`move` raises on anything else.

    step    waiting ──▶ ready ──▶ running ──▶ succeeded
               │          ▲ ▲        │ ├─────▶ failed
               │          │ └────────┤ └─────▶ skipped
               │          └─ parked ◀┘          (waits for a signal, a person, a time, a run, a place in a limit)
               ├──────────────▶ running         (a worker goes on with a step that it freed itself)
               └──────────────▶ parked ◀── ready  (a limit is full, or the run is paused)
            any of waiting, ready, running, parked ──▶ cancelled

    run     pending ──▶ running ──▶ succeeded | failed | cancelled
            pending, running ◀──▶ paused; a paused run may also end

A retry of a failed or cancelled run opens it again: its failed and cancelled steps wait or are ready once more. Those
moves are tables of their own, since nothing else leaves an end.
"""

from __future__ import annotations

from enum import StrEnum

from ..tasks.errors import IllegalMove


class StepState(StrEnum):
    """Where a step is."""

    WAITING = "waiting"  # for other steps
    READY = "ready"  # may be claimed, now or at its due time
    RUNNING = "running"  # a worker holds its lease
    PARKED = "parked"  # waits for the outside world and holds no worker
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # no attempt is left
    SKIPPED = "skipped"  # its condition was false, or something that it needs was skipped
    CANCELLED = "cancelled"  # its run ended before it did


class RunState(StrEnum):
    """Where a run is."""

    PENDING = "pending"  # accepted; no step was claimed yet
    RUNNING = "running"
    PAUSED = "paused"  # nothing of it begins until somebody resumes it
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


STEP_MOVES: dict[StepState, frozenset[StepState]] = {
    StepState.WAITING: frozenset({StepState.READY, StepState.RUNNING, StepState.PARKED, StepState.CANCELLED}),
    StepState.READY: frozenset({StepState.RUNNING, StepState.PARKED, StepState.CANCELLED}),
    StepState.RUNNING: frozenset(
        {
            StepState.READY,
            StepState.PARKED,
            StepState.SUCCEEDED,
            StepState.FAILED,
            StepState.SKIPPED,
            StepState.CANCELLED,
        }
    ),
    StepState.PARKED: frozenset({StepState.READY, StepState.CANCELLED}),
    StepState.SUCCEEDED: frozenset(),
    StepState.FAILED: frozenset(),
    StepState.SKIPPED: frozenset(),
    StepState.CANCELLED: frozenset(),
}

RUN_MOVES: dict[RunState, frozenset[RunState]] = {
    RunState.PENDING: frozenset({RunState.RUNNING, RunState.PAUSED, RunState.CANCELLED, RunState.FAILED}),
    RunState.RUNNING: frozenset({RunState.PAUSED, RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED}),
    RunState.PAUSED: frozenset(
        {RunState.PENDING, RunState.RUNNING, RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED}
    ),
    RunState.SUCCEEDED: frozenset(),
    RunState.FAILED: frozenset(),
    RunState.CANCELLED: frozenset(),
}

# A retry of a whole run opens it again, in place: the only moves out of an end. What succeeded, was skipped, or failed
# under a policy that let the run go on, stays.
STEP_REOPENINGS: dict[StepState, frozenset[StepState]] = {
    StepState.FAILED: frozenset({StepState.WAITING, StepState.READY, StepState.PARKED}),
    StepState.CANCELLED: frozenset({StepState.WAITING, StepState.READY, StepState.PARKED}),
}
RUN_REOPENINGS: dict[RunState, frozenset[RunState]] = {
    RunState.FAILED: frozenset({RunState.RUNNING, RunState.PAUSED}),  # paused: where its workflow is
    RunState.CANCELLED: frozenset({RunState.RUNNING, RunState.PAUSED}),
}

STEP_ENDS = frozenset(state for state, targets in STEP_MOVES.items() if not targets)
RUN_ENDS = frozenset(state for state, targets in RUN_MOVES.items() if not targets)


def move_step(source: StepState, target: StepState) -> StepState:
    """The target state. Raises IllegalMove where the table has no such move."""
    if target not in STEP_MOVES[source]:
        raise IllegalMove("step", source, target)
    return target


def move_run(source: RunState, target: RunState) -> RunState:
    """The target state. Raises IllegalMove where the table has no such move."""
    if target not in RUN_MOVES[source]:
        raise IllegalMove("run", source, target)
    return target
