"""Steps that a body appends, and child runs, are served as declared ones: limits, tenant, order, end."""

from __future__ import annotations

from typing import Any

import growing
import pytest
import steps
from stack import Stack

from trellis.workflows import Client, RunState, Workflow
from trellis.workflows.following import follow


def growth(*parts: dict[str, Any], **options: Any) -> Workflow:
    """A step that appends these fragments."""
    wf = Workflow("grows", register=False, **options)
    wf.step("plan", growing.plan, parts=list(parts))
    return wf


def one(name: str = "one", **step: Any) -> dict[str, Any]:
    return {"steps": {name: {"action": "noop", **step}}}


def ready(stack: Stack) -> list[str]:
    return [
        name for (name,) in stack.rows("SELECT name FROM step WHERE state = 'ready' ORDER BY run_id, idx")
    ]


def test_appended_steps_with_limits_are_let_in_at_once(stack: Stack) -> None:
    """Not only by the next tick; and the end of their run gives their places back at once."""
    run = stack.client.start(growth(one("a", concurrency_key="k"), one("b", concurrency_key="k"))).id
    stack.engine.run_bundle("plan", run, [0])
    assert ready(stack) == ["plan.a"]
    assert stack.rows("SELECT gate FROM permit") == [("gate:key:k",)]
    stack.client.cancel(run)
    assert stack.rows("SELECT gate FROM permit") == []


def test_appended_steps_are_those_of_their_runs_tenant(stack: Stack) -> None:
    """They stand in the line of tenants, and take turns there."""
    client = Client(stack.with_settings(fair_window=1))
    try:
        run = client.start(growth(one("a"), one("b")), tenant="acme").id
    finally:
        client.close()
    stack.engine.run_bundle("plan", run, [0])
    found = stack.rows("SELECT name, state, fair, options->'gates' FROM step WHERE idx > 0 ORDER BY idx")
    assert found == [
        ("plan.a", "ready", "acme", [["gate:fair:celery", 1]]),
        ("plan.b", "parked", "acme", [["gate:fair:celery", 1]]),
    ]
    stack.drain(run)
    assert stack.client.get(run).state is RunState.SUCCEEDED


def test_appended_steps_have_their_place_among_the_ranks_of_the_run(stack: Stack) -> None:
    """What hangs on the growing step hangs on them."""
    wf = Workflow("ranked", register=False)
    parts = [
        {"steps": {"long": {"action": "noop", "expect": 5}, "last": {"action": "noop", "after": "long"}}}
    ]
    grows = wf.step("plan", growing.plan, parts=parts, expect=1)
    wf.step("behind", steps.noop, after=grows, expect=3)
    wf.step("beside", steps.noop, expect=6)
    run = stack.client.start(wf).id
    stack.engine.run_bundle("plan", run, [0])
    ranks = dict(stack.rows("SELECT name, rank FROM step WHERE run_id = %s", run))
    assert ranks == {"plan": 4.0, "behind": 3.0, "beside": 6.0, "plan.long": 8.0, "plan.last": 3.0}
    [claimed] = stack.engine.journal.claim_ranked(run, "celery", ["noop"], "w", room=1, seconds=0.0)[0]
    assert claimed.name == "plan.long"


def test_a_fragment_alone_has_ranks_where_they_matter(stack: Stack) -> None:
    """In a run without any: as a workflow would."""
    short, long = one("short", expect=1), one("long", expect=9)
    both = {"steps": {**short["steps"], **long["steps"]}}
    run = stack.client.start(growth(both, one("plain"))).id
    stack.engine.run_bundle("plan", run, [0])
    ranks = dict(stack.rows("SELECT name, rank FROM step WHERE run_id = %s AND idx > 0", run))
    assert ranks == {"plan.short": 1.0, "plan.long": 9.0, "plan.plain": None}


def test_appended_tasks_of_other_applications_are_revoked_with_their_run(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As declared ones are."""
    run = stack.client.start(growth({"steps": {"far": {"task": "media.resize", "queue": "far"}}})).id
    stack.engine.run_bundle("plan", run, [0])
    stack.engine.run_bundle("trellis.task", run, [1])
    [(task,)] = stack.rows("SELECT wait->>'task' FROM step WHERE run_id = %s AND idx = 1", run)
    revoked: list[str] = []
    dispatcher = stack.engine.dispatcher
    monkeypatch.setattr(dispatcher, "revoke", revoked.extend)
    stack.engine.journal.end(run, RunState.CANCELLED)
    follow(stack.engine.journal, dispatcher, run)
    assert revoked == [task]
    assert stack.rows("SELECT follow FROM run WHERE id = %s", run) == [(False,)]


def nested(stack: Stack, inner: Workflow, mapped: bool = False) -> tuple[str, str]:
    """A run of tenant acme and its child run."""
    wf = Workflow("parent", register=False)
    if mapped:
        about = {"workflow": inner.spec.model_dump(mode="json", exclude_defaults=True)}
        wf.map("inner", "trellis.child", over=[1], inputs=about)
    else:
        wf.child("inner", inner)
    run = stack.client.start(wf, tenant="acme").id
    stack.engine.run_bundle("trellis.map" if mapped else "trellis.child", run, [0])
    if mapped:
        stack.engine.run_bundle("trellis.child", run, [2])
    [(child,)] = stack.rows("SELECT id FROM run WHERE parent_run = %s", run)
    return run, str(child)


@pytest.mark.parametrize("mapped", [False, True], ids=["step", "item"])
def test_a_child_run_has_the_tenant_of_its_parent(stack: Stack, mapped: bool) -> None:
    """Its steps take turns with those of other tenants, like its parent's."""
    inner = Workflow("inner", register=False)
    inner.step("work", steps.noop)
    _, child = nested(stack, inner, mapped)
    assert stack.rows("SELECT tenant FROM run WHERE id = %s", child) == [("acme",)]
    assert stack.rows("SELECT gate FROM permit WHERE run_id = %s", child) == [("gate:fair:celery",)]


def test_a_child_run_that_says_whose_it_is_keeps_its_own_tenant(stack: Stack) -> None:
    inner = Workflow("inner", params={"who": str}, fair_key="{params.who}", register=False)
    inner.step("work", steps.noop)
    wf = Workflow("parent", register=False)
    wf.child("inner", inner, params={"who": "globex"})
    run = stack.client.start(wf, tenant="acme").id
    stack.engine.run_bundle("trellis.child", run, [0])
    assert stack.rows("SELECT tenant FROM run WHERE parent_run = %s", run) == [("globex",)]


def test_a_child_run_of_a_run_without_a_tenant_has_none(stack: Stack) -> None:
    inner = Workflow("inner", register=False)
    inner.step("work", steps.noop)
    wf = Workflow("parent", register=False)
    wf.child("inner", inner)
    run = stack.client.start(wf).id
    stack.engine.run_bundle("trellis.child", run, [0])
    assert stack.rows("SELECT tenant, gates FROM run WHERE parent_run = %s", run) == [(None, None)]
