"""Maps: what becomes of failed items, what a map's result is, and 100,000 items."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
import steps
from stack import Stack

from trellis.tasks.errors import DefinitionError, RunFailed
from trellis.workflows import Default, Retry, Workflow, action, files
from trellis.workflows.engine import Engine
from trellis.workflows.states import RunState


@action(name="odd_only")
def odd_only(n: int) -> int:
    """Fails for even numbers."""
    if n % 2 == 0:
        raise ValueError(f"{n} is even")
    return n


def finish(stack: Stack, workflow: Workflow, **params: object) -> str:
    run = stack.client.start(workflow, params)
    stack.drain(run.id)
    return run.id


def mapped(over: Any = (1, 2, 3, 4, 5), **options: Any) -> Workflow:
    """A map over numbers, and a step behind it."""
    wf = Workflow("mapped", register=False)
    source = wf.step("source", steps.returns, value=over)
    each = wf.map("each", odd_only, over=source, n=wf.item, **options)
    wf.step("behind", steps.returns, value=each)
    return wf


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"on_item_failure": "skip"}, [1, 3, 5]),
        (
            {"on_item_failure": "collect"},
            [1, {"error": {"type": "ValueError", "message": "2 is even"}}, 3,
             {"error": {"type": "ValueError", "message": "4 is even"}}, 5],
        ),
        ({"on_failure": Default(0)}, [1, 0, 3, 0, 5]),
        ({"on_item_failure": "skip", "gather": False}, 3),
        ({"on_item_failure": "collect", "gather": False}, 5),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_failed_items_become_what_the_map_says(stack: Stack, options: dict[str, Any], expected: Any) -> None:
    """Left out, told in their place, or replaced; the steps behind go on."""
    run = finish(stack, mapped(concurrency=2, **options))
    assert stack.client.get(run).state is RunState.SUCCEEDED
    assert stack.client.result(run, "each") == expected
    assert stack.client.result(run, "behind") == expected
    assert stack.client.progress(run).by_state == {"succeeded": 5, "failed": 2}


def test_a_failed_item_is_still_a_failed_step(stack: Stack) -> None:
    """Its error is told by its own name, and stands in the events."""
    run = finish(stack, mapped(on_item_failure="skip"))
    with pytest.raises(RunFailed, match=r"'each\[1\]': ValueError: 2 is even"):
        stack.client.result(run, "each[1]")
    failed = [event.step for event in stack.client.events(run) if event.kind == "step.failed"]
    assert sorted(str(name) for name in failed) == ["each[1]", "each[3]"]


def test_without_a_policy_a_failed_item_fails_the_run(stack: Stack) -> None:
    """on_item_failure="fail" leaves it to on_failure: the run fails, or what is behind is skipped."""
    run = finish(stack, mapped())
    assert stack.client.get(run).state is RunState.FAILED
    run = finish(stack, mapped(on_failure="skip"))
    assert stack.client.get(run).state is RunState.SUCCEEDED
    assert {step.name: step.state for step in stack.client.steps(run)}["behind"] == "skipped"


def test_an_item_is_tried_again_alone(stack: Stack) -> None:
    """The retry policy is each item's: the others run once."""
    wf = Workflow("again", register=False)
    fast = Retry(3, base=0, jitter=0)
    wf.map("each", steps.fails_until, over=[1, 3, 1], retry=fast, attempt=wf.item, ledger=stack.ledger)
    run = finish(stack, wf)
    assert stack.client.result(run) == {"each": [1, 3, 1]}
    assert stack.effects() == {"each[0]": 1, "each[1]": 3, "each[2]": 1}


