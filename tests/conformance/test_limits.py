"""Who has to wait for whom, and how long, is the same on the engine and in-process."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import steps
from sides import Side

from trellis.tasks.errors import RunFailed
from trellis.workflows import Default, Rate, Retry, RunState, Workflow

AGAIN = Retry(2, base=0.2, jitter=0)  # a place is kept between two attempts


def order(side: Side) -> list[str]:
    """The steps in the order in which their bodies began."""
    return [line.split()[1] for line in Path(side.ledger).read_text().splitlines()]


def queued(side: Side, wf: Workflow, **options: Any) -> None:
    """A step that needs two attempts and has its turn first, and two that do not get in between."""
    first = {**options, "priority": 9, "retry": AGAIN}
    wf.step("first", steps.fails_until, ledger=side.ledger, attempt=2, **first)
    for priority, name in ((1, "last"), (5, "then")):
        wf.step(name, steps.effect, ledger=side.ledger, priority=priority, **options)


def test_a_place_under_a_key_is_kept_until_the_step_is_over(side: Side, wf: Workflow) -> None:
    """Also while it waits for a retry; then it is the turn of the most urgent."""
    queued(side, wf, concurrency_key="place", limit=1)
    side.finish(wf)
    assert order(side) == ["first", "first", "then", "last"]


def test_a_run_has_no_more_steps_at_once_than_it_says(side: Side, wf: Workflow) -> None:
    """What waits for the outside world does not count."""
    wf = Workflow(wf.name, max_parallel=1, register=False)
    wf.wait_for("hold", "go")
    queued(side, wf)
    run = side.client.start(wf)
    side.eventually(lambda: side.states(run)["last"] == "succeeded")
    assert order(side) == ["first", "first", "then", "last"]
    side.client.signal(run, "go")
    assert side.client.wait(run, timeout=60).state is RunState.SUCCEEDED


def test_runs_with_one_key_have_their_turns(side: Side, wf: Workflow) -> None:
    """The second one is not let in before the first one is over, however that ends; other keys are free."""
    wf = Workflow(wf.name, params={"who": str}, concurrency_key="who:{params.who}", limit=1, register=False)
    wf.wait_for("hold", "go")
    first, second, third, other = (side.client.start(wf, {"who": who}) for who in "aaab")
    side.eventually(lambda: side.states(first)["hold"] == side.states(other)["hold"] == "parked")
    assert [run.state for run in map(side.client.get, (second, third))] == [RunState.PENDING] * 2
    [reason] = side.client.why(second)
    assert "1 run at once with concurrency key 'who:a'" in reason.text
    assert f"held by run {first.id} of '{wf.name}'" in reason.text
    side.client.signal(first, "go")
    side.eventually(lambda: side.client.get(second).state is RunState.RUNNING)
    side.client.cancel(second)
    side.eventually(lambda: side.client.get(third).state is RunState.RUNNING)
    for run in (third, other):
        side.client.signal(run, "go")
        assert side.client.wait(run, timeout=60).state is RunState.SUCCEEDED


def test_a_rate_spaces_what_begins(side: Side, wf: Workflow) -> None:
    """Each attempt counts."""
    wf.map(
        "each",
        steps.effect,
        over=[1, 2, 3],
        ledger=side.ledger,
        value=wf.item,
        rate=Rate("slots", 1, per=0.2),
    )
    run = side.finish(wf)
    began = sorted(step.started_at for step in side.client.steps(run) if step.action == "effect")
    gaps = [later - earlier for earlier, later in pairwise(began)]
    assert len(gaps) == 2
    assert all(gap >= timedelta(seconds=0.19) for gap in gaps)


def test_tenants_take_turns_behind_a_limit(side: Side, wf: Workflow) -> None:
    """The one with the long backlog does not go first all the time."""
    wf = Workflow(wf.name, params={"hold": str}, register=False)
    wf.wait_for("hold", "go")
    wf.map(
        "each", steps.effect, over=[1, 2, 3], ledger=side.ledger, value=wf.item, concurrency_key="shared", limit=1,
        retry=1,
    )  # fmt: skip
    blocker = Workflow("blocker", register=False)
    blocker.step(
        "blocker",
        steps.fails_until,
        ledger=side.ledger,
        attempt=2,
        retry=AGAIN,
        concurrency_key="shared",
        limit=1,
    )
    first = side.client.start(blocker)
    side.eventually(lambda: side.effects()["blocker"] == 1)
    runs = {side.client.start(wf, {"hold": who}, tenant=who).id: who for who in ("big", "small")}
    for run in runs:
        side.client.signal(run, "go")
        side.client.wait(run, timeout=60)
    side.client.wait(first, timeout=60)
    lines = [line.split() for line in Path(side.ledger).read_text().splitlines()]
    turns = [runs[line[0]] for line in lines if line[0] in runs]
    assert turns == ["big", "small"] * 3


def test_a_step_that_nobody_takes_in_time_fails(side: Side, wf: Workflow) -> None:
    """With its limit in the message; its policy follows."""
    wf.step("late", steps.noop, queue="nowhere", queue_timeout=0.3, retry=1, on_failure=Default("late"))
    side.client.pause(queue="nowhere")
    run = side.finish(wf)
    side.client.resume(queue="nowhere")
    assert side.client.result(run) == {"late": "late"}
    [step] = side.client.steps(run)
    assert step.error is not None
    assert (step.error["type"], step.failures) == ("QueueTimeout", 1)


def test_a_run_past_its_deadline_fails(side: Side, wf: Workflow) -> None:
    """With all that is open in it, children too."""
    inner = Workflow("late-child", register=False)
    inner.wait_for("never", "never")
    wf.child("below", inner)
    run = side.finish(wf, deadline=0.5)
    assert run.state is RunState.FAILED
    with pytest.raises(RunFailed, match=r"DeadlineExceeded: .*0\.5\d? s"):
        side.client.result(run)
    [child] = side.client.list("late-child", limit=1)
    assert side.client.wait(child, timeout=60).finished


def test_a_body_that_falls_silent_is_stopped(side: Side, wf: Workflow) -> None:
    """After its heartbeat, which is less than it may take in all."""
    wf.step("silent", steps.naps, ledger=side.ledger, timeout=30, heartbeat=0.3, on_failure="skip")
    run = side.finish(wf)
    [step] = side.client.steps(run)
    assert step.error is not None
    assert (step.error["type"], step.error["message"]) == (
        "HeartbeatTimeout", "the body was silent for longer than its heartbeat of 0.3 s",
    )  # fmt: skip
