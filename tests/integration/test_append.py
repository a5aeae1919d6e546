"""`ctx.append`: steps that a body adds to its own run."""

from __future__ import annotations

from typing import Any

import growing
import pytest
import steps
from stack import Stack, eventually

from trellis.tasks.errors import RunFailed, StateError
from trellis.workflows import Workflow
from trellis.workflows.engine import Engine
from trellis.workflows.states import RunState

SEARCH: dict[str, Any] = {
    "steps": {
        "search": {"action": "numbers", "inputs": {"n": 4}},
        "read": {"action": "total", "inputs": {"values": "${steps.search}"}},
    }
}


def states(stack: Stack, run: str) -> dict[str, str]:
    return {step.name: step.state.value for step in stack.client.steps(run)}


def finish(stack: Stack, workflow: Workflow, **params: object) -> str:
    run = stack.client.start(workflow, params)
    stack.drain(run.id)
    return run.id


def flow(action: Any, **inputs: Any) -> Workflow:
    """A step that grows, and one behind it."""
    wf = Workflow("grows", register=False)
    wf.step("plan", action, inputs=inputs)
    wf.step("finish", growing.reads_all, step="plan", after="plan")
    return wf


def test_appended_steps_run_before_what_stands_behind_the_growing_step(stack: Stack) -> None:
    """They are named after it, found by their names, and read by the step behind."""
    run = finish(stack, flow(growing.plan, parts=[SEARCH]))
    assert states(stack, run) == dict.fromkeys(("plan", "finish", "plan.search", "plan.read"), "succeeded")
    assert sorted(stack.client.result(run, "plan")) == ["plan.read", "plan.search"]
    assert stack.client.result(run, "plan.read") == 6
    assert stack.client.result(run) == {
        "finish": {"search": ["succeeded", [0, 1, 2, 3]], "read": ["succeeded", 6]}
    }
    assert [event.step for event in stack.client.events(run) if event.kind == "step.appended"] == ["plan"]
    assert stack.client.get(run).steps == 4


def test_what_stands_behind_waits_while_an_appended_step_is_open(stack: Stack) -> None:
    """The barrier: neither the growing step's end nor that of some of the steps frees it."""
    run = stack.client.start(flow(growing.plan, parts=[SEARCH])).id
    stack.engine.run_bundle("plan", run, [0])
    assert states(stack, run) == {
        "plan": "succeeded", "finish": "waiting", "plan.search": "ready", "plan.read": "waiting",
    }  # fmt: skip
    stack.engine.run_bundle("numbers", run, [2])
    assert states(stack, run)["finish"] == "waiting"


def test_a_run_ends_only_after_what_its_final_step_appended(stack: Stack) -> None:
    """Where nothing stands behind, the ends of the fragment are ends of the run."""
    wf = Workflow("final", register=False)
    wf.step("plan", growing.plan, parts=[SEARCH])
    run = stack.client.start(wf).id
    stack.engine.run_bundle("plan", run, [0])
    assert stack.client.get(run).state is RunState.RUNNING
    stack.drain(run)
    assert stack.client.get(run).state is RunState.SUCCEEDED
    assert stack.client.result(run) == {"plan": ["plan.read", "plan.search"], "plan.read": 6}


def test_appended_steps_append_in_turn(stack: Stack) -> None:
    """To any depth; who waits for the first waits for the last."""
    wf = Workflow("deep", register=False)
    wf.step("top", growing.down, n=4)
    wf.step("last", steps.noop, after="top")
    run = finish(stack, wf)
    assert list(states(stack, run)) == ["top", "last", "top.down", "top.down.down", "top.down.down.down"]
    ended = dict(stack.rows("SELECT name, extract(epoch FROM started_at) FROM step WHERE run_id = %s", run))
    assert max(ended, key=ended.__getitem__) == "last"


def test_a_body_may_append_several_times_and_a_fragment_holds_maps_and_conditions(stack: Stack) -> None:
    """Whatever a workflow can say, a fragment can."""
    mapped = {
        "steps": {
            "list": {"action": "numbers", "inputs": {"n": 3}},
            "each": {
                "action": "add",
                "inputs": {"a": "${item}"},
                "map": {"over": "${steps.list}"},
            },
            "big": {"action": "noop", "when": "steps.list.length > 5"},
            "sum": {"action": "total", "inputs": {"values": "${steps.each}"}},
        }
    }
    run = finish(stack, flow(growing.plan, parts=[SEARCH, mapped]))
    found = states(stack, run)
    assert found["plan.big"] == "skipped"
    assert found["finish"] == "succeeded"
    assert stack.client.result(run, "plan.each") == [1, 2, 3]
    assert stack.client.result(run, "finish") == {
        "search": ["succeeded", [0, 1, 2, 3]], "read": ["succeeded", 6], "list": ["succeeded", [0, 1, 2]],
        "each": ["succeeded", [1, 2, 3]], "big": ["skipped", None], "sum": ["succeeded", 6],
    }  # fmt: skip