@pytest.mark.parametrize(("policy", "state", "behind"), [
    (Default([7]), RunState.SUCCEEDED, "succeeded"),
    ("skip", RunState.SUCCEEDED, "skipped"),
    (None, RunState.FAILED, "cancelled"),
], ids=["default", "skip", "fail"])  # fmt: skip
@pytest.mark.parametrize("wrong", ["no list", "too large"])
def test_on_failure_covers_a_map_that_has_no_list(
    stack: Stack, policy: Any, state: RunState, behind: str, wrong: str
) -> None:
    """Because `over` is none, or because the results are too large."""
    wf = Workflow("listless", register=False)
    source = wf.step("source", steps.returns, value={"no": "list"} if wrong == "no list" else list(range(40)))
    each = wf.map("each", steps.big, over=source, inputs={"size": 40}, on_failure=policy)
    wf.step("behind", steps.returns, value=each)
    settings = stack.with_settings(value_max_bytes=1024)
    stack._engine = Engine(settings, stack.engine.dispatcher.app)
    run = finish(stack, wf)
    assert stack.client.get(run).state is state
    assert {step.name: step.state for step in stack.client.steps(run)}["behind"] == behind
    if behind == "succeeded":
        assert stack.client.result(run, "behind") == [7]
        assert stack.client.result(run, "each") == [7]


def test_what_is_not_gathered_has_no_limit(stack: Stack) -> None:
    """The result is the number of results, however large they are together."""
    wf = Workflow("large", register=False)
    wf.map("each", steps.big, over=list(range(40)), inputs={"size": 40}, gather=False)
    stack._engine = Engine(stack.with_settings(value_max_bytes=1024), stack.engine.dispatcher.app)
    run = finish(stack, wf)
    assert stack.client.result(run) == {"each": 40}


def test_an_item_that_does_not_fit_the_template_leaves_nothing(stack: Stack) -> None:
    """All or nothing, also where the last of the items is wrong: rows are made while they are written."""
    wf = Workflow("unfit", register=False)
    source = wf.step("source", steps.returns, value=[{"n": 1}, {"n": 2}, {"m": 3}])
    wf.map("each", odd_only, over=source, n=wf.item["n"])
    run = finish(stack, wf)
    with pytest.raises(RunFailed, match=r"\.n does not exist: the value has 'm'"):
        stack.client.result(run)
    assert [step.name for step in stack.client.steps(run)] == ["source", "each", "each[]"]


def test_an_unknown_policy_is_refused(stack: Stack) -> None:
    """In Python and in files, by the same names."""
    wf = Workflow("refused", register=False)
    with pytest.raises(DefinitionError, match="on_item_failure"):
        wf.map("each", odd_only, over=[1], n=wf.item, on_item_failure="ignore")  # type: ignore[arg-type]
    text = "name: x\nsteps:\n  each:\n    action: odd_only\n    inputs: {n: '${item}'}\n    map: {over: [1], %s}\n"
    with pytest.raises(DefinitionError, match=r"<text>:6: step 'each': map\.on_item_failure"):
        files.loads(text % "on_item_failure: ignore")
    with pytest.raises(DefinitionError, match="did you mean 'gather'"):
        files.loads(text % "gathers: false")
    spec = files.loads(text % "on_item_failure: skip, gather: false")
    wf = Workflow("x", register=False)
    wf.map("each", odd_only, over=[1], n=wf.item, on_item_failure="skip", gather=False)
    assert spec.digest() == wf.digest()


def test_the_result_of_a_map_that_is_not_gathered_is_a_number_for_the_checks_too() -> None:
    """A step that wants a list is refused at once."""
    wf = Workflow("counted", register=False)
    each = wf.map("each", odd_only, over=[1], n=wf.item, gather=False)
    wf.step("sum", steps.total, values=each)
    with pytest.raises(DefinitionError, match="takes array, but .* is of type integer"):
        wf.validate()


def test_a_map_of_100_000_items_takes_no_more_memory_than_one_of_1_000(stack: Stack) -> None:
    """Rows are made while they are written and announced by ranges; what grows is the list itself and its text."""
    sent: list[Any] = []
    dispatcher = stack.engine.dispatcher
    dispatcher._send = lambda *_: sent.append(None)  # type: ignore[method-assign]
    peaks = {}
    for count in (1000, 100_000):
        wf = Workflow(f"wide-{count}", params={"items": list[int]}, register=False)
        wf.map("each", steps.noop, over=wf.params.items, gather=False)
        run = stack.client.start(wf, {"items": list(range(count))}).id
        sent.clear()
        tracemalloc.start()
        stack.engine.run_bundle("trellis.map", run, [0])
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert stack.rows("SELECT count(*) FROM step WHERE run_id = %s AND state = 'ready'", run) == [
            (count,)
        ]
        assert len(sent) == count
    assert peaks[100_000] - peaks[1000] < 12_000_000
