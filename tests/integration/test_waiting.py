"""Steps that wait: signals, approvals, times and child runs, on a real journal."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import steps
from stack import Stack, eventually

from trellis.tasks.errors import (
    ApprovalStale,
    DefinitionError,
    NotFound,
    NotPermitted,
    RunFailed,
    StateError,
    ValueTooLarge,
)
from trellis.workflows import Client, Default, RunState, Workflow
from trellis.workflows.recovery import tick


def go(stack: Stack, workflow: Workflow, **params: object) -> str:
    """Start a run and do all that can be done now."""
    run = stack.client.start(workflow, params)
    stack.drain(run.id)
    return run.id


def later(stack: Stack, run: str) -> None:
    """Every timer of the run runs out now."""
    stack.rows(
        "UPDATE step SET due_at = now() WHERE run_id = %s AND state = 'parked' AND due_at < 'infinity'", run
    )
    tick(stack.engine)
    stack.drain(run)


def states(stack: Stack, run: str) -> dict[str, str]:
    return {step.name: step.state.value for step in stack.client.steps(run)}


def step(stack: Stack, run: str, name: str) -> dict[str, Any]:
    names = ("state", "attempt", "failures", "lease", "waits_for", "nullif(due_at, 'infinity') AS due_at")
    rows = stack.rows(f"SELECT {', '.join(names)} FROM step WHERE run_id = %s AND name = %s", run, name)
    return dict(zip([each.rpartition(" ")[2] for each in names], rows[0], strict=True))


def waiting(**options: Any) -> Workflow:
    wf = Workflow("waiting", register=False)
    wf.step("then", steps.returns, value=wf.wait_for("paid", "payment", **options))
    return wf


# --- signals


def test_a_signal_brings_its_payload_to_the_step_that_waits(stack: Stack) -> None:
    """Parked it holds no lease and has used no attempt."""
    run = go(stack, waiting())
    assert states(stack, run) == {"paid": "parked", "then": "waiting"}
    parked = step(stack, run, "paid")
    assert (parked["attempt"], parked["lease"], parked["waits_for"]) == (0, None, "signal:payment")
    assert stack.client.signal(run, "payment", {"amount": 7})
    stack.drain(run)
    assert stack.client.result(run) == {"then": {"amount": 7}}


def test_a_signal_that_comes_before_the_wait_is_kept(stack: Stack) -> None:
    """Sent before anything of the run has begun."""
    run = stack.client.start(waiting()).id
    stack.client.signal(run, "payment", 1)
    stack.drain(run)
    assert stack.client.result(run) == {"then": 1}


def test_a_signal_sent_twice_under_one_id_counts_once(stack: Stack) -> None:
    """The second wait for the same name stays parked, until a signal with another id comes."""
    wf = Workflow("twice", register=False)
    first = wf.wait_for("first", "tick")
    wf.wait_for("second", "tick", after=first)
    run = stack.client.start(wf).id
    assert stack.client.signal(run, "tick", 1, id="a")
    assert not stack.client.signal(run, "tick", 2, id="a")
    stack.drain(run)
    assert states(stack, run) == {"first": "succeeded", "second": "parked"}
    stack.client.signal(run, "tick", 3, id="b")
    stack.drain(run)
    assert stack.client.result(run) == {"second": 3}


def test_two_steps_that_wait_for_one_name_get_a_signal_each(stack: Stack) -> None:
    """Both are woken by the first signal; one takes it, the other waits on, with the time that it had left."""
    wf = Workflow("both", register=False)
    wf.wait_for("one", "tick", timeout=3600)
    wf.wait_for("other", "tick", timeout=3600)
    run = go(stack, wf)
    due = {name: step(stack, run, name)["due_at"] for name in ("one", "other")}
    stack.client.signal(run, "tick", "x")
    stack.drain(run)
    left = [name for name, state in states(stack, run).items() if state == "parked"]
    assert len(left) == 1
    assert step(stack, run, left[0])["due_at"] == due[left[0]]
    stack.client.signal(run, "tick", "y")
    stack.drain(run)
    assert sorted(stack.client.result(run).values()) == ["x", "y"]


def test_a_wait_ends_with_its_default_when_its_time_is_up(stack: Stack) -> None:
    """And not before: the tick looks at the database's clock."""
    run = go(stack, waiting(timeout=3600, default=None))
    tick(stack.engine)
    assert states(stack, run)["paid"] == "parked"
    later(stack, run)
    assert stack.client.result(run) == {"then": None}


