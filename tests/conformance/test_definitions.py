"""What a definition says is what happens, on the engine and in-process alike."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
import steps
from sides import Side

from trellis.tasks.errors import RunFailed
from trellis.workflows import Default, RunState, Workflow


def test_a_chain_hands_its_results_on(side: Side, wf: Workflow) -> None:
    """Each step gets what the one before it returned."""
    last: Any = wf.step("s0", steps.add, a=1)
    for number in range(1, 6):
        last = wf.step(f"s{number}", steps.add, a=last)
    run = side.finish(wf)
    assert (run.state, run.steps, side.client.result(run)) == (RunState.SUCCEEDED, 6, {"s5": 7})


def test_a_fan_in_waits_for_all(side: Side, wf: Workflow) -> None:
    """However many steps there are in front, and whatever else hangs on them."""
    front = [wf.step(f"s{number}", steps.add, a=number) for number in range(12)]
    wf.step("sum", steps.total, values=front)
    wf.step("some", steps.total, values=front[:3], after=[front[11]])
    assert side.client.result(side.finish(wf)) == {"sum": 78, "some": 6}


def test_references_reach_into_results(side: Side, wf: Workflow) -> None:
    """In lists, mappings and texts."""
    value = wf.step("value", steps.returns, value={"rows": [{"n": 1, "": 0}, {"n": 2}], "name": "x"})
    nested = {"all": [value, {"last": value["rows"][1]["n"]}], "literal": "${x}"}
    wf.step("nested", steps.returns, value=nested)
    wf.step("text", steps.returns, value=f"{value['name']} has {value['rows'][0]}: {value['rows']}")
    run = side.finish(wf)
    assert side.client.result(run, "nested") == {
        "all": [{"rows": [{"n": 1, "": 0}, {"n": 2}], "name": "x"}, {"last": 2}], "literal": "${x}",
    }  # fmt: skip
    assert side.client.result(run, "text") == 'x has {"": 0, "n": 1}: [{"": 0, "n": 1}, {"n": 2}]'


@pytest.mark.parametrize(
    "value",
    [0, -0.0, 1.0, 1e3, 1.5e3, 1e16, 1e22, 1e-9, 0.1, 2**70, 1.7976931348623157e308, True, None, "", "ä\u2028\\\n\t",
     {"b": 1, "aa": 2, "a": {"ß": [], "c": {}}}, [[], {}, [None]]],
    ids=repr,
)  # fmt: skip
def test_values_come_back_as_the_journal_keeps_them(side: Side, wf: Workflow, value: Any) -> None:
    """Numbers, key orders and texts: what the next step sees, and the type that it has there."""
    first = wf.step("first", steps.parses, text=json.dumps(value))
    wf.step("seen", steps.returns, value=f"={first}")
    wf.step("kind", steps.kind, value=first)
    run = side.finish(wf)
    found = (
        side.client.result(run, "first"),
        side.client.result(run, "seen"),
        side.client.result(run, "kind"),
    )
    assert found == EXPECTED.setdefault(repr(value), found)


EXPECTED: dict[str, Any] = {}  # what the engine, which comes first, made of it


def test_a_map_runs_once_an_item_in_order(side: Side, wf: Workflow) -> None:
    """The list is known only at run time; results stand in the order of the items."""
    numbers = wf.step("numbers", steps.numbers, n=5)
    plus = wf.map("plus", steps.add, over=numbers, concurrency=2, a=wf.item, b=wf.index)
    wf.step("sum", steps.total, values=plus)
    run = side.finish(wf)
    assert side.client.result(run, "plus") == [0, 2, 4, 6, 8]
    assert side.client.result(run, "plus[3]") == 6
    assert side.client.result(run) == {"sum": 20}
    assert side.client.progress(run).total == 7


def test_a_limit_on_a_map_is_an_order_of_its_items(side: Side, wf: Workflow) -> None:
    """With one at a time each begins after the one before it is over."""
    wf.map("one", steps.effect, over=list(range(6)), concurrency=1, ledger=side.ledger, value=wf.item)
    run = side.finish(wf)
    items = [step for step in side.client.steps(run) if step.action == "effect"]
    assert all(a.finished_at <= b.started_at for a, b in pairwise(items))  # type: ignore[operator]
    assert side.effects() == {f"one[{number}]": 1 for number in range(6)}


def test_a_map_over_nothing_gives_an_empty_list(side: Side, wf: Workflow) -> None:
    """No items, no waiting."""
    none = wf.step("none", steps.numbers, n=0)
    wf.step("sum", steps.total, values=wf.map("plus", steps.add, over=none, a=wf.item))
    run = side.finish(wf)
    assert (side.client.result(run, "plus"), side.client.result(run, "sum")) == ([], 0)


def test_items_of_a_map_may_be_of_any_shape(side: Side, wf: Workflow) -> None:
    """Fields of an item, its place, other steps' results and texts of all three."""
    other = wf.step("other", steps.returns, value={"k": "v"})
    value = [wf.item["n"], wf.index, other["k"], f"{wf.index}/{wf.item['n']}/{other['k']}"]
    wf.map("shapes", steps.returns, over=[{"n": 1}, {"n": None}], value=value)
    run = side.finish(wf)
    assert side.client.result(run, "shapes") == [[1, 0, "v", "0/1/v"], [None, 1, "v", "1/null/v"]]


