"""Compensation begins when no body of its run is at work any more: each has told of its end, or its lease is over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import steps
from stack import Process, Stack, eventually

from trellis.tasks.errors import StateError, StepTimeout
from trellis.workflows import Workflow
from trellis.workflows.bundle import Bundle
from trellis.workflows.following import FOLLOWERS
from trellis.workflows.keeper import Held
from trellis.workflows.records import Claimed, Run
from trellis.workflows.recovery import tick
from trellis.workflows.states import RunState

LONG = {
    "TRELLIS_LEASE_SECONDS": "300"
}  # whoever would have to wait for a lease would not end within the test


def saga(stack: Stack, wf: Workflow) -> Workflow:
    """A finished booking, and what undoes it however the run ends."""
    hotel = wf.step("hotel", steps.effect, ledger=stack.ledger)
    for undo in (wf.on_failure, wf.on_cancel):
        undo(f"undo_{undo.__name__}", steps.effect, of=hotel, ledger=stack.ledger)
    return wf


def listening(stack: Stack, name: str = "listening", tidy: Path | None = None) -> Workflow:
    """A body that is at work until it hears of the end, and tidies up until a file exists."""
    wf = saga(stack, Workflow(name, register=False))
    more = {} if tidy is None else {"tidy": str(tidy)}
    wf.step("body", steps.listens, ledger=stack.ledger, after=["hotel"], **more)
    return wf


def workers(stack: Stack) -> Process:
    stack.beat()
    return stack.worker(concurrency=3, **LONG)


def at_work(stack: Stack, step: str = "body") -> None:
    eventually(lambda: any(line[1] == step for line in stack.lines()), what="the body has begun")


def undone(stack: Stack, run: str) -> Run:
    [undoing] = eventually(lambda: stack.client.linked(run, "compensation"))
    undoing = stack.client.wait(undoing, 30)
    assert undoing.state is RunState.SUCCEEDED
    return undoing


def order(stack: Stack) -> list[str]:
    """The last line of each step, in order."""
    return list(dict.fromkeys(line[1] for line in reversed(stack.lines())))[::-1]


def silent(stack: Stack, wf: Workflow) -> tuple[str, Claimed]:
    """A run with a finished booking and a body of a worker that says nothing."""
    run = stack.client.start(wf).id
    stack.engine.run_bundle("effect", run, [0])
    [claimed] = stack.engine.journal.claim(run, [1], "elsewhere:1")[0]
    return run, claimed


def test_what_a_cancelled_run_did_is_undone_after_the_last_line_of_its_body(
    stack: Stack, tmp_path: Path
) -> None:
    workers(stack)
    run = stack.client.start(listening(stack, tidy=tmp_path / "tidy")).id
    at_work(stack)
    assert stack.client.cancel(run)
    eventually(lambda: any(line[4:] == ["heard"] for line in stack.lines()), what="the body has heard of it")
    tick(stack.engine)
    assert stack.client.linked(run, "compensation") == []
    (tmp_path / "tidy").touch()
    undone(stack, run)
    assert order(stack) == ["hotel", "body", "undo_on_cancel"]
    assert [line[4] for line in stack.lines() if line[1] == "body"][-1] == "done"


def test_a_failed_run_is_undone_after_the_siblings_of_the_step_that_failed_it(
    stack: Stack, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    workers(stack)
    wf = listening(stack)
    wf.step("late", steps.wait_for, ledger=stack.ledger, file=str(gate), after=["hotel"])
    wf.step("bad", steps.fails, after=["late"])
    run = stack.client.start(wf).id
    at_work(stack)
    gate.touch()
    assert stack.client.wait(run, 30).state is RunState.FAILED
    undone(stack, run)
    assert order(stack)[-2:] == ["body", "undo_on_failure"]


def test_a_run_past_its_deadline_is_undone_after_its_body(stack: Stack) -> None:
    workers(stack)
    run = stack.client.start(listening(stack), deadline=600).id
    at_work(stack)
    stack.rows("UPDATE run SET deadline_at = now() WHERE id = %s", run)
    assert stack.client.wait(run, 30).state is RunState.FAILED
    undone(stack, run)
    assert order(stack) == ["hotel", "body", "undo_on_failure"]


def test_the_bodies_of_child_runs_are_waited_for_as_well(stack: Stack) -> None:
    """The one that has ended last begins the undoing of the whole tree."""
    below = Workflow("below")
    below.step("body", steps.listens, ledger=stack.ledger)
    middle = Workflow("middle")
    middle.child("sub", below)
    wf = saga(stack, Workflow("above", register=False))
    wf.child("sub", middle, after=["hotel"])
    workers(stack)
    run = stack.client.start(wf).id
    at_work(stack)
    assert stack.client.cancel(run)
    undone(stack, run)
    assert order(stack) == ["hotel", "body", "undo_on_cancel"]


def test_a_body_whose_worker_was_killed_is_waited_for_until_its_lease_is_over(stack: Stack) -> None:
    worker = stack.worker()
    run = stack.client.start(listening(stack)).id
    at_work(stack)
    worker.kill()
    assert stack.client.cancel(run)
    [(until,)] = stack.rows("SELECT lease_until FROM step WHERE run_id = %s AND name = 'body'", run)
    stack.beat()
    stack.worker("second")
    undoing = undone(stack, run)
    began = [step.started_at for step in stack.client.steps(undoing) if step.name == "undo_on_cancel"]
    assert [at for at in began if at is not None and at >= until] == began != []


def test_a_worker_that_is_asked_to_go_tells_of_the_end_of_its_body(stack: Stack) -> None:
    """It has not heard of the cancel, and hands the step back that is not its own any more."""
    stack.beat()
    deaf = {"TRELLIS_HEARTBEAT_SECONDS": "300", "TRELLIS_SHUTDOWN_SECONDS": "1"}
    worker = stack.worker(concurrency=1, **deaf, **LONG)
    wf = saga(stack, Workflow("asked", register=False))
    wf.step("body", steps.works, ledger=stack.ledger, seconds=600, after=["hotel"])
    run = stack.client.start(wf).id
    at_work(stack)
    assert stack.client.cancel(run)
    stack.worker("second", **LONG)
    assert stack.client.linked(run, "compensation") == []
    worker.ask()
    undone(stack, run)


def test_a_run_of_which_nothing_is_at_work_is_undone_at_once(stack: Stack) -> None:
    """Without a tick, in the call that ends it; what was claimed and not begun does not count."""
    run = stack.client.start(listening(stack)).id
    stack.engine.run_bundle("effect", run, [0])
    assert stack.client.cancel(run)
    assert len(stack.client.linked(run, "compensation")) == 1
    wf = saga(stack, Workflow("bad", register=False))
    for name in ("one", "two", "three"):
        wf.step(name, steps.fails, after=["hotel"])
    run = stack.client.start(wf).id
    stack.engine.run_bundle("effect", run, [0])
    stack.engine.run_bundle("fails", run, [1, 2, 3])
    assert stack.client.get(run).state is RunState.FAILED
    assert len(stack.client.linked(run, "compensation")) == 1


def test_what_a_failing_bundle_would_have_gone_on_with_keeps_nobody_waiting(stack: Stack) -> None:
    """A step that is freed by the very statement that fails its run belongs to nobody."""
    wf = saga(stack, Workflow("ahead", register=False))
    fine = wf.step("fine", steps.fails_on, value=1, bad=2, after=["hotel"])
    wf.step("bad", steps.fails_on, value=2, bad=2, after=["hotel"])
    wf.step("next", steps.fails_on, value=1, bad=2, after=[fine])
    stack.rows("INSERT INTO action_stat (action, runs, mean_ms) VALUES ('fails_on', 100, 0.1)")
    run = stack.client.start(wf).id
    stack.engine.run_bundle("effect", run, [0])
    stack.engine.run_bundle("fails_on", run, [1, 2])
    states = {step.name: step.state.value for step in stack.client.steps(run)}
    assert states == {"hotel": "succeeded", "fine": "succeeded", "bad": "failed", "next": "cancelled"}
    assert len(stack.client.linked(run, "compensation")) == 1


def test_a_body_that_is_about_to_be_killed_ends_its_run_and_begins_nothing(stack: Stack) -> None:
    """Its failure is recorded before its process is killed; what undoes the run is left to a tick after that."""
    run = stack.client.start(listening(stack)).id
    stack.engine.run_bundle("effect", run, [0])
    bundle = Bundle(stack.engine, "listens", run, [1])
    step = bundle._todo.popleft()
    bundle.give_up(Held(run, step, 1.0, stack.engine.guard()), StepTimeout(1.0))
    assert stack.client.get(run).state is RunState.FAILED
    assert stack.client.linked(run, "compensation") == []
    tick(stack.engine)
    assert len(stack.client.linked(run, "compensation")) == 1


def test_all_else_that_follows_is_done_meanwhile_and_once(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signatures of a run are sent when it ends, whoever is still at work."""
    heard: list[Any] = []
    monkeypatch.setitem(FOLLOWERS, "heard", lambda following, _: heard.append(following.ended.run))
    wf = listening(stack)
    run = stack.client.start(wf).id
    stack.rows("""UPDATE run SET hooks = hooks || '{"heard": {}}' WHERE id = %s""", run)
    stack.engine.run_bundle("effect", run, [0])
    stack.engine.journal.claim(run, [1], "elsewhere:1")
    assert stack.client.cancel(run)
    for _ in range(3):
        tick(stack.engine)
    assert (heard, stack.client.linked(run, "compensation")) == ([run], [])
    stack.rows("UPDATE step SET lease_until = now() WHERE run_id = %s AND lease IS NOT NULL", run)
    for _ in range(2):
        tick(stack.engine)
    assert (heard, len(stack.client.linked(run, "compensation"))) == ([run], 1)
    assert stack.rows("SELECT follow, hooks ? 'waits' FROM run WHERE id = %s", run) == [(False, False)]


