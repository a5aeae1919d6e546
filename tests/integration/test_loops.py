"""Loops: an action that runs again and again, each turn a step."""

from __future__ import annotations

from typing import Any

import pytest
import steps
import turning
from stack import Stack, eventually

from trellis.tasks.errors import DefinitionError, RunFailed
from trellis.workflows import Default, Workflow, files
from trellis.workflows.states import RunState


def finish(stack: Stack, workflow: Workflow, **params: object) -> str:
    run = stack.client.start(workflow, params)
    stack.drain(run.id)
    return run.id


def turns(stack: Stack, run: str) -> dict[str, str]:
    """The steps that somebody wrote, with their states."""
    return {
        step.name: step.state.value
        for step in stack.client.steps(run)
        if step.action not in ("trellis.loop", "trellis.gather")
    }


def refine(limit: int = 10, **options: Any) -> Workflow:
    wf = Workflow("refine", params={"goal": float}, register=False)
    first = wf.step("first", steps.returns, value={"score": 0.0})
    best = wf.loop(
        "refine",
        turning.improve,
        start=first,
        until="result.score >= params.goal",
        limit=limit,
        draft=wf.previous,
        **options,
    )
    wf.step("behind", steps.returns, value=f"{best['score']} after {best['turns']}")
    return wf


def test_a_loop_goes_on_until_its_condition_holds(stack: Stack) -> None:
    """Each turn gets the result of the one before, is a step by its number, and the last one's result is the loop's."""
    run = finish(stack, refine(), goal=0.7)
    assert stack.client.get(run).state is RunState.SUCCEEDED
    assert stack.client.result(run, "refine") == {"score": 0.75, "turns": 3}
    assert stack.client.result(run, "refine[1]") == {"score": 0.5, "turns": 2}
    assert stack.client.result(run) == {"behind": "0.75 after 3"}
    assert turns(stack, run) == dict.fromkeys(
        ("first", "behind", "refine[0]", "refine[1]", "refine[2]"), "succeeded"
    )
    assert stack.client.progress(run).total == 5


def test_the_first_turn_is_taken_in_any_case(stack: Stack) -> None:
    """The condition is asked after a turn, never before."""
    run = finish(stack, refine(), goal=-1.0)
    assert stack.client.result(run, "refine")["turns"] == 1


def test_a_loop_past_its_bound_fails_or_stops_as_it_says(stack: Stack) -> None:
    """fail: a typed error that names loop and condition; stop: the last result counts; on_failure answers for it."""
    run = finish(stack, refine(limit=2), goal=9.0)
    with pytest.raises(
        RunFailed, match=r"LoopLimit: after 2 turns of loop 'refine', 'result.score >= params.goal'"
    ):
        stack.client.result(run)
    run = finish(stack, refine(limit=2, on_limit="stop"), goal=9.0)
    assert stack.client.result(run, "refine") == {"score": 0.5, "turns": 2}
    run = finish(stack, refine(limit=2, on_failure=Default({"score": 0, "turns": 0})), goal=9.0)
    assert stack.client.result(run, "behind") == "0 after 0"
    run = finish(stack, refine(limit=2, on_failure="skip"), goal=9.0)
    assert (stack.client.get(run).state, turns(stack, run)["behind"]) == (RunState.SUCCEEDED, "skipped")


@pytest.mark.parametrize(
    ("policy", "state", "behind"),
    [(None, RunState.FAILED, "cancelled"), ("skip", RunState.SUCCEEDED, "skipped"),
     (Default(-1), RunState.SUCCEEDED, "succeeded")],
    ids=["fail", "skip", "default"],
)  # fmt: skip
def test_a_turn_that_fails_ends_the_loop_as_its_policy_says(
    stack: Stack, policy: Any, state: RunState, behind: str
) -> None:
    """With a default the loop has that for a result, whatever the condition thinks of it."""
    wf = Workflow("breaks", register=False)
    last = wf.loop(
        "break", turning.breaks_at, until="result > 100", limit=50, n=wf.previous, at=3, on_failure=policy
    )
    wf.step("behind", steps.returns, value=last)
    run = finish(stack, wf)
    assert stack.client.get(run).state is state
    assert turns(stack, run) == {
        "behind": behind, "break[0]": "succeeded", "break[1]": "succeeded", "break[2]": "succeeded",
        "break[3]": "failed",
    }  # fmt: skip
    if behind == "succeeded":
        assert stack.client.result(run, "behind") == -1


def test_a_turn_is_tried_again_alone(stack: Stack) -> None:
    """A retry repeats a turn, not the loop."""
    wf = Workflow("shaky", register=False)
    wf.loop("go", turning.shaky, until="result == 3", limit=5, n=wf.previous, ledger=stack.ledger)
    run = finish(stack, wf)
    assert stack.client.result(run) == {"go": 3}
    assert stack.effects() == {"go[0]": 2, "go[1]": 2, "go[2]": 2}


def test_inputs_use_the_index_and_other_steps_and_the_condition_as_well(stack: Stack) -> None:
    """References of all kinds in a turn's inputs, in `start`, inside texts, and in `until`."""
    wf = Workflow("uses", params={"n": int}, register=False)
    two = wf.step("two", steps.add, a=1)
    wf.loop(
        "go",
        steps.returns,
        start=[wf.params.n, {"two": two}],
        until="index >= steps.two and params.n == 5",
        limit=9,
        value=[wf.index, two, f"{wf.index}: {wf.previous[0]} {two}", wf.params.n],
        after=two,
    )
    run = finish(stack, wf, n=5)
    assert stack.client.result(run) == {"go": [2, 2, "2: 1 2", 5]}
    assert stack.client.result(run, "go[0]") == [0, 2, "0: 5 2", 5]