def test_a_map_over_what_is_no_list_fails(side: Side, wf: Workflow) -> None:
    """The message names what it is instead."""
    wf.map("no", steps.returns, over=wf.step("text", steps.returns, value={"a": 1}), value=wf.item)
    with pytest.raises(RunFailed, match="a map goes over a list, this is dict"):
        side.client.result(side.finish(wf))


def test_a_false_condition_skips_the_step_and_all_behind_it(side: Side) -> None:
    """What needs a skipped step is skipped; the rest goes on, and the run succeeds."""
    wf = Workflow("conditions", params={"n": int}, register=False)
    n = wf.step("n", steps.add, a=wf.params.n, b=0)
    yes = wf.step("yes", steps.add, a=n, when="params.n > 2 and steps.n > 2")
    no = wf.step("no", steps.add, a=n, when="steps.n <= 2")
    wf.step("behind", steps.add, a=no)
    wf.step("beside", steps.add, a=yes)
    wf.step("both", steps.total, values=[yes, no])
    wf.map("never", steps.add, over=[1, 2], a=wf.item, after=[no])
    run = side.finish(wf, {"n": 3})
    assert side.states(run) == {
        "n": "succeeded", "yes": "succeeded", "no": "skipped", "behind": "skipped", "beside": "succeeded",
        "both": "skipped", "never": "skipped", "never[]": "skipped",
    }  # fmt: skip
    assert run.state is RunState.SUCCEEDED
    assert side.client.result(run) == {"beside": 5}
    assert side.client.result(run, "no") is None


def test_a_failure_fails_the_run_and_cancels_the_rest(side: Side, wf: Workflow) -> None:
    """The default: the first step without another attempt ends the run, and says why."""
    bad = wf.step("bad", steps.fails, message="no money")
    wf.step("after", steps.noop, after=[bad])
    wf.step("never", steps.noop, after="after")
    run = side.finish(wf)
    assert side.states(run) == {"bad": "failed", "after": "cancelled", "never": "cancelled"}
    with pytest.raises(RunFailed, match="step 'bad': RuntimeError: no money") as caught:
        side.client.result(run)
    trace = str(caught.value.error["traceback"])
    assert "raise RuntimeError(message)" in trace
    assert "workflows/execution.py" not in trace


def test_on_failure_skip_and_default_let_the_run_go_on(side: Side, wf: Workflow) -> None:
    """`skip` skips what depends on the step, a default takes the place of its result."""
    lost = wf.step("lost", steps.fails, on_failure="skip")
    wf.step("behind", steps.noop, after=[lost])
    zero = wf.step("zero", steps.fails, on_failure=Default(40))
    wf.step("null", steps.fails, on_failure=Default(None))
    wf.step("sum", steps.add, a=zero, b=2)
    run = side.finish(wf)
    assert side.states(run) == {
        "lost": "failed", "behind": "skipped", "zero": "failed", "null": "failed", "sum": "succeeded",
    }  # fmt: skip
    assert run.state is RunState.SUCCEEDED
    assert (side.client.result(run, "sum"), side.client.result(run, "null")) == (42, None)
    assert side.client.result(run) == {"null": None, "sum": 42}
    with pytest.raises(RunFailed, match="RuntimeError: no"):
        side.client.result(run, "lost")


def test_a_failing_item_follows_the_policy_of_its_map(side: Side, wf: Workflow) -> None:
    """A default for one item stands in the list; without one the run fails with the item's name."""
    wf.map("some", steps.fails_on, over=[1, 2, 3], value=wf.item, bad=2, on_failure=Default("lost"))
    run = side.finish(wf)
    assert side.client.result(run, "some") == [1, "lost", 3]
    wf.map("hard", steps.fails_on, over=[1, 2], value=wf.item, bad=2)
    with pytest.raises(RunFailed, match=r"step 'hard\[1\]': ValueError: 2"):
        side.client.result(side.finish(wf))


def test_bodies_may_be_coroutines(side: Side, wf: Workflow) -> None:
    """`async def` is an action like any other."""
    wf.step("sum", steps.async_add, a=1, b=2)
    assert side.client.result(side.finish(wf), "sum") == 3


def test_artifacts_pass_by_reference(side: Side, wf: Workflow) -> None:
    """One step writes a file, another reads it; the journal holds the address."""
    file = wf.step("write", steps.writes, text="hello\n" * 3)
    wf.step("read", steps.reads, file=file)
    run = side.finish(wf)
    assert side.client.result(run, "read") == "hello\n" * 3
    assert side.client.result(run, "write")["uri"].endswith(f"{run.id}/write/1/parts/text.txt")


def test_the_context_tells_the_step(side: Side, wf: Workflow) -> None:
    """Run, step, attempt and the key for effects."""
    wf.step("here", steps.where)
    run = side.finish(wf, correlation_id="order-7")
    assert side.client.result(run, "here") == {
        "run_id": run.id, "step": "here", "attempt": 1, "key": f"{run.id}/here", "correlation_id": "order-7",
    }  # fmt: skip