def test_a_late_report_changes_nothing_but_that_its_body_is_over(stack: Stack) -> None:
    """What stays of a lease opens no fence."""
    run, claimed = silent(stack, listening(stack))
    assert stack.client.cancel(run)
    [(kept,)] = stack.rows("SELECT lease::text FROM step WHERE run_id = %s AND idx = 1", run)
    assert kept not in (None, claimed.lease)
    journal = stack.engine.journal
    assert journal.renew([(run, 1, claimed.lease, 10.0, None)]) == set()
    assert journal.release(run, [claimed]) == []
    assert not journal.intend(run, claimed)
    assert stack.client.linked(run, "compensation") == []


def test_a_run_that_is_still_to_be_undone_says_so_and_stays(stack: Stack) -> None:
    """`why` names the body; a delete is refused, the purge passes it by, a rerun reuses nothing that will be undone."""
    run, _ = silent(stack, listening(stack))
    assert stack.client.cancel(run)
    [reason] = stack.client.why(run)
    assert "compensation waits for the end of step 'body' on elsewhere:1, until " in reason.text
    with pytest.raises(StateError, match="is still to be compensated"):
        stack.client.delete(run)
    stack.rows("INSERT INTO retention (workflow, runs) VALUES ('listening', interval '0')")
    tick(stack.engine)
    assert stack.client.get(run).state is RunState.CANCELLED
    again = stack.client.rerun(run)
    assert {step.name: step.state.value for step in stack.client.steps(again)}["hotel"] == "ready"
    assert stack.rows("SELECT hooks ? 'waits' FROM run WHERE id = %s", again.id) == [(False,)]


def test_a_run_that_waits_for_its_undoing_may_be_retried_and_is_undone_later(stack: Stack) -> None:
    run, _ = silent(stack, listening(stack))
    assert stack.client.cancel(run)
    assert stack.client.retry(run)
    assert stack.rows("SELECT state, follow, hooks ? 'waits' FROM run WHERE id = %s", run) == [
        ("running", True, False)
    ]
    assert stack.rows("SELECT state, lease, lease_until FROM step WHERE run_id = %s AND idx = 1", run) == [
        ("ready", None, None)
    ]
    assert stack.client.cancel(run)
    assert len(stack.client.linked(run, "compensation")) == 1
