"""Steps that wait for the outside world do so alike on the engine and in-process."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import steps
from sides import Side

from trellis.tasks.errors import (
    ApprovalStale,
    DefinitionError,
    NotFinished,
    NotFound,
    NotPermitted,
    RunFailed,
    StateError,
)
from trellis.workflows import Default, Retry, RunState, Workflow


def parked(side: Side, run: Any, *names: str) -> None:
    """Wait until these steps are parked."""
    side.eventually(lambda: all(side.states(run)[name] == "parked" for name in names))


def test_a_signal_wakes_the_step_that_waits_for_it(side: Side, wf: Workflow) -> None:
    """Its payload is the step's result; the wait counts as no attempt."""
    paid = wf.wait_for("paid", "payment")
    wf.step("after", steps.returns, value=paid["amount"])
    run = side.client.start(wf)
    parked(side, run, "paid")
    with pytest.raises(NotFinished):
        side.client.result(run, "paid")
    assert side.client.signal(run, "payment", {"amount": 7}) is True
    run = side.client.wait(run, timeout=60)
    assert side.client.result(run) == {"after": 7}
    assert [(step.attempt, step.failures) for step in side.client.steps(run)] == [(1, 0), (1, 0)]


def test_signals_that_come_early_are_kept_in_order(side: Side, wf: Workflow) -> None:
    """The same id counts once; steps that wait for one name get different signals."""
    hold = wf.wait_for("hold", "go")
    one = wf.wait_for("one", "word", after=[hold])
    wf.wait_for("two", "word", after=[one])
    run = side.client.start(wf)
    told = [side.client.signal(run, "word", each, id=each) for each in ("a", "a", "b", "c")]
    side.client.signal(run, "go")
    run = side.client.wait(run, timeout=60)
    assert told == [True, False, True, True]
    assert [side.client.result(run, step) for step in ("hold", "one", "two")] == [None, "a", "b"]


def test_what_cannot_be_told_is_refused(side: Side, wf: Workflow) -> None:
    """An unknown run, one that is over, and payloads that no journal keeps."""
    wf.wait_for("paid", "payment")
    run = side.client.start(wf)
    with pytest.raises(DefinitionError, match="the payload of signal 'payment'"):
        side.client.signal(run, "payment", "a\x00b")
    with pytest.raises(DefinitionError, match="name=''"):
        side.client.signal(run, "")
    with pytest.raises(NotFound, match="there is no run"):
        side.client.signal("01a1f80c-cf3a-7686-8674-c566556c6650", "payment")
    side.client.signal(run, "payment")
    side.client.wait(run, timeout=60)
    with pytest.raises(StateError, match=f"run {run.id} is succeeded and takes no more signals"):
        side.client.signal(run, "payment")


def test_a_wait_ends_with_its_default_or_an_error(side: Side, wf: Workflow) -> None:
    """After its timeout, as its policy says."""
    wf.wait_for("default", "never", timeout=0.3, default={"paid": False})
    wf.wait_for("failed", "never", timeout=0.3, on_failure="skip")
    wf.wait_for("policy", "never", timeout=0.3, on_failure=Default("none"))
    run = side.finish(wf)
    assert side.states(run) == {"default": "succeeded", "failed": "failed", "policy": "failed"}
    assert side.client.result(run, "default") == {"paid": False}
    assert side.client.result(run, "policy") == "none"
    with pytest.raises(RunFailed, match=r"step 'failed': WaitExpired: .*signal 'never'.* 0\.3 s"):
        side.client.result(run, "failed")


def test_sleeps_last_as_long_as_they_say(side: Side, wf: Workflow) -> None:
    """A moment that is past is due at once."""
    wf.sleep("nap", 0.4)
    wf.until("past", datetime(2020, 1, 1, tzinfo=UTC))
    wf.sleep("none", 0)
    run = side.finish(wf)
    assert run.state is RunState.SUCCEEDED
    [nap, *_] = side.client.steps(run)
    assert (nap.finished_at - run.created_at).total_seconds() >= 0.39  # type: ignore[operator]


def test_people_approve_what_they_are_shown(side: Side, wf: Workflow) -> None:
    """Those who may, as many as it takes; each counts once."""
    bill = wf.step("bill", steps.returns, value={"total": 9})
    wf.approve("ok", "Pay?", show={"bill": bill}, who=["ann", "bob", "eve"], needed=2)
    run = side.client.start(wf)
    asked = side.eventually(lambda: side.client.approvals(run))[0]
    assert (asked.run, asked.workflow, asked.step, asked.message, asked.show, asked.who, asked.needed, asked.yes) == (
        run.id, wf.name, "ok", "Pay?", {"bill": {"total": 9}}, ("ann", "bob", "eve"), 2, (),
    )  # fmt: skip
    with pytest.raises(NotPermitted, match="'mallory' may not decide on step 'ok'"):
        side.client.approve(run, "ok", by="mallory")
    with pytest.raises(ApprovalStale):
        side.client.approve(run, "ok", by="ann", shown="0" * 12)
    assert side.client.approve(run, "ok", by="bob", comment="fine", shown=asked.digest) is True
    side.eventually(lambda: [each.yes for each in side.client.approvals(run)] == [("bob",)])
    assert side.client.approve(run, "ok", by="bob") is False
    assert side.client.approve(run, "ok", by="ann") is True
    run = side.client.wait(run, timeout=60)
    assert side.client.result(run, "ok") == {
        "approved": True, "by": ["bob", "ann"], "comments": {"ann": "", "bob": "fine"},
    }  # fmt: skip
    with pytest.raises(
        StateError, match="step 'ok' of run .* does not wait for an approval: it is succeeded"
    ):
        side.client.approve(run, "ok", by="eve")