def test_a_wait_without_a_default_fails_by_its_policy(stack: Stack) -> None:
    """WaitExpired fails the run, unless on_failure says something else."""
    run = go(stack, waiting(timeout=5))
    later(stack, run)
    with pytest.raises(RunFailed, match="signal 'payment' did not come within 5 s") as caught:
        stack.client.result(run)
    assert (caught.value.step, caught.value.error["type"]) == ("paid", "WaitExpired")
    run = go(stack, waiting(timeout=5, on_failure=Default("none")))
    later(stack, run)
    assert stack.client.result(run) == {"then": "none"}


def test_a_signal_on_the_last_moment_wins_over_the_time(stack: Stack) -> None:
    """Woken by the time, the step looks for a signal first."""
    run = go(stack, waiting(timeout=5))
    stack.client.signal(run, "payment", "late")
    stack.rows(
        "UPDATE step SET wait = wait || '{\"woken\": \"time\"}' WHERE run_id = %s AND name = 'paid'", run
    )
    stack.drain(run)
    assert stack.client.result(run) == {"then": "late"}


def test_what_cannot_be_a_signal_is_refused(stack: Stack) -> None:
    """With the field and the fix, and nothing is kept."""
    run = go(stack, waiting())
    with pytest.raises(DefinitionError, match="payload of signal 'payment' is not JSON"):
        stack.client.signal(run, "payment", {1, 2})
    with pytest.raises(DefinitionError, match="name=''"):
        stack.client.signal(run, "", 1)
    with pytest.raises(ValueTooLarge):
        stack.client.signal(run, "payment", "x" * 2_000_000)
    with pytest.raises(NotFound):
        stack.client.signal("01a1f80c-cf3a-7686-8674-c566556c6650", "payment", 1)
    assert stack.rows("SELECT count(*) FROM signal") == [(0,)]
    stack.client.cancel(run)
    with pytest.raises(StateError, match="is cancelled and takes no more signals"):
        stack.client.signal(run, "payment", 1)


def test_a_wait_survives_a_worker_that_dies_while_it_parks(stack: Stack) -> None:
    """Claimed and never parked: the lease runs out, another worker parks it, and no signal is lost."""
    run = stack.client.start(waiting()).id
    stack.engine.journal.claim(run, [0], "dead")
    stack.client.signal(run, "payment", 5)
    stack.rows(
        "UPDATE step SET lease_until = now() - interval '1 hour', suspect = true WHERE run_id = %s", run
    )
    tick(stack.engine)
    stack.drain(run)
    assert stack.client.result(run) == {"then": 5}


def test_a_signal_wakes_a_real_worker(stack: Stack) -> None:
    """End to end: nobody polls."""
    stack.worker()
    run = stack.client.start(waiting()).id
    eventually(lambda: states(stack, run)["paid"] == "parked")
    stack.client.signal(run, "payment", "now")
    assert stack.client.wait(run, 20).state is RunState.SUCCEEDED


def test_signals_and_parking_at_once_lose_nothing(stack: Stack) -> None:
    """A worker parks while signals come: every run ends, whichever was first."""
    stack.worker(concurrency=2)
    wf = waiting()
    runs = [stack.client.start(wf).id for _ in range(60)]
    for run in runs:
        stack.client.signal(run, "payment", 1)
    assert {stack.client.wait(run, 60).state for run in runs} == {RunState.SUCCEEDED}


def test_a_client_without_a_broker_leaves_the_waking_to_the_tick(stack: Stack) -> None:
    """The signal is in the journal, and the next tick announces whom it woke."""
    run = go(stack, waiting())
    with Client(stack.settings.model_copy(update={"broker_url": None})) as quiet:
        quiet.signal(run, "payment", 2)
    assert stack.rows("SELECT state, sent FROM step WHERE run_id = %s AND idx = 0", run) == [("ready", False)]
    assert tick(stack.engine)["published"] == 1


