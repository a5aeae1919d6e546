"""Why a run does not move: each reason in words, with what would end it."""

from __future__ import annotations

import steps
from stack import Stack, eventually

from trellis.workflows import Client, Retry, Workflow
from trellis.workflows.recovery import tick


def go(stack: Stack, workflow: Workflow) -> str:
    run = stack.client.start(workflow)
    stack.drain(run.id)
    return run.id


def texts(stack: Stack, run: str) -> list[str]:
    return [reason.text for reason in stack.client.why(run)]


def test_parked_steps_say_what_they_wait_for(stack: Stack) -> None:
    """A signal, people, a time, a child run; many steps of one kind are one reason."""
    child = Workflow("child", register=False)
    child.wait_for("never", "nothing")
    wf = Workflow("parks", register=False)
    wf.wait_for("paid", "payment", timeout=3600)
    wf.approve("ok", who=["ann", "bob"], needed=2)
    wf.sleep("nap", 3600)
    wf.child("sub", child)
    wf.map("many", "trellis.wait_for", over=list(range(50)), signal="go")
    run = go(stack, wf)
    found = {reason.text: reason.advice for reason in stack.client.why(run)}
    said = "\n".join(found)
    assert "'paid' and 50 more steps wait for signal 'payment', until " in said
    assert "step 'ok' waits for 2 approvals by 'ann', 'bob'" in found
    assert found["step 'ok' waits for 2 approvals by 'ann', 'bob'"] == f"trellis approve {run} ok --by NAME"
    assert "step 'nap' sleeps, until " in said
    assert "step 'sub' waits for child run " in said
    assert "of 'child', which is pending" in said
    assert len(found) == 4


def test_a_ready_step_without_workers_says_so(stack: Stack) -> None:
    """And that nothing ticks."""
    wf = Workflow("lonely", register=False)
    wf.step("add", steps.add, a=1)
    run = stack.client.start(wf).id
    said = " | ".join(texts(stack, run))
    assert "no tick has run ever" in said
    assert "1 step ('add') is ready, but no worker answers: start one with `trellis worker`" in said
    with Client(stack.settings.model_copy(update={"broker_url": None})) as quiet:
        assert "set TRELLIS_BROKER_URL" in [reason.advice for reason in quiet.why(run)]


def test_a_queue_and_an_action_that_no_worker_has(stack: Stack) -> None:
    """The worker answers, and its answer is the reason."""
    stack.worker()
    tick(stack.engine)
    wf = Workflow("deaf", register=False)
    wf.step("add", steps.add, a=1, queue="nowhere")
    run = stack.client.start(wf).id
    assert "but no worker listens to 'nowhere'" in texts(stack, run)[0]
    stack.rows("UPDATE step SET action = 'gone' WHERE run_id = %s", run)
    assert "but no worker knows action 'gone'" in texts(stack, run)[0]


def test_a_broker_that_is_away_is_the_reason(stack: Stack) -> None:
    """The run is in the journal and begins when it is back."""
    wf = Workflow("cut", register=False)
    wf.step("add", steps.add, a=1)
    run = stack.client.start(wf).id
    with Client(stack.settings, broker_url="redis://127.0.0.1:1/0") as cut:
        assert "the broker does not answer" in " ".join(reason.text for reason in cut.why(run))


def test_a_step_that_backs_off_says_after_what_and_until_when(stack: Stack) -> None:
    """Its failure, and the time of the next attempt."""
    wf = Workflow("backs-off", register=False)
    wf.step("flaky", steps.fails, retry=Retry(3, base=3600, max_delay=3600))
    run = stack.client.start(wf).id
    stack.engine.run_bundle("fails", run, [0])
    (reason,) = stack.client.why(run)
    assert reason.text.startswith("step 'flaky' is not due before ")
    assert reason.text.endswith("after RuntimeError: no")


def test_a_running_step_says_where_and_whether_its_worker_is_silent(stack: Stack) -> None:
    """Claimed by a worker that is no more."""
    wf = Workflow("runs", register=False)
    wf.step("add", steps.add, a=1)
    run = stack.client.start(wf).id
    stack.engine.journal.claim(run, [0], "host:1")
    assert texts(stack, run)[0].startswith("step 'add' runs on host:1 since ")
    stack.rows("UPDATE step SET lease_until = now() - interval '1 second' WHERE run_id = %s", run)
    assert "but that worker is silent since" in texts(stack, run)[0]


def test_a_finished_run_has_no_reasons(stack: Stack) -> None:
    """Nothing holds it."""
    wf = Workflow("over", register=False)
    wf.step("add", steps.add, a=1)
    assert stack.client.why(go(stack, wf)) == []


def test_a_worker_that_is_busy_is_no_riddle(stack: Stack) -> None:
    """How many messages are before it."""
    stack.worker(concurrency=1)
    tick(stack.engine)
    wf = Workflow("busy", register=False)
    wf.map("each", steps.wait_for, over=[1] * 6, ledger=stack.ledger, file=str(stack.folder / "go"))
    run = stack.client.start(wf).id
    eventually(lambda: any("runs on" in text or "run on" in text for text in texts(stack, run)))
    # The map itself runs first; its items are there a moment later.
    eventually(lambda: any("will be taken when the workers come to it" in text for text in texts(stack, run)))
    (stack.folder / "go").touch()
    stack.client.wait(run, 30)
