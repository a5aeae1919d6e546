"""Celery tasks as steps, and signatures that follow a run, come to the same on the engine and in-process.

The tasks are actions of ours, each of which is a plain task of Celery as well.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import steps
from sides import InProcess, Side

from trellis.tasks.errors import RunFailed
from trellis.tasks.settings import SYSTEM_QUEUE
from trellis.workflows import Default, RunState, Workflow


def heard(side: Side) -> list[object]:
    """What the signatures were told."""
    path = Path(side.ledger)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add(a: int, b: int = 1) -> int:
    """What the worker does with a task `add`."""
    return a + b


def fails(message: str) -> None:
    """And with one that fails."""
    raise RuntimeError(message)


@pytest.fixture(autouse=True)
def stand_ins(side: Side) -> None:
    if isinstance(side, InProcess):
        side.runner.replace_task("add", add)
        side.runner.replace_task("fails", fails)


def test_a_task_of_another_application_is_a_step(side: Side, wf: Workflow) -> None:
    """Its arguments are results of others, its result goes on; a failure follows the step's policy."""
    two = wf.step("two", steps.add, a=1)
    three = wf.step("three", task="add", args=[two], queue="celery")
    lost = wf.step("lost", task="fails", kwargs={"message": "no"}, queue="celery", on_failure=Default(5))
    wf.step("sum", steps.total, values=[three, lost])
    run = side.finish(wf)
    assert side.client.result(run) == {"sum": 8}
    assert side.states(run) == {
        "two": "succeeded", "three": "succeeded", "lost": "failed", "sum": "succeeded",
    }  # fmt: skip
    bad = Workflow(f"{wf.name}_bad", register=False)
    bad.step("lost", task="fails", args=["no"], queue="celery")
    with pytest.raises(RunFailed, match="step 'lost'"):
        side.client.result(side.finish(bad))


def test_a_task_is_sent_to_a_paused_queue_once_it_is_resumed(side: Side, wf: Workflow) -> None:
    """Though the step itself waits on another queue, which is not paused."""
    wf.step("three", task="add", args=[2], queue=SYSTEM_QUEUE)  # a second one that the worker listens to
    side.client.pause(queue=SYSTEM_QUEUE)
    try:
        run = side.client.start(wf)
        side.eventually(lambda: side.states(run)["three"] == "parked")
        side.pass_time(0.5)
        [reason] = side.client.why(run)
        assert reason.text == f"step 'three' sends its task to queue {SYSTEM_QUEUE!r}, which is paused"
    finally:
        side.client.resume(queue=SYSTEM_QUEUE)
    assert side.client.result(side.client.wait(run, timeout=60)) == {"three": 3}


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_a_task_of_another_application_undoes_a_step(side: Side, wf: Workflow, end: str) -> None:
    """In its turn among the others, with results as arguments; where it fails, the rest waits for a retry."""
    two = wf.step("two", steps.add, a=1)
    wf.step("bad", steps.fails, after=[wf.wait_for("hold", "go", after=[two])])
    add_step = wf.on_failure if end == "failed" else wf.on_cancel
    add_step("tell", steps.effect, ledger=side.ledger, value=two)
    add_step("undo", task="add", args=[two], kwargs={"b": 40}, queue="celery", of=two)
    add_step("last", task="fails", args=["no"], queue="celery", priority=5)
    run = side.client.start(wf)
    side.eventually(lambda: side.states(run)["hold"] == "parked")
    if end == "failed":
        side.client.signal(run, "go")
    else:
        side.client.cancel(run)
    assert side.client.wait(run, timeout=60).state.value == end
    [undoing] = side.eventually(lambda: side.client.linked(run, "compensation"))
    undoing = side.client.wait(undoing, timeout=60)
    assert undoing.state is RunState.FAILED
    assert side.states(undoing) == {
        "two": "succeeded", "undo": "succeeded", "tell": "succeeded", "last": "failed",
    }  # fmt: skip
    assert side.client.result(undoing, "undo") == 42
    assert side.effects() == {"tell": 1}


def test_signatures_follow_the_end_of_a_run(side: Side, wf: Workflow) -> None:
    """With its results or what went wrong; a chain goes on with what its first task gave."""
    hears = steps.hears.s(ledger=side.ledger)
    wf.step("sum", steps.add, a=1)
    run = side.finish(wf, on_success=[hears, hears | steps.hears.s(ledger=side.ledger)], on_failure=hears)
    side.eventually(lambda: len(heard(side)) == 3)
    assert heard(side) == [{"sum": 2}] * 3
    bad = Workflow(f"{wf.name}_bad", register=False)
    bad.step("bad", steps.fails, message="no")
    run = side.finish(bad, on_failure=hears)
    assert run.state is RunState.FAILED
    *_, told = side.eventually(lambda: heard(side)[3:])
    assert told == {
        "run": run.id, "workflow": bad.name, "state": "failed", "step": "bad", "type": "RuntimeError", "message": "no",
    }  # fmt: skip