# --- times


def test_sleep_holds_no_worker_and_ends_by_the_clock_of_the_database(stack: Stack) -> None:
    """Not due, not woken; due, the run goes on."""
    wf = Workflow("nap", params={"s": float}, register=False)
    wf.step("then", steps.noop, after=wf.sleep("nap", wf.params.s))
    run = go(stack, wf, s=3600.0)
    assert tick(stack.engine)["woken"] == 0
    assert states(stack, run) == {"nap": "parked", "then": "waiting"}
    later(stack, run)
    assert states(stack, run) == {"nap": "succeeded", "then": "succeeded"}


def test_until_waits_for_a_moment(stack: Stack) -> None:
    """A literal, or a reference to one; a moment that is past is due with the next tick."""
    moment = datetime.now(timezone(timedelta(hours=2))) + timedelta(hours=1)
    wf = Workflow("moments", params={"m": str}, register=False)
    wf.until("literal", moment)
    wf.until("reference", wf.params.m)
    run = go(stack, wf, m="2020-01-01T00:00:00Z")
    assert step(stack, run, "literal")["due_at"] == moment
    tick(stack.engine)
    stack.drain(run)
    assert states(stack, run) == {"literal": "parked", "reference": "succeeded"}


def test_a_moment_without_a_time_zone_is_refused(stack: Stack) -> None:
    """At definition where it is a literal, else as the step's error."""
    wf = Workflow("naive", register=False)
    wf.until("when", "2030-01-01T00:00:00")
    with pytest.raises(DefinitionError, match=r"step 'when': input 'moment' .*timezone"):
        wf.validate()


# --- approvals


def approval(**options: Any) -> Workflow:
    wf = Workflow("release", params={"price": int}, register=False)
    yes = wf.approve("ok", "Release it?", show={"price": wf.params.price}, **options)
    wf.step("then", steps.returns, value=yes)
    return wf


def test_an_approval_says_who_and_with_which_words(stack: Stack) -> None:
    """What waits is listed with what it shows."""
    run = go(stack, approval(), price=3)
    asked = stack.client.approvals(run)[0]
    assert (asked.step, asked.message, asked.show, asked.needed) == ("ok", "Release it?", {"price": 3}, 1)
    assert stack.client.approve(run, "ok", "ann", "looks good", shown=asked.digest)
    stack.drain(run)
    assert stack.client.result(run)["then"] == {
        "approved": True, "by": ["ann"], "comments": {"ann": "looks good"},
    }  # fmt: skip
    assert stack.client.approvals() == []


def test_as_many_different_people_as_needed_must_approve(stack: Stack) -> None:
    """One who says it twice is one; who may not is refused."""
    run = go(stack, approval(who=["ann", "bob", "eve"], needed=2), price=3)
    assert stack.client.approve(run, "ok", "ann")
    stack.drain(run)
    assert not stack.client.approve(run, "ok", "ann")
    stack.drain(run)
    assert states(stack, run)["ok"] == "parked"
    assert stack.client.approvals(run)[0].yes == ("ann",)
    with pytest.raises(NotPermitted, match="'mallory' may not decide on step 'ok': ann, bob, eve may"):
        stack.client.approve(run, "ok", "mallory")
    stack.client.approve(run, "ok", "bob")
    stack.drain(run)
    assert stack.client.result(run)["then"]["by"] == ["ann", "bob"]


def test_one_rejection_fails_the_step(stack: Stack) -> None:
    """With the name and the words, and without another attempt."""
    run = go(stack, approval(), price=3)
    stack.client.reject(run, "ok", "bob", "too dear")
    stack.drain(run)
    with pytest.raises(RunFailed, match="bob rejected 'ok': too dear"):
        stack.client.result(run)


