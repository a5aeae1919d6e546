"""Joins: branches that meet again."""

from __future__ import annotations

from typing import Any

import pytest
import steps
from stack import Stack

from trellis.tasks.errors import DefinitionError
from trellis.workflows import Default, Workflow, files
from trellis.workflows.states import RunState


def finish(stack: Stack, workflow: Workflow, **params: object) -> str:
    run = stack.client.start(workflow, params)
    stack.drain(run.id)
    assert stack.client.get(run).state is RunState.SUCCEEDED
    return run.id


def states(stack: Stack, run: str) -> dict[str, str]:
    return {step.name: step.state.value for step in stack.client.steps(run)}


def branches(join: str = "any", **last: Any) -> Workflow:
    """One of two branches runs, or none, and both lead to the same step."""
    wf = Workflow("branches", params={"n": int}, register=False)
    low = wf.step("low", steps.returns, value={"who": "low"}, when="params.n < 10")
    high = wf.step("high", steps.returns, value={"who": "high"}, when="params.n > 20")
    far = wf.step("far", steps.returns, value={"who": high["who"]})
    wf.step("meet", steps.returns, value=[low["who"], far["who"], f"{far['who']}!"], join=join, **last)
    return wf


@pytest.mark.parametrize(
    ("n", "expected"),
    [(1, ["low", None, "null!"]), (30, [None, "high", "high!"])],
)
def test_a_joined_step_runs_where_one_branch_did(stack: Stack, n: int, expected: list[Any]) -> None:
    """What the skipped branch would have given is null, a part of it too."""
    run = finish(stack, branches(), n=n)
    assert stack.client.result(run, "meet") == expected


def test_a_joined_step_is_skipped_where_all_branches_were(stack: Stack) -> None:
    """And without a join, where one was."""
    run = finish(stack, branches(), n=15)
    assert states(stack, run) == dict.fromkeys(("low", "high", "far", "meet"), "skipped")
    run = finish(stack, branches(join="all"), n=1)
    assert states(stack, run)["meet"] == "skipped"


def test_a_join_waits_for_all_branches(stack: Stack) -> None:
    """It is no race: the step begins when every branch is done or skipped."""
    wf = Workflow("waits", register=False)
    one = wf.step("one", steps.add, a=1)
    gone = wf.step("gone", steps.noop, when="1 == 2")
    two = wf.step("two", steps.add, a=2)
    wf.step("meet", steps.returns, value=[one, gone, two], join="any")
    run = stack.client.start(wf).id
    stack.engine.run_bundle("noop", run, [1])
    stack.engine.run_bundle("add", run, [0])
    assert states(stack, run)["meet"] == "waiting"
    stack.drain(run)
    assert stack.client.result(run, "meet") == [2, None, 3]


def test_a_failed_branch_that_skips_what_is_behind_joins_alike(stack: Stack) -> None:
    """on_failure="skip" goes through the same door, also two steps away; a default is no skip."""
    wf = Workflow("failed", register=False)
    bad = wf.step("bad", steps.fails, on_failure="skip")
    behind = wf.step("behind", steps.returns, value=bad)
    good = wf.step("good", steps.add, a=1)
    zero = wf.step("zero", steps.fails, on_failure=Default(0))
    wf.step("meet", steps.returns, value=[bad, behind, good, zero], join="any")
    run = finish(stack, wf)
    assert stack.client.result(run, "meet") == [None, None, 2, 0]


def test_a_join_of_joins_and_its_condition(stack: Stack) -> None:
    """A joined step that ran counts for the next one; `when` is asked after the join."""
    wf = Workflow("nested", params={"n": int}, register=False)
    a = wf.step("a", steps.returns, value=1, when="params.n == 1")
    b = wf.step("b", steps.returns, value=2, when="params.n == 2")
    c = wf.step("c", steps.returns, value=3, when="params.n == 3")
    ab = wf.step("ab", steps.returns, value=[a, b], join="any")
    wf.step("abc", steps.returns, value=[ab, c], join="any")
    wf.step("only", steps.noop, after=[a, b], join="any", when="steps.a == 1")
    run = finish(stack, wf, n=3)
    assert stack.client.result(run, "abc") == [None, 3]
    assert states(stack, run)["only"] == "skipped"
    run = finish(stack, wf, n=1)
    assert stack.client.result(run, "abc") == [[1, None], None]
    assert states(stack, run)["only"] == "succeeded"
    run = finish(stack, wf, n=2)
    assert (states(stack, run)["ab"], states(stack, run)["only"]) == ("succeeded", "skipped")


