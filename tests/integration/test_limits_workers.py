"""Limits with real workers: what a ledger outside the system saw of how many were at work at once."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import steps
from stack import Stack, eventually

from trellis.workflows import Rate, RunState, Workflow


def at_once(stack: Stack) -> int:
    """The most bodies that were between their two lines at one moment."""
    most = now = 0
    for line in stack.lines():
        now += 1 if line[-1] == "begun" else -1
        most = max(most, now)
    return most


def test_no_more_bodies_at_once_than_the_limit(stack: Stack) -> None:
    """Four processes, three runs, one key: never more than two inside, and all of them come through."""
    wf = Workflow("narrow", register=False)
    wf.map("each", steps.inside, over=list(range(15)), ledger=stack.ledger, concurrency_key="k", limit=2)
    stack.worker(concurrency=4)
    stack.beat()
    runs = [stack.client.start(wf) for _ in range(3)]
    for run in runs:
        assert stack.client.wait(run, timeout=120).state is RunState.SUCCEEDED
    assert len(stack.lines()) == 3 * 15 * 2
    assert at_once(stack) == 2
    assert stack.rows("SELECT * FROM permit") == []


def test_a_killed_worker_leaks_no_place(stack: Stack) -> None:
    """Its step keeps the place, runs again elsewhere, and gives it up; then the next one has it."""
    file = stack.folder / "go"
    wf = Workflow("held", register=False)
    wf.step("only", steps.wait_for, ledger=stack.ledger, file=str(file), concurrency_key="k")
    worker = stack.worker("first", concurrency=1)
    stack.beat()
    runs = [stack.client.start(wf).id for _ in range(2)]
    eventually(lambda: stack.lines(), what="the first body runs")
    worker.send(signal.SIGKILL)
    stack.worker("second", concurrency=1)
    eventually(lambda: len(stack.lines()) == 2, what="the body runs again")
    assert {line[0] for line in stack.lines()} == {runs[0]}
    file.touch()
    for run in runs:
        assert stack.client.wait(run, timeout=60).state is RunState.SUCCEEDED
    assert stack.rows("SELECT * FROM permit") == []


def test_cancelling_a_run_gives_its_places_to_others(stack: Stack) -> None:
    """Also the run's own place, that of a workflow with a key."""
    wf = Workflow("held", params={"file": str}, concurrency_key="k", register=False)
    wf.step("only", steps.wait_for, ledger=stack.ledger, file=wf.params.file)
    there = stack.folder / "there"
    there.touch()
    stack.worker()
    stack.beat()
    first = stack.client.start(wf, {"file": str(stack.folder / "never")}).id
    eventually(lambda: stack.lines(), what="the first body runs")
    second = stack.client.start(wf, {"file": str(there)})
    assert stack.client.cancel(first)
    assert stack.client.wait(second, timeout=60).state is RunState.SUCCEEDED


def test_a_thousand_keys_do_not_wait_for_each_other(stack: Stack) -> None:
    """Two steps of each key: all first ones are let in at once, and each second one behind its own first one."""
    wf = Workflow("keys", register=False)
    wf.map("each", steps.noop, over=[n % 1000 for n in range(2000)], concurrency_key="{item}")
    run = stack.client.start(wf)
    stack.engine.run_bundle("trellis.map", run.id, [0])
    states = Counter(step.state.value for step in stack.client.steps(run) if step.action == "noop")
    assert states == {"ready": 1000, "parked": 1000}
    stack.worker()
    stack.beat()
    assert stack.client.wait(run, timeout=120).state is RunState.SUCCEEDED
    assert stack.rows("SELECT * FROM permit") == []


