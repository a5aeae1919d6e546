"""Runs within runs and reruns behind limits: both sides hold back and let go the same."""

from __future__ import annotations

import steps
from sides import Side

from trellis.workflows import RunState, Workflow


def test_a_paused_tree_stands_still_and_goes_on(side: Side, wf: Workflow) -> None:
    """The child run as well, whatever it is told, and none of its steps holds a place."""
    inner = Workflow(f"{wf.name}-inner", register=False)
    hold = inner.wait_for("hold", "go")
    inner.step("after", steps.effect, ledger=side.ledger, after=[hold], concurrency_key=wf.name)
    wf.child("inner", inner)
    run = side.client.start(wf)
    [child] = side.eventually(lambda: side.client.list(inner.name))
    side.eventually(lambda: side.states(child)["hold"] == "parked")
    assert side.client.pause(run) is True
    assert side.client.get(child).state is RunState.PAUSED
    side.client.signal(child, "go")
    side.pass_time(0.5)
    assert side.effects() == {}
    assert side.client.resume(run) is True
    assert side.client.wait(run, timeout=60).state is RunState.SUCCEEDED
    assert side.effects() == {"after": 1}


def test_a_bulk_refuses_no_run_that_another_one_of_it_takes_along(side: Side, wf: Workflow) -> None:
    """The newest come first, so a child is told to go on before its parent is, which lets both go."""
    inner = Workflow(wf.name, register=False)
    inner.wait_for("hold", "go")
    wf.child("inner", inner)
    run = side.client.start(wf)
    side.eventually(lambda: len(side.client.list(wf.name)) == 2)
    child = next(each.id for each in side.client.list(wf.name) if each.id != run.id)
    side.eventually(lambda: side.states(child)["hold"] == "parked")
    assert side.client.pause(run) is True
    assert side.client.bulk("resume", wf.name) == (2, 2, [])
    assert {side.client.get(each).state for each in (run, child)} == {RunState.RUNNING}
    side.client.signal(child, "go")
    assert side.client.wait(run, timeout=60).state is RunState.SUCCEEDED


def test_a_rerun_waits_for_its_turn(side: Side, wf: Workflow) -> None:
    """Behind the open run that has its key."""
    alone = Workflow(wf.name, concurrency_key=wf.name, register=False)
    hold = alone.wait_for("hold", "go")
    alone.step("after", steps.effect, ledger=side.ledger, after=[hold])
    old = side.client.start(alone)
    side.client.signal(old, "go")
    side.client.wait(old, timeout=60)
    other = side.client.start(alone)
    side.eventually(lambda: side.states(other)["hold"] == "parked")
    again = side.client.rerun(old, from_step="after")
    side.pass_time(0.5)
    assert side.states(again) == {"hold": "succeeded", "after": "parked"}
    side.client.signal(other, "go")
    for run in (other, again):
        assert side.client.wait(run, timeout=60).state is RunState.SUCCEEDED
    assert side.effects() == {"after": 3}