def test_a_retry_asks_again(stack: Stack) -> None:
    """Who said no is asked anew, and so is who said yes: the old votes were on another asking."""
    run = go(stack, approval(needed=2), price=3)
    stack.client.approve(run, "ok", "ann")
    stack.client.reject(run, "ok", "bob")
    stack.drain(run)
    assert stack.client.get(run).state is RunState.FAILED
    stack.client.retry(run)
    stack.drain(run)
    assert stack.client.approvals(run)[0].yes == ()
    assert stack.client.approve(run, "ok", "bob")
    assert stack.client.approve(run, "ok", "ann")
    stack.drain(run)
    assert stack.client.result(run)["then"]["by"] == ["bob", "ann"]


def test_an_approval_of_something_else_does_not_count(stack: Stack) -> None:
    """A vote is bound to the digest of what was shown: given for other inputs it changes nothing."""
    run, other = go(stack, approval(), price=3), go(stack, approval(), price=4)
    seen = stack.client.approvals(run)[0].digest
    with pytest.raises(ApprovalStale, match="look at it again"):
        stack.client.approve(other, "ok", "ann", shown=seen)
    stack.rows(
        "INSERT INTO signal (run_id, name, key, payload) VALUES (%s, 'approval:ok', 'k', %s)", other,
        json.dumps({"by": "ann", "comment": "", "vote": "approved", "shown": seen}),
    )  # fmt: skip
    stack.client.approve(other, "ok", "bob")
    stack.drain(other)
    assert stack.client.result(other)["then"]["by"] == ["bob"]


def test_an_approval_escalates_and_then_expires(stack: Stack) -> None:
    """First others are asked as well, then nobody any more."""
    wf = approval(who=["ann"], escalate_after=60, escalate_to=["boss"], expires=3600)
    run = go(stack, wf, price=1)
    with pytest.raises(NotPermitted):
        stack.client.approve(run, "ok", "boss")
    first = stack.client.approvals(run)[0].until
    later(stack, run)
    asked = stack.client.approvals(run)[0]
    assert (asked.who, asked.until - first) == (("ann", "boss"), timedelta(seconds=3540))
    assert "step.escalated" in [event.kind for event in stack.client.events(run)]
    late = go(stack, wf, price=2)
    stack.client.approve(run, "ok", "boss")
    stack.drain(run)
    assert stack.client.result(run)["then"]["by"] == ["boss"]
    later(stack, late)
    later(stack, late)
    assert stack.client.get(late).error["type"] == "WaitExpired"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"who": ["a"], "needed": 2}, "needed: 2 people must approve, and only 1 may"),
        ({"escalate_after": 5}, "escalate_to: escalate_after= and escalate_to= go together"),
        ({"escalate_after": 9, "escalate_to": ["b"], "expires": 9}, "must come before expires=9"),
        ({"needed": 0}, "input 'needed'"),
    ],
)
def test_contradictions_are_refused_at_definition(options: dict[str, Any], message: str) -> None:
    """In a message that names the step and the option."""
    with pytest.raises(DefinitionError, match=message):
        approval(**options).validate()


def test_approving_what_does_not_wait_is_refused(stack: Stack) -> None:
    """Not asked yet, already decided, or no such step."""
    run = stack.client.start(approval(), {"price": 1}).id
    with pytest.raises(StateError, match="does not wait for an approval: it is ready"):
        stack.client.approve(run, "ok", "ann")
    with pytest.raises(NotFound, match="'okay'"):
        stack.client.approve(run, "okay", "ann")


# --- child runs


@pytest.fixture
def family(stack: Stack) -> Workflow:
    """A workflow whose step is a run of another one."""
    child = Workflow("child", params={"n": int, "fail": bool}, register=False)
    n = child.step("n", steps.add, a=child.params.n, b=1)
    child.step("flaky", steps.fails, after=n, when="params.fail")
    child.step("out", steps.add, a=n, b=0)
    wf = Workflow("parent", params={"n": int, "fail": bool}, register=False)
    sub = wf.child("sub", child, n=wf.params.n, fail=wf.params.fail)
    wf.step("then", steps.returns, value=sub["out"])
    return wf


def children(stack: Stack, run: str) -> list[str]:
    rows = stack.rows("SELECT id FROM run WHERE parent_run = %s ORDER BY id", run)
    return [str(row[0]) for row in rows]


