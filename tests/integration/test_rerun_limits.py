"""A rerun stands in line before limits like any new run, and its steps keep the limits that they had."""

from __future__ import annotations

from typing import Any

import steps
from stack import Stack

from trellis.workflows import Client, Rate, Retry, RunState, Workflow, action
from trellis.workflows.rerun import merged


@action(name="far_away", queue="far", retries=Retry(3, base=0))
def far_away(value: Any = None) -> Any:
    """An action with a queue and retries of its own."""
    return value


def found(stack: Stack, run: str) -> dict[str, tuple[str, str | None]]:
    rows = stack.rows("SELECT name, state, waits_for FROM step WHERE run_id = %s ORDER BY idx", run)
    return {name: (state, waits_for) for name, state, waits_for in rows}


def gates_of(stack: Stack, run: str) -> dict[str, Any]:
    return dict(stack.rows("SELECT name, options->'gates' FROM step WHERE run_id = %s ORDER BY idx", run))


def held(stack: Stack) -> list[str]:
    return [gate for (gate,) in stack.rows("SELECT gate FROM permit ORDER BY 1")]


def done(stack: Stack, wf: Workflow, params: dict[str, Any] | None = None, **options: Any) -> str:
    run = stack.client.start(wf, params, **options).id
    stack.drain(run)
    return run


def test_a_rerun_waits_for_its_turn_among_runs_with_its_key(stack: Stack) -> None:
    """It takes no place before, and gives it to the next one when it is over."""
    wf = Workflow("alone", concurrency_key="one", register=False)
    first = wf.step("first", steps.noop)
    wf.step("beside", steps.noop)
    wf.step("last", steps.noop, after=first)
    old = done(stack, wf)
    other = stack.client.start(wf).id
    new = stack.client.rerun(old, from_step="last").id
    again = stack.client.rerun(old, from_step="first").id
    assert found(stack, new)["last"] == ("parked", "gate:runs:one")
    assert found(stack, again) == {
        "first": ("parked", "gate:runs:one"), "beside": ("succeeded", None), "last": ("waiting", None),
    }  # fmt: skip
    for run in (other, new, again):
        assert held(stack) == ["gate:runs:one"]
        assert [name for name, (state, _) in found(stack, run).items() if state == "ready"]
        stack.drain(run)
        assert stack.client.get(run).state is RunState.SUCCEEDED
    assert held(stack) == []


def test_steps_of_a_rerun_with_limits_are_let_in_at_once(stack: Stack) -> None:
    """As those of a new run; one that is only going to be skipped needs no place."""
    wf = Workflow("keyed", register=False)
    never = wf.step("never", steps.noop, when="1 > 2")
    wf.step("behind", steps.noop, after=never, concurrency_key="k")
    for name in ("a", "b"):
        wf.step(name, steps.noop, concurrency_key="k", rate=Rate("r", 1000))
    old = done(stack, wf)
    run = stack.client.rerun(old, from_step="a").id
    assert found(stack, run)["a"] == ("ready", None)
    second = stack.client.rerun(old, from_step="b").id
    assert found(stack, second)["b"] == ("parked", "gate:key:k")
    stack.drain(run)
    assert found(stack, second)["b"] == ("ready", None)
    third = stack.client.rerun(old, from_step="behind").id
    stack.drain(third)
    assert found(stack, third)["behind"][0] == "skipped"


def test_max_parallel_counts_the_steps_of_each_rerun_alone(stack: Stack) -> None:
    wf = Workflow("narrow", max_parallel=1, register=False)
    wf.step("a", steps.noop)
    wf.map("each", steps.add, over=[1, 2], a=wf.item)
    old = done(stack, wf)
    runs = [stack.client.rerun(old, from_step="a").id for _ in range(2)]
    assert [found(stack, run)["a"] for run in runs] == [("ready", None)] * 2
    assert held(stack) == sorted(f"gate:run:{run}" for run in runs)
    mapped = stack.client.rerun(old, from_step="each").id
    stack.drain(mapped)
    assert gates_of(stack, mapped)["each[1]"] == [[f"gate:run:{mapped}", 1]]


def test_the_tenant_of_a_rerun_is_that_of_the_run_and_its_steps_stay_in_its_lines(stack: Stack) -> None:
    """Whether it was given or comes from a parameter; a change of a key leaves the other limits as they are."""
    client = Client(stack.with_settings(fair_window=3))
    wf = Workflow("mine", params={"id": int}, register=False)
    wf.step("far", far_away, value=1, concurrency_key="k{params.id}")
    fair = Workflow("theirs", params={"id": int}, fair_key="t{params.id}", register=False)
    fair.step("far", far_away, value=1)
    try:
        old = client.start(wf, {"id": 1}, tenant="acme").id
        stack.drain(old)
        new = client.rerun(old, params={"id": 2}).id
        assert gates_of(stack, new) == {"far": [["gate:key:k2", 1], ["gate:fair:far", 3]]}
        assert stack.rows("SELECT tenant FROM run WHERE id = %s", new) == [("acme",)]
        old = client.start(fair, {"id": 1}).id
        stack.drain(old)
        new = client.rerun(old, params={"id": 2}).id
        assert stack.rows(
            "SELECT r.tenant, s.fair FROM run r JOIN step s ON s.run_id = r.id WHERE r.id = %s", new
        ) == [("t2", "t2")]
    finally:
        client.close()


def test_a_change_leaves_alone_what_this_process_does_not_know() -> None:
    """A three-way merge: the difference between two plans of this process, made in what was kept."""
    was = {"map": {"queue": "celery", "inputs": {"x": 1}, "limits": {"key": [["a"], 1]}}, "when": "p"}
    now = {"map": {"queue": "celery", "inputs": {"x": 2}, "limits": {"key": [["b"], 1]}}}
    kept = {
        "map": {"queue": "far", "inputs": {"x": 1}, "retry": {"attempts": 3}, "limits": {"key": [["a"], 1]}},
        "when": "p",
        "timeout": 5,
    }
    assert merged(was, now, kept) == {
        "map": {"queue": "far", "inputs": {"x": 2}, "retry": {"attempts": 3}, "limits": {"key": [["b"], 1]}},
        "timeout": 5,
    }
    assert merged(None, None, {"retry": 1}) == {"retry": 1}
    assert merged({"timeout": 1}, {"timeout": 1}, {}) == {}
    assert merged(None, {"gates": [["k", 1]]}, None) == {"gates": [["k", 1]]}