def test_one_rejection_is_enough(side: Side, wf: Workflow) -> None:
    """The step fails, with who and why; it is not tried again."""
    wf.approve("ok", "Pay?", needed=2)
    run = side.client.start(wf)
    side.eventually(lambda: side.client.approvals(run))
    side.client.approve(run, "ok", by="ann")
    side.eventually(lambda: [each.yes for each in side.client.approvals(run)] == [("ann",)])
    side.client.reject(run, "ok", by="bob", comment="too much")
    run = side.client.wait(run, timeout=60)
    assert run.state is RunState.FAILED
    with pytest.raises(RunFailed, match="ApprovalRejected: .*bob.*too much"):
        side.client.result(run)


def test_approvals_escalate_and_expire(side: Side, wf: Workflow) -> None:
    """First others may as well, then nobody."""
    wf.approve("ok", who=["ann"], escalate_after=0.3, escalate_to=["boss"], expires=1.0)
    run = side.client.start(wf)
    side.eventually(lambda: [each.who for each in side.client.approvals(run)] == [("ann", "boss")])
    run = side.client.wait(run, timeout=60)
    with pytest.raises(RunFailed, match="WaitExpired"):
        side.client.result(run)
    assert [(e.kind, e.step, e.detail) for e in side.client.events(run) if e.kind == "step.escalated"] == [
        ("step.escalated", "ok", {"to": ["boss"]})
    ]


def child(name: str, action: Any, **inputs: Any) -> Workflow:
    """A workflow of one step, to be a child."""
    wf = Workflow(name, params={"n": int}, register=False)
    wf.step("end", action, **(inputs or {"a": wf.params.n}))
    return wf


def test_a_child_run_is_a_step(side: Side, wf: Workflow) -> None:
    """Its results come up; it carries its parent's correlation id."""
    three = wf.step("three", steps.add, a=2)
    below = wf.child("below", child("child-of-it", steps.add), n=three)
    wf.step("after", steps.returns, value=below["end"])
    run = side.finish(wf, correlation_id="family")
    assert side.client.result(run) == {"after": 4}
    found = [each for each in side.client.list("child-of-it") if each.correlation_id == "family"]
    assert [(each.state, each.params) for each in found][:1] == [(RunState.SUCCEEDED, {"n": 3})]


def test_a_child_that_fails_fails_its_step(side: Side, wf: Workflow) -> None:
    """With its error; a new attempt is a new child."""
    wf.child(
        "below", child("failing-child", steps.fails, message="no"), n=1, retry=Retry(2, base=0, jitter=0)
    )
    run = side.finish(wf)
    with pytest.raises(RunFailed, match="step 'below': ChildFailed: .*failing-child.*RuntimeError: no"):
        side.client.result(run)
    assert len(side.client.list("failing-child", limit=2)) == 2


def test_a_cancel_goes_down_to_the_children(side: Side, wf: Workflow) -> None:
    """And a child that was cancelled fails its parent's step."""
    inner = Workflow("waiting-child", register=False)
    inner.wait_for("never", "never")
    wf.child("below", inner)
    runs = [side.client.start(wf) for _ in range(2)]
    parked(side, runs[0], "below")
    parked(side, runs[1], "below")
    children = {run.correlation_id: run for run in side.client.list("waiting-child", limit=2)}
    first, second = (children[run.id] for run in runs)  # a child has its parent's correlation id
    assert side.client.cancel(runs[0])
    assert side.client.get(first).state is RunState.CANCELLED
    assert side.client.cancel(second)
    with pytest.raises(RunFailed, match="ChildFailed"):
        side.client.result(side.client.wait(runs[1], timeout=60))


def test_waiting_steps_are_cancelled_with_their_run(side: Side, wf: Workflow) -> None:
    """Nothing wakes them any more."""
    wf.wait_for("paid", "payment")
    wf.sleep("nap", 3600)
    run = side.client.start(wf)
    parked(side, run, "paid", "nap")
    assert side.client.cancel(run)
    assert side.states(run) == {"paid": "cancelled", "nap": "cancelled"}
