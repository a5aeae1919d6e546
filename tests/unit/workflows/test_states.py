"""The tables of legal moves."""

import pytest

from trellis.tasks.errors import IllegalMove
from trellis.workflows.states import (
    RUN_ENDS,
    RUN_MOVES,
    STEP_ENDS,
    STEP_MOVES,
    RunState,
    StepState,
    move_run,
    move_step,
)  # fmt: skip


def test_ends_are_final_and_everything_reaches_one() -> None:
    """No move leaves an end; from any state some end can be reached."""
    assert {state.value for state in STEP_ENDS} == {"succeeded", "failed", "skipped", "cancelled"}
    assert {state.value for state in RUN_ENDS} == {"succeeded", "failed", "cancelled"}
    for state in StepState:
        reached, seen = [state], {state}
        for each in reached:
            new = STEP_MOVES[each] - seen
            seen |= new
            reached += new
        assert seen & STEP_ENDS


def test_illegal_moves_raise_and_name_both_states() -> None:
    """Every pair outside the table."""
    for source in StepState:
        for target in set(StepState) - STEP_MOVES[source]:
            with pytest.raises(IllegalMove) as caught:
                move_step(source, target)
            assert (caught.value.source, caught.value.target) == (source, target)
    for begin in RunState:
        for end in set(RunState) - RUN_MOVES[begin]:
            with pytest.raises(IllegalMove, match=f"run cannot go from {begin} to {end}"):
                move_run(begin, end)


def test_legal_moves_give_the_target() -> None:
    """The way of an ordinary step and run."""
    assert move_step(StepState.READY, StepState.RUNNING) is StepState.RUNNING
    assert move_run(RunState.RUNNING, RunState.SUCCEEDED) is RunState.SUCCEEDED