def test_a_map_joins_and_its_items_see_null(stack: Stack) -> None:
    """The items of a joined map, and a map that is one of the branches."""
    wf = Workflow("maps", params={"n": int}, register=False)
    left = wf.step("left", steps.returns, value={"k": 1}, when="params.n == 1")
    right = wf.map("right", steps.returns, over=[1, 2], value=wf.item, when="params.n == 2")
    both = wf.map("both", steps.returns, over=[7, 8], value=[wf.item, left["k"], right], join="any")
    wf.step("end", steps.returns, value=both)
    run = finish(stack, wf, n=1)
    assert stack.client.result(run, "end") == [[7, 1, None], [8, 1, None]]
    run = finish(stack, wf, n=2)
    assert stack.client.result(run, "end") == [[7, None, [1, 2]], [8, None, [1, 2]]]
    run = finish(stack, wf, n=3)
    assert states(stack, run)["end"] == "skipped"


def test_a_joined_step_is_not_taken_ahead_as_if_it_were_skipped(stack: Stack) -> None:
    """A skip costs nothing and is done at once; a joined step behind it is somebody's work: a message announces it."""
    wf = Workflow("ahead", register=False)
    gone = wf.step("gone", steps.noop, when="1 == 2")
    wf.step("skipped", steps.noop, after=gone)
    done = wf.step("done", steps.add, a=1)
    wf.step("meet", steps.sleeps, ledger=stack.ledger, after=[gone, done], join="any")
    run = stack.client.start(wf).id
    stack.engine.run_bundle("add", run, [2])
    stack.engine.run_bundle("noop", run, [0])
    assert states(stack, run) == {
        "gone": "skipped", "skipped": "skipped", "done": "succeeded", "meet": "ready",
    }  # fmt: skip
    stack.client.cancel(run)


def test_what_a_join_cannot_be_is_refused() -> None:
    """Nothing to wait for, an unknown word, and an input that takes no null; in files as well."""
    wf = Workflow("alone", register=False)
    wf.step("alone", steps.noop, join="any")
    with pytest.raises(DefinitionError, match="step 'alone': join='any' is for a step that waits"):
        wf.validate()
    with pytest.raises(DefinitionError, match="join"):
        Workflow("word", register=False).step("x", steps.noop, join="some")  # type: ignore[arg-type]
    wf = Workflow("null", register=False)
    one = wf.step("one", steps.add, a=1, when="1 == 2")
    two = wf.step("two", steps.add, a=one)
    wf.step("meet", steps.add, a=two, join="any", after=one)
    with pytest.raises(
        DefinitionError, match=r"step 'meet': input 'a' .* does not take null.*'two' was skipped"
    ):
        wf.validate()
    text = "name: x\nsteps:\n  a: {action: noop}\n  b: {action: noop, after: a, join: %s}\n"
    with pytest.raises(DefinitionError, match=r"<text>:4: step 'b': join: .*'none'"):
        files.loads(text % "none")
    wf = Workflow("x", register=False)
    wf.step("b", steps.noop, join="any", after=wf.step("a", steps.noop))
    assert files.loads(text % "any").digest() == wf.digest()


def test_a_branch_that_cannot_be_skipped_may_give_a_plain_number() -> None:
    """Null is only feared where it can be."""
    wf = Workflow("plain", register=False)
    sure = wf.step("sure", steps.add, a=1)
    maybe = wf.step("maybe", steps.noop, when="1 == 2")
    wf.step("meet", steps.add, a=sure, after=maybe, join="any")
    wf.validate()