def test_a_child_run_brings_its_results_up(stack: Stack, family: Workflow) -> None:
    """The parent's step is parked until the child is over."""
    run = go(stack, family, n=1, fail=False)
    assert states(stack, run)["sub"] == "parked"
    (child,) = children(stack, run)
    stack.drain(child)
    stack.drain(run)
    assert stack.client.result(run) == {"then": 2}
    assert stack.client.get(child).correlation_id == stack.client.get(run).correlation_id


def test_an_attempt_that_lost_its_lease_starts_no_child(
    stack: Stack, family: Workflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker was stopped before it could write; meanwhile another attempt began the one child (fault suite)."""
    run = stack.client.start(family, {"n": 4, "fail": False}).id
    decide = stack.engine.journal.decide

    def late(run: str, decision: Any) -> Any:
        stack.rows("UPDATE step SET lease = gen_random_uuid() WHERE run_id = %s AND state = 'running'", run)
        return decide(run, decision)

    monkeypatch.setattr(stack.engine.journal, "decide", late)
    stack.engine.run_bundle("trellis.child", run, [0])
    assert states(stack, run)["sub"] == "running"
    assert children(stack, run) == []


def test_a_child_that_fails_fails_its_step(stack: Stack, family: Workflow) -> None:
    """With the child's own error in the message."""
    run = go(stack, family, n=1, fail=True)
    (child,) = children(stack, run)
    stack.drain(child)
    stack.drain(run)
    with pytest.raises(
        RunFailed, match="child run .* of workflow 'child' ended as failed: step 'flaky'"
    ) as caught:
        stack.client.result(run)
    assert caught.value.error["type"] == "ChildFailed"


def test_a_retried_child_is_a_new_run(stack: Stack) -> None:
    """Each attempt has a child of its own, and only one."""
    child = Workflow("failing", register=False)
    child.step("flaky", steps.fails)
    wf = Workflow("retrying", register=False)
    wf.child("sub", child, retry=2)
    run = go(stack, wf)
    stack.drain(children(stack, run)[0])
    stack.rows("UPDATE step SET due_at = now() WHERE run_id = %s AND state = 'ready'", run)
    stack.drain(run)
    assert len(children(stack, run)) == 2
    stack.drain(children(stack, run)[1])
    stack.drain(run)
    assert stack.client.get(run).state is RunState.FAILED


def test_cancel_goes_down_the_tree(stack: Stack, family: Workflow) -> None:
    """Children and their children end with the run, and so do those of a run that fails."""
    top = Workflow("top", register=False)
    top.child("down", family, n=1, fail=False)
    run = go(stack, top)
    (middle,) = children(stack, run)
    stack.drain(middle)
    (bottom,) = children(stack, middle)
    assert stack.client.cancel(run)
    assert {stack.client.get(each).state for each in (run, middle, bottom)} == {RunState.CANCELLED}
    assert not {"ready", "parked", "waiting"} & {
        *states(stack, bottom).values(),
        *states(stack, middle).values(),
    }


def test_wrong_parameters_of_a_child_fail_its_step(stack: Stack) -> None:
    """Known only when the values are there; nothing of the child is written."""
    child = Workflow("typed", params={"n": int}, register=False)
    child.step("n", steps.add, a=child.params.n, b=1)
    wf = Workflow("mistyped", params={"n": str}, register=False)
    wf.child("sub", child, n=wf.params.n)
    run = go(stack, wf, n="many")
    assert stack.client.get(run).error["type"] == "ParameterError"
    assert children(stack, run) == []


def test_children_run_on_real_workers(stack: Stack) -> None:
    """A map of child runs: the end of each wakes its step at once."""
    stack.worker()
    child = Workflow("square", params={"n": int}, register=False)
    child.step("out", steps.add, a=child.params.n, b=child.params.n)
    wf = Workflow("squares", register=False)
    wf.map(
        "each",
        "trellis.child",
        over=[1, 2, 3],
        workflow=child.spec.model_dump(mode="json"),
        params={"n": wf.item},
    )
    run = stack.client.start(wf)
    assert stack.client.wait(run, 30).state is RunState.SUCCEEDED
    assert stack.client.result(run, "each") == [{"out": 2}, {"out": 4}, {"out": 6}]
