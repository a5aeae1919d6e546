"""Runs begin at their time on the engine and in-process alike."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import steps
from sides import Side

from trellis.tasks.errors import DefinitionError, NotFound
from trellis.workflows import Debounce, RunState, Singleton, Workflow


def one(name: str) -> Workflow:
    """A workflow of one step."""
    wf = Workflow(name, params={"n": int}, register=False)
    wf.step("sum", steps.add, a=wf.params.n)
    return wf


def test_a_delayed_run_begins_at_its_time(side: Side, wf: Workflow) -> None:
    """Not before; a moment that is past is now."""
    later = side.client.start(one("later"), {"n": 1}, delay=0.5)
    past = side.client.start(one("later"), {"n": 2}, at=datetime(2020, 1, 1, tzinfo=UTC))
    assert side.client.result(side.client.wait(past, timeout=60)) == {"sum": 3}
    run = side.client.wait(later, timeout=60)
    assert run.started_at - run.created_at >= timedelta(seconds=0.49)  # type: ignore[operator]
    with pytest.raises(DefinitionError, match="at= and delay= both say when the run begins"):
        side.client.start(one("later"), {"n": 1}, delay=1, at=datetime(2020, 1, 1, tzinfo=UTC))


def test_a_debounced_run_takes_the_last_parameters(side: Side) -> None:
    """As long as it has not begun."""
    runs = [side.client.start(one("bounced"), {"n": n}, debounce=Debounce("k", wait=1.0)) for n in (1, 2, 3)]
    assert len({run.id for run in runs}) == 1
    assert side.client.result(side.client.wait(runs[0], timeout=60)) == {"sum": 4}
    again = side.client.start(one("bounced"), {"n": 9}, debounce=Debounce("k", wait=0.1))
    assert again.id != runs[0].id
    assert side.client.result(side.client.wait(again, timeout=60)) == {"sum": 10}


def test_there_is_one_of_a_singleton(side: Side, wf: Workflow) -> None:
    """While it is open, and within its window after that."""
    wf.wait_for("hold", "go")
    first = side.client.start(wf, singleton="only")
    assert side.client.start(wf, singleton="only").id == first.id
    other = side.client.start(wf, singleton="other")
    assert other.id != first.id
    for run in (first, other):
        side.client.signal(run, "go")
        side.client.wait(run, timeout=60)
    assert side.client.start(wf, singleton=Singleton("only", window=3600)).id == first.id
    third = side.client.start(wf, singleton="only")
    assert third.id != first.id
    side.client.cancel(third)


def test_a_schedule_starts_runs_until_it_is_deleted(side: Side) -> None:
    """And may be paused, triggered and read."""
    schedules = side.client.schedules
    name = "every-second"
    schedules.create(name, one(name), params={"n": 1}, every=1)
    side.eventually(lambda: schedules.get(name).started >= 2)
    assert schedules.pause(name).paused
    by_hand = schedules.trigger(name)
    assert side.client.result(side.client.wait(by_hand, timeout=60)) == {"sum": 2}
    found = schedules.get(name)
    assert (found.workflow, found.params, found.every, found.paused) == (name, {"n": 1}, 1.0, True)
    assert found.last_run == by_hand.id
    side.eventually(lambda: all(run.state is RunState.SUCCEEDED for run in side.client.list(name)))
    assert len(side.client.list(name)) == found.started
    schedules.delete(name)
    with pytest.raises(NotFound, match="there is no schedule 'every-second'"):
        schedules.get(name)
