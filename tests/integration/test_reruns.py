"""A rerun computes what it must and reuses the rest: what is reused never runs again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import steps
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stack import Stack

from trellis.tasks.errors import DefinitionError, NotFound, ParameterError, StateError
from trellis.workflows import Default, Workflow
from trellis.workflows.states import RunState


def report(stack: Stack, file: Path | str = "/nonexistent") -> Workflow:
    """load(n) → each[…] → sum ─┐
    rate(r) ─────────────────────┴→ bill → last; `last` fails until a file is there."""
    wf = Workflow("report", params={"n": int, "r": int, "note": str}, register=False)
    load = wf.step("load", steps.counts, ledger=stack.ledger, n=wf.params.n)
    each = wf.map("each", steps.effect, over=load, ledger=stack.ledger, value=wf.item)
    total = wf.step("sum", steps.total, values=each)
    rate = wf.step("rate", steps.effect, ledger=stack.ledger, value=wf.params.r)
    bill = wf.step("bill", steps.effect, ledger=stack.ledger, value={"sum": total, "rate": rate})
    wf.step("last", steps.works_if, file=str(file), ledger=stack.ledger, value=bill)
    wf.step("noted", steps.effect, ledger=stack.ledger, value=wf.params.note, when="params.r > 5")
    return wf


PARAMS = {"n": 3, "r": 2, "note": "a"}


def ran(stack: Stack, run: str) -> set[str]:
    return {line[1] for line in stack.lines() if line[0] == run}


def test_without_a_step_what_did_not_succeed_is_computed(stack: Stack, tmp_path: Path) -> None:
    """The old run stays as it is; the new one has all results, also those that it did not compute."""
    file = tmp_path / "there"
    old = stack.client.start(report(stack, file), PARAMS).id
    stack.drain(old)
    before = stack.rows("SELECT * FROM step WHERE run_id = %s ORDER BY idx", old)
    file.touch()
    new = stack.client.rerun(old)
    assert (new.origin, new.origin_kind, new.definition) == (old, "rerun", stack.client.get(old).definition)
    stack.drain(new.id)
    assert ran(stack, new.id) == {"last"}
    assert stack.client.result(new, "bill") == {"sum": 3, "rate": 2}
    assert stack.client.result(new, "each") == [0, 1, 2]
    assert stack.client.result(new) == {"last": {"sum": 3, "rate": 2}}
    assert stack.client.get(old).state is RunState.FAILED
    assert stack.rows("SELECT * FROM step WHERE run_id = %s ORDER BY idx", old) == before
    assert [run.id for run in stack.client.linked(old, "rerun")] == [new.id]
    names = [step.name for step in stack.client.steps(new)]
    assert names == [
        row[0] for row in stack.rows("SELECT name FROM step WHERE run_id = %s ORDER BY idx", old)
    ]


@pytest.mark.parametrize(
    ("wanted", "again"),
    [
        ({"from_step": "rate"}, {"rate", "bill", "last"}),
        ({"from_step": "each"}, {"each[0]", "each[1]", "each[2]", "bill", "last"}),
        ({"from_step": "last"}, {"last"}),
        ({"params": {"r": 3}}, {"rate", "bill", "last"}),
        ({"params": {"r": 6}}, {"rate", "bill", "last", "noted"}),
        ({"params": {"note": "b"}, "from_step": "last"}, {"last"}),
        ({"params": {"n": 2}}, {"load", "each[0]", "each[1]", "bill", "last"}),
        ({"inputs": {"rate": {"value": 9}}}, {"rate", "bill", "last"}),
        ({"inputs": {"each": {"value": 5}}}, {"each[0]", "each[1]", "each[2]", "bill", "last"}),
        ({"inputs": {"sum": {"values": [40, 2]}}}, {"bill", "last"}),
    ],
    ids=range(10),
)
def test_what_a_change_reaches_is_computed_and_nothing_else(
    stack: Stack, tmp_path: Path, wanted: dict[str, Any], again: set[str]
) -> None:
    file = tmp_path / "there"
    file.touch()
    old = stack.client.start(report(stack, file), PARAMS).id
    stack.drain(old)
    new = stack.client.rerun(old, **wanted).id
    stack.drain(new)
    assert stack.client.get(new).state is RunState.SUCCEEDED
    assert ran(stack, new) == again
    fresh = {**PARAMS, **wanted.get("params", {})}
    assert stack.client.get(new).params == fresh
    changed = wanted.get("inputs", {})
    items = [5] * 3 if "each" in changed else list(range(fresh["n"]))
    total = 42 if "sum" in changed else sum(items)
    rate = 9 if "rate" in changed else fresh["r"]
    assert stack.client.result(new, "each") == items
    assert stack.client.result(new, "last") == {"sum": total, "rate": rate}
    assert stack.client.result(new, "noted") == ("a" if fresh["r"] > 5 else None)


def test_edits_outlive_a_rerun_of_the_rerun(stack: Stack) -> None:
    old = stack.client.start(report(stack), PARAMS).id
    stack.drain(old)
    once = stack.client.rerun(old, inputs={"rate": {"value": 9}}).id
    stack.drain(once)
    twice = stack.client.rerun(once, from_step="rate", inputs={"sum": {"values": [1]}}).id
    stack.drain(twice)
    assert stack.client.result(twice, "bill") == {"sum": 1, "rate": 9}
    assert ran(stack, twice) == {"rate", "bill", "last"}


def test_a_text_that_looks_like_a_reference_is_a_text(stack: Stack) -> None:
    old = stack.client.start(report(stack), PARAMS).id
    stack.drain(old)
    new = stack.client.rerun(old, inputs={"rate": {"value": "${steps.load}"}}).id
    stack.drain(new)
    assert stack.client.result(new, "bill")["rate"] == "${steps.load}"


def test_finished_steps_of_every_kind_are_reused(stack: Stack, tmp_path: Path) -> None:
    """Skipped ones, what they skipped, failures under a policy, and a map that failed in the midst."""
    file = tmp_path / "there"
    wf = Workflow("kinds", register=False)
    skipped = wf.step("skipped", steps.noop, when="1 > 2")
    wf.step("behind", steps.noop, after=[skipped])
    soft = wf.step("soft", steps.fails, on_failure=Default(7))
    wf.step("soft_skip", steps.fails, on_failure="skip")
    wf.map("each", steps.works_if, over=[1, 2, 3], file=str(file), ledger=stack.ledger, value=wf.item)
    wf.step("end", steps.effect, ledger=stack.ledger, value=soft, after=["each"])
    wf.step("blocked", steps.effect, ledger=stack.ledger, after=["each", "behind"])
    old = stack.client.start(wf).id
    stack.drain(old)
    file.touch()
    new = stack.client.rerun(old).id
    stack.drain(new)
    assert stack.client.get(new).state is RunState.SUCCEEDED
    assert ran(stack, new) == {"each[0]", "each[1]", "each[2]", "end"}
    assert stack.client.result(new, "end") == 7
    states = {step.name: step.state.value for step in stack.client.steps(new)}
    assert (states["skipped"], states["behind"], states["blocked"]) == ("skipped", "skipped", "skipped")
    assert (states["soft"], states["soft_skip"]) == ("failed", "failed")


def test_what_cannot_be_repeated_is_refused_before_anything_is_written(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "there"
    file.touch()
    old = stack.client.start(report(stack, file), PARAMS).id
    with pytest.raises(StateError, match=r"pending.*cancel it first"):
        stack.client.rerun(old)
    stack.drain(old)
    with pytest.raises(StateError, match="nothing of it would be computed again"):
        stack.client.rerun(old)
    with pytest.raises(NotFound, match=r"no step 'lst'.*did you mean 'last'"):
        stack.client.rerun(old, from_step="lst")
    with pytest.raises(NotFound, match="no step 'gone'"):
        stack.client.rerun(old, inputs={"gone": {}})
    with pytest.raises(ParameterError, match="'r'"):
        stack.client.rerun(old, params={"r": "many"})
    with pytest.raises(ParameterError, match="'q'"):
        stack.client.rerun(old, params={"q": 1})
    with pytest.raises(DefinitionError, match="step 'sum'.*'values'"):
        stack.client.rerun(old, inputs={"sum": {"values": "x"}})
    with pytest.raises(DefinitionError, match="step 'sum'.*'vals'"):
        stack.client.rerun(old, inputs={"sum": {"vals": []}})
    with pytest.raises(NotFound):
        stack.client.rerun("01a1f80c-cf3a-7686-8674-c566556c6650")
    assert len(stack.client.list()) == 1


def test_a_run_that_was_undone_computes_what_was_undone(stack: Stack) -> None:
    wf = Workflow("saga", register=False)
    first = wf.step("first", steps.effect, ledger=stack.ledger)
    second = wf.step("second", steps.effect, ledger=stack.ledger, after=[first])
    wf.step("kept", steps.effect, ledger=stack.ledger)
    wf.step("bad", steps.fails, after=[second, "kept"])
    wf.on_failure("undo", steps.noop, of=second)
    old = stack.client.start(wf).id
    stack.drain(old)
    [undo] = stack.client.linked(old, "compensation")
    stack.client.cancel(undo.id)
    with pytest.raises(StateError, match="retry it instead"):
        stack.client.rerun(undo)
    new = stack.client.rerun(old).id
    stack.drain(new)
    assert ran(stack, new) == {"second"}
    assert len(stack.client.linked(new, "compensation")) == 1  # what follows the end is kept as well


def test_a_rerun_reaches_workers_at_once(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "there"
    stack.worker()
    old = stack.client.start(report(stack, file), PARAMS).id
    assert stack.client.wait(old, 30).state is RunState.FAILED
    file.touch()
    new = stack.client.rerun(old)
    assert stack.client.wait(new, 30).state is RunState.SUCCEEDED
    assert ran(stack, new.id) == {"last"}


@st.composite
def dags(draw: st.DrawFn) -> tuple[list[tuple[list[int], str]], int]:
    size = draw(st.integers(1, 9))
    kinds = st.sampled_from(["add", "add", "map", "skip", "when"])
    found = [
        (sorted(draw(st.sets(st.integers(0, max(0, n - 1)), max_size=min(n, 3)))) if n else [], draw(kinds))
        for n in range(size)
    ]
    return found, draw(st.integers(0, size - 1))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dags())
def test_a_rerun_of_any_graph_ends_like_the_run(
    stack: Stack, drawn: tuple[list[tuple[list[int], str]], int]
) -> None:
    """From any step: the same states and results, and only that step and those behind it begin again."""
    dag, start = drawn
    wf = Workflow("random", register=False)
    refs: list[Any] = []
    for n, (parents, kind) in enumerate(dag):
        above = [refs[p] for p in parents]
        if kind == "map":
            refs.append(wf.map(f"s{n}", steps.add, over=[1, 2], a=wf.item, b=n, after=above))
        elif kind == "skip":
            refs.append(wf.step(f"s{n}", steps.fails, on_failure="skip", after=above))
        elif kind == "when":
            refs.append(wf.step(f"s{n}", steps.noop, when="1 > 2", after=above))
        else:
            refs.append(wf.step(f"s{n}", steps.add, a=n, after=above))
    old = stack.client.start(wf).id
    stack.drain(old)
    new = stack.client.rerun(old, from_step=f"s{start}").id
    behind = {start}
    for n, (parents, _) in enumerate(dag):
        if behind & set(parents):
            behind.add(n)
    fresh = {row[0].partition("[")[0] for row in stack.rows(
        "SELECT name FROM step WHERE run_id = %s AND state IN ('waiting', 'ready')", new)}  # fmt: skip
    assert fresh == {f"s{n}" for n in behind}
    stack.drain(new)
    assert stack.client.get(new).state is RunState.SUCCEEDED
    compare = "SELECT name, state, result FROM step WHERE run_id = %s ORDER BY name"
    assert stack.rows(compare, new) == stack.rows(compare, old)
    assert stack.client.result(new) == stack.client.result(old)