def test_an_item_of_a_map_appends_and_keeps_its_lane(stack: Stack) -> None:
    """The next item of a map with a limit begins when what the one before appended is done."""
    wf = Workflow("items", register=False)
    wf.map("each", growing.down, over=[2, 1], concurrency=1, n=wf.item)
    run = stack.client.start(wf).id
    stack.engine.run_bundle("trellis.map", run, [0])
    stack.engine.run_bundle("down", run, [2])
    assert states(stack, run)["each[1]"] == "waiting"
    stack.drain(run)
    assert stack.client.result(run) == {"each": [2, 1]}
    assert stack.client.result(run, "each[0].down") == 1


def test_a_failure_inside_is_a_failure_of_the_run_unless_its_policy_says_otherwise(stack: Stack) -> None:
    """A skip stays inside the fragment: what stands behind runs, and sees what became of it."""
    tolerant = {
        "steps": {
            "bad": {"action": "fails", "on_failure": "skip"},
            "behind": {"action": "noop", "after": "bad"},
        }
    }
    run = finish(stack, flow(growing.plan, parts=[tolerant]))
    assert stack.client.result(run, "finish") == {"bad": ["failed", None], "behind": ["skipped", None]}
    run = finish(stack, flow(growing.plan, parts=[{"steps": {"bad": {"action": "fails"}}}]))
    with pytest.raises(RunFailed, match=r"step 'plan\.bad'"):
        stack.client.result(run)


def test_a_body_that_fails_or_is_tried_again_appends_only_what_its_last_attempt_did(stack: Stack) -> None:
    """Nothing of an attempt that did not succeed is written."""
    run = finish(stack, flow(growing.plan_late, ledger=stack.ledger, attempts=3))
    assert list(states(stack, run)) == ["plan", "finish", "plan.try3"]
    assert stack.effects() == {"plan": 3, "plan.try3": 1}
    run = finish(stack, flow(growing.plan, parts=[SEARCH], fails=True))
    assert states(stack, run) == {"plan": "failed", "finish": "cancelled"}


def test_a_stale_body_appends_nothing(stack: Stack) -> None:
    """Where the lease went to somebody else in the meantime, neither result nor steps are written."""
    run = stack.client.start(flow(growing.plan, parts=[SEARCH])).id
    complete = stack.engine.journal.complete

    def robbed(*arguments: Any, **options: Any) -> Any:
        stack.rows("UPDATE step SET lease = gen_random_uuid() WHERE run_id = %s AND idx = 0", run)
        return complete(*arguments, **options)

    stack.engine.journal.complete = robbed  # type: ignore[method-assign]
    stack.engine.run_bundle("plan", run, [0])
    assert states(stack, run) == {"plan": "running", "finish": "waiting"}
    assert stack.rows("SELECT steps, missing FROM run WHERE id = %s", run) == [(2, 1)]
    assert stack.rows("SELECT missing FROM step WHERE run_id = %s AND idx = 1", run) == [(1,)]


def test_a_run_that_ended_meanwhile_takes_no_more_steps(stack: Stack) -> None:
    """A cancel between the body and its recording."""
    run = stack.client.start(flow(growing.plan, parts=[SEARCH])).id
    complete = stack.engine.journal.complete

    def cancelled(*arguments: Any, **options: Any) -> Any:
        stack.client.cancel(run)
        return complete(*arguments, **options)

    stack.engine.journal.complete = cancelled  # type: ignore[method-assign]
    stack.engine.run_bundle("plan", run, [0])
    assert states(stack, run) == {"plan": "cancelled", "finish": "cancelled"}


def test_what_is_wrong_is_told_inside_the_body_and_leaves_no_half(stack: Stack) -> None:
    """Typed errors at the call; what is right beside them is appended."""

    def one(name: str = "a", **step: Any) -> dict[str, Any]:
        return {"steps": {name: {"action": "add", **step}}}

    wrong = [
        {"steps": {}},
        {"stepz": {}},
        one(inputs={"a": 1}, action="nobody"),
        one(inputs={"a": "x"}),
        one(inputs={"a": "${steps.b}"}),
        one(inputs={"a": "${params.b}"}),
        one(inputs={"a": 1}, after="a"),
        one(inputs={"a": "${run.nobody.x}"}),
        one(inputs={"a": "${run.finish}"}),
        one(inputs={"a": "${run.before[7]}"}),
        one(inputs={"a": 1}, name="a.b"),
        {**one(inputs={"a": 1}), "params": {"p": {"type": "integer"}}},
        {**one(inputs={"a": 1}), "max_parallel": 2, "concurrency_key": "k"},
        one(inputs={"a": 1}, name="right"),
        one(inputs={"a": 2}, name="right"),
    ]
    wf = Workflow("wrong", register=False)
    before = wf.step("before", steps.numbers, n=2)
    wf.step("plan", growing.plan_or_say, parts=wrong, after=before)
    wf.step("finish", steps.noop, after="plan")
    run = finish(stack, wf)
    expected = [
        "has no steps", "no such field", "'nobody'", "input 'a' of action 'add'", "'b' that does not exist",
        "a parameter 'b'", "circle", "has no step 'nobody'", "step 'finish' is waiting", "is a list of 2",
        "is not a name", "no parameters", "steps alone: concurrency_key, max_parallel", "appended twice",
    ]  # fmt: skip
    said = stack.client.result(run, "plan")
    for problem, told in zip(expected, said, strict=True):
        assert problem in told
    assert stack.client.result(run, "plan.right") == 2
    assert set(states(stack, run)) == {"before", "plan", "finish", "plan.right"}