def test_a_condition_that_does_not_fit_the_result_fails_the_loop(stack: Stack) -> None:
    """By name; not the run's engine."""
    wf = Workflow("unfit", register=False)
    wf.loop("go", steps.returns, until="result > 3", limit=9, value="text")
    run = finish(stack, wf)
    with pytest.raises(
        RunFailed, match="DefinitionError: the condition 'result > 3' does not fit its values"
    ):
        stack.client.result(run)


def test_a_loop_that_is_skipped_or_joined_is_like_any_step(stack: Stack) -> None:
    """`when` and `join` are asked once, before the first turn."""
    wf = Workflow("branches", params={"n": int}, register=False)
    one = wf.loop("one", turning.count_up, until="result == 2", limit=5, n=wf.previous, when="params.n == 1")
    two = wf.step("two", steps.returns, value=7, when="params.n == 2")
    wf.loop(
        "meet", steps.returns, until="index == 1", limit=5, value=[one, two, wf.previous], join="any",
        inputs={}, after=[one, two],
    )  # fmt: skip
    run = finish(stack, wf, n=1)
    assert stack.client.result(run) == {"meet": [2, None, [2, None, None]]}
    run = finish(stack, wf, n=2)
    assert stack.client.result(run) == {"meet": [None, 7, [None, 7, None]]}
    run = finish(stack, wf, n=3)
    assert stack.client.result(run) == {}


def test_a_turn_may_append_and_the_next_one_waits_for_it(stack: Stack) -> None:
    """Growth inside growth: what a turn appended is done before the next one, which may read it."""
    wf = Workflow("thinks", register=False)
    wf.loop("think", turning.turns_and_grows, until="result == 3", limit=9, n=wf.previous)
    run = finish(stack, wf)
    assert stack.client.result(run)["think"] == 3
    assert [name for name in turns(stack, run) if name.endswith(".act")] == [
        "think[0].act", "think[1].act", "think[2].act",
    ]  # fmt: skip


def test_a_fragment_may_hold_a_loop(stack: Stack) -> None:
    """Under the growing step's name."""
    import growing

    wf = Workflow("grows", register=False)
    loop = {"action": "count_up", "inputs": {"n": "${previous}"}, "loop": {"until": "result > 2", "limit": 5}}
    wf.step("plan", growing.plan, parts=[{"steps": {"count": loop}}])
    wf.step("finish", growing.reads_all, step="plan", after="plan")
    run = finish(stack, wf)
    assert stack.client.result(run, "finish") == {"count": ["succeeded", 3]}
    assert stack.client.result(run, "plan.count[1]") == 2


def test_what_a_loop_cannot_be_is_refused() -> None:
    """No bound, no condition, a wrong word, a map at once; a misspelt name in its condition; in files alike."""

    def wf() -> Workflow:
        return Workflow("refused", params={"n": int}, register=False)

    with pytest.raises(TypeError, match="limit"):
        wf().loop("x", steps.noop, until="result == 1")  # type: ignore[call-arg]
    for options, said in (
        ({"limit": 0}, "limit = 0: input should be greater than or equal to 1"),
        ({"limit": 3, "on_limit": "ignore"}, "on_limit"),
        ({"limit": 3, "until": ""}, "the condition is empty"),
        ({"limit": 3, "until": "results > 1"}, "does not know 'results'"),
        ({"limit": 3, "until": "params.m > 1"}, "a parameter 'm' that does not exist"),
        ({"limit": 3, "until": "steps.y > 1"}, "a step 'y' that does not exist"),
        ({"limit": 3, "start": "${item}"}, None),
    ):
        made = wf()
        with pytest.raises(DefinitionError) if said is None else pytest.raises(DefinitionError, match=said):
            made.loop("x", steps.returns, **{"until": "result == 1", **options}, value=made.item)  # type: ignore[arg-type]
            made.validate()
    text = "name: x\nsteps:\n  x:\n    action: count_up\n    inputs: {n: '${previous}'}\n    %s\n"
    with pytest.raises(DefinitionError, match=r"<text>:6: step 'x': loop\.limit: is missing"):
        files.loads(text % "loop: {until: result > 1}")
    with pytest.raises(DefinitionError, match=r"there is no such field; did you mean 'until'"):
        files.loads(text % "loop: {untill: result > 1, until: result > 1, limit: 3}")
    with pytest.raises(DefinitionError, match="a map or a loop, not both"):
        Workflow.from_spec(
            files.loads(text % "loop: {until: result > 1, limit: 3}\n    map: {over: [1]}")
        ).validate()
    with pytest.raises(DefinitionError, match=r"uses \$\{previous\} outside a loop"):
        Workflow.from_spec(files.loads(text % "retry: 2")).validate()
    made = Workflow("x", register=False)
    made.loop("x", turning.count_up, until="result > 1", limit=3, n=made.previous)
    assert files.loads(text % "loop: {until: result > 1, limit: 3}").digest() == made.digest()


def test_a_loop_goes_on_after_its_worker_was_killed(stack: Stack) -> None:
    """On real workers: nothing is remembered outside the journal, finished turns are not taken again."""
    wf = Workflow("killed", register=False)
    wf.loop("go", steps.dies, until="index == 3", limit=9, ledger=stack.ledger, times=1)
    run = stack.client.start(wf).id
    stack.worker(TRELLIS_IMPORTS="steps,turning")
    stack.beat()
    eventually(lambda: stack.client.get(run).finished, 90, "the run ends")
    assert stack.client.get(run).state is RunState.SUCCEEDED
    assert stack.effects() == {f"go[{turn}]": 2 for turn in range(4)}
