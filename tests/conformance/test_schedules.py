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


def held(name: str) -> Workflow:
    """A workflow that waits to be told, and knows which tick it is for."""
    wf = Workflow(name, params={"tick": str}, register=False)
    wf.wait_for("hold", "go")
    wf.step("tick", steps.returns, value=wf.params.tick, after=["hold"])
    return wf


def test_a_tick_meets_an_open_run_as_the_policy_says(side: Side) -> None:
    """Skipped, kept for later, in its place, or beside it."""
    schedules, client = side.client.schedules, side.client
    policies = ("skip", "queue", "cancel", "allow")
    for policy in policies:
        schedules.create(policy, held(f"meets-{policy}"), every=1, overlap=policy, tick_param="tick")
    side.eventually(lambda: schedules.get("skip").skipped and schedules.get("queue").queued)
    side.eventually(lambda: all(schedules.get(policy).started >= 2 for policy in ("cancel", "allow")))
    for policy in policies:
        schedules.pause(policy)
    runs = {policy: client.list(f"meets-{policy}")[::-1] for policy in policies}
    states = {policy: [client.get(run).state for run in found] for policy, found in runs.items()}
    assert (len(states["skip"]), len(states["queue"])) == (1, 1)
    assert set(states["cancel"][:-1]) == {RunState.CANCELLED}
    assert RunState.CANCELLED not in [*states["allow"], states["cancel"][-1]]
    for policy in policies:
        schedules.delete(policy)
        assert client.bulk("cancel", f"meets-{policy}").refused == []


def test_ticks_that_were_missed_are_made_up_for_by_hand(side: Side) -> None:
    """One after the other, also while the schedule is paused; each knows its tick, in the time zone of the schedule."""
    schedules, client = side.client.schedules, side.client
    schedules.create(
        "nightly",
        held("made-up"),
        cron="30 2 * * *",
        timezone="Europe/Berlin",
        tick_param="tick",
        paused=True,
    )
    # On 29 March 2026 half past two is left out in Berlin: that tick comes with the end of the gap.
    days = [datetime(2026, 3, day, 12, tzinfo=UTC) for day in (27, 30)]
    assert schedules.backfill("nightly", *days) == 3
    told = []
    for _ in range(3):
        run = side.eventually(lambda: [run for run in client.list("made-up") if not run.finished])[0]
        side.pass_time(0.3)
        assert len([each for each in client.list("made-up") if not each.finished]) == 1
        client.signal(run, "go")
        told.append(client.result(client.wait(run, timeout=60))["tick"])
    assert told == ["2026-03-28T02:30:00+01:00", "2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]
    assert schedules.backfill("nightly", *days) == 3
    side.pass_time(0.5)
    assert len(client.list("made-up")) == 3
    schedules.delete("nightly")