def test_a_fragment_uses_what_its_run_has_finished(stack: Stack) -> None:
    """By name, without a copy of the value: a plain step, an item of a map, a whole map, an appended step."""
    for name, expected in (("list", 7), ("each", 11), ("plan.read", 7), ("each[2]", 4)):
        wf = Workflow("uses", register=False)
        three = wf.step("list", steps.numbers, n=4)
        each = wf.map("each", steps.add, over=three, a=wf.item)
        plan = wf.step("plan", growing.plan, parts=[SEARCH], after=each)
        late = wf.step("later", growing.refers, step=name, after=plan)
        wf.step("read", growing.reads_one, step=name, after=late)
        run = finish(stack, wf)
        value = stack.client.result(run, "read")
        assert stack.client.result(run, "later.sum") == expected
        assert stack.client.result(run, "later.text") == f"{value}!"
        [(bindings,)] = stack.rows("SELECT bindings FROM step WHERE run_id = %s AND name = 'later.sum'", run)
        assert bindings[0][0] == ["parts", 0]


def test_many_ends_and_many_followers_meet_in_one_row(stack: Stack) -> None:
    """The number of edges is their sum, not their product, and nobody runs too early."""
    wf = Workflow("wide", register=False)
    wf.step("plan", growing.fan, n=150)
    for number in range(100):
        wf.step(f"b{number}", steps.noop, after="plan")
    run = stack.client.start(wf).id
    stack.engine.run_bundle("fan", run, [0])
    [(edges,)] = stack.rows("SELECT sum(cardinality(dependents)) FROM step WHERE run_id = %s", run)
    assert edges == 100 + 150 + 100
    assert stack.rows("SELECT DISTINCT missing FROM step WHERE run_id = %s AND action = 'noop'", run) == [
        (1,)
    ]
    stack.drain(run)
    assert stack.client.progress(run).by_state == {"succeeded": 251}
    assert stack.client.get(run).state is RunState.SUCCEEDED


def test_a_run_that_grows_without_an_end_is_stopped_by_its_limit(stack: Stack) -> None:
    """The step that would pass TRELLIS_RUN_MAX_STEPS fails, typed, and has appended nothing."""
    engine = Engine(stack.with_settings(run_max_steps=100), stack.engine.dispatcher.app)
    wf = Workflow("endless", register=False)
    wf.step("top", growing.fan, n=99)
    run = stack.client.start(wf).id
    engine.run_bundle("fan", run, [0])
    assert stack.client.get(run).steps == 100
    wf = Workflow("more", register=False)
    wf.step("top", growing.fan, n=100)
    run = stack.client.start(wf).id
    engine.run_bundle("fan", run, [0])
    with pytest.raises(RunFailed, match="RunTooLarge: the run would have 101 steps, the limit is 100"):
        stack.client.result(run)
    engine.database.close()


def test_appended_steps_count_among_those_that_a_run_may_have_at_once(stack: Stack) -> None:
    """A limit of the run is one of all its steps."""
    wf = Workflow("narrow", max_parallel=1, register=False)
    wf.step("plan", growing.fan, n=3)
    run = stack.client.start(wf).id
    stack.engine.run_bundle("fan", run, [0])
    stack.engine.admission.sweep()
    assert sorted(states(stack, run).values()) == ["parked", "parked", "ready", "succeeded"]
    stack.drain(run)
    assert stack.client.get(run).state is RunState.SUCCEEDED


def test_outside_a_run_there_is_nothing_to_append_to(stack: Stack) -> None:
    """A plain job's context says so."""
    with pytest.raises(StateError, match="runs outside any run"):
        growing.down(2)


def test_a_worker_killed_between_append_and_return_appends_nothing_and_the_next_one_does(
    stack: Stack,
) -> None:
    """The appended effect happens once."""
    run = stack.client.start(flow(growing.plan_dies, ledger=stack.ledger)).id
    stack.worker(TRELLIS_IMPORTS="steps,growing")
    stack.beat()
    eventually(lambda: stack.client.get(run).finished, 60, "the run ends")
    assert stack.effects() == {"plan": 2, "plan.once": 1}
    assert list(states(stack, run)) == ["plan", "finish", "plan.once"]