def test_starts_under_a_rate_are_spaced(stack: Stack) -> None:
    """Of any six that follow each other the last begins most of a period after the first: five in a period."""
    wf = Workflow("mail", register=False)
    wf.map("each", steps.stamps, over=list(range(12)), ledger=stack.ledger, rate=Rate("mailgun", 5, per=1.0))
    stack.worker(concurrency=2)
    stack.beat()
    run = stack.client.start(wf)
    assert stack.client.wait(run, timeout=60).state is RunState.SUCCEEDED
    moments = sorted(float(line.split()[-1]) for line in Path(stack.ledger).read_text().splitlines())
    assert len(moments) == 12
    assert min(later - first for first, later in zip(moments, moments[5:], strict=False)) > 0.8


def test_nine_is_served_first(stack: Stack) -> None:
    """Redis counts the other way round; what waits in one queue is served by the priority of this side."""
    wf = Workflow("urgent", params={"n": int}, register=False)
    wf.step("only", steps.effect, ledger=stack.ledger, value=wf.params.n, concurrency_key="wide", limit=100)
    for priority in (0, 5, 9):
        some = Workflow(f"urgent{priority}", register=False)
        some.step(
            f"p{priority}", steps.effect, ledger=stack.ledger, priority=priority, concurrency_key="k", limit=9
        )
        stack.client.start(some)
    stack.worker(concurrency=1)
    eventually(lambda: len(stack.lines()) == 3, what="all three ran")
    assert [line[1] for line in stack.lines()] == ["p9", "p5", "p0"]


def test_a_body_that_falls_silent_is_stopped(stack: Stack) -> None:
    """One that calls ctx.heartbeat() often enough may take as long as it likes; each failure follows its policy."""
    file = stack.folder / "go"
    wf = Workflow("beating", register=False)
    wf.step("alive", steps.wait_for, ledger=stack.ledger, file=str(file), heartbeat=1.0)
    wf.step("silent", steps.sleeps, ledger=stack.ledger, timeout=600, heartbeat=0.5, on_failure="skip")
    stack.worker()
    run = stack.client.start(wf)
    failed = eventually(
        lambda: [step for step in stack.client.steps(run) if step.error is not None], what="it is stopped"
    )
    assert failed[0].name == "silent"
    assert failed[0].error["type"] == "HeartbeatTimeout"
    file.touch()
    assert stack.client.wait(run, timeout=60).state is RunState.SUCCEEDED


def test_a_silent_body_that_swallows_its_exception_loses_its_process(stack: Stack) -> None:
    """Recorded first, killed then: the slot is free for the next step."""
    wf = Workflow("deaf", register=False)
    wf.step("deaf", steps.spins, ledger=stack.ledger, timeout=600, heartbeat=0.5, on_failure="skip")
    stack.worker(concurrency=1)
    run = stack.client.start(wf)
    assert stack.client.wait(run, timeout=60).state is RunState.SUCCEEDED
    [step] = stack.client.steps(run)
    assert step.error is not None
    assert step.error["type"] == "HeartbeatTimeout"
    after = Workflow("after", register=False)
    after.step("next", steps.effect, ledger=stack.ledger)
    assert stack.client.wait(stack.client.start(after), timeout=60).state is RunState.SUCCEEDED


def test_late_steps_and_late_runs_end_by_themselves(stack: Stack) -> None:
    """Nobody consumes the queue of the first; the body of the second is stopped with its run."""
    wf = Workflow("unheard", register=False)
    wf.step("unheard", steps.noop, queue="nobody", queue_timeout=0.2, retry=2, on_failure="skip")
    slow = Workflow("slow", deadline=3600, register=False)
    slow.step("only", steps.wait_for, ledger=stack.ledger, file=str(stack.folder / "never"))
    stack.worker()
    stack.beat()
    run, late = stack.client.start(wf), stack.client.start(slow, deadline=1.0)
    assert stack.client.wait(run, timeout=60).state is RunState.SUCCEEDED
    [step] = stack.client.steps(run)
    assert (step.state.value, step.failures) == ("failed", 2)
    assert step.error is not None
    assert step.error["type"] == "QueueTimeout"
    ended = stack.client.wait(late, timeout=60)
    assert ended.state is RunState.FAILED
    assert ended.error is not None
    assert ended.error["type"] == "DeadlineExceeded"
