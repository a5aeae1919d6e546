"""Plans: rows that run to the result of a naive evaluation."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from catalogue import actions, anything, known, load, nothing, workflow
from counting import work
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis.tasks.errors import DefinitionError, InputError, ParameterError
from trellis.tasks.retry import Retry
from trellis.workflows.definition import Workflow
from trellis.workflows.plan import EXPAND, GATHER, PlannedStep, bind, plan
from trellis.workflows.references import text_of
from trellis.workflows.spec import Default


def rows_of(wf: Workflow, **params: Any) -> dict[str, PlannedStep]:
    return {row.name: row for row in plan(wf.spec, wf.check_params(params), actions, "celery").steps}


def body(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A body whose result tells exactly what it was given."""
    return {"got": json.loads(json.dumps(inputs, sort_keys=True)), "list": [len(inputs), "x"]}


def run(rows: list[PlannedStep]) -> dict[str, Any]:
    """What an engine does with rows, in the plainest way."""
    missing = {row.idx: row.missing for row in rows}
    by_idx = {row.idx: row for row in rows}
    results: dict[int | str, Any] = {}
    ready = [row.idx for row in rows if row.missing == 0]
    while ready:
        row = by_idx[ready.pop(random.randrange(len(ready)))]
        bound = bind(row.inputs, row.bindings, {idx: results[idx] for idx in row.refs})
        if row.action == EXPAND:
            mapped = (row.options or {})["map"]
            given = {idx: results[idx] for idx in row.refs}
            results[row.idx] = [
                body(bind(mapped["inputs"], mapped["bindings"], {**given, "item": item, "index": index}))
                for index, item in enumerate(bound["over"])
            ]
        elif row.action == GATHER:
            results[row.idx] = results[row.idx - 1]
        else:
            results[row.idx] = body(bound)
        for child in row.dependents:
            missing[child] -= 1
            if missing[child] == 0:
                ready.append(child)
    assert len(results) == len(rows)
    return {row.name.removesuffix("[]"): results[row.idx] for row in rows if row.action != EXPAND}


# --- random workflows, each written twice: by the API, and as plain functions of the results

Written = tuple[
    Any, Callable[..., Any]
]  # what the API is given, and (params, results, item, index) -> its value


@st.composite
def written_values(
    draw: st.DrawFn, wf: Workflow, steps: dict[str, Any], mapped: bool, depth: int = 2
) -> Written:
    kinds = ["literal", "param", "text"] + ["step"] * bool(steps) + ["item", "index"] * mapped
    kind = draw(st.sampled_from(kinds + ["list", "dict"] * bool(depth)))
    if kind == "literal":
        value = draw(st.none() | st.integers() | st.text("a$ {}x.[]", max_size=6))
        return value, lambda *_: value
    if kind == "param":
        return wf.params.p["k"][0], lambda params, *_: params["p"]["k"][0]
    if kind == "item":
        return wf.item, lambda params, results, item, index: item
    if kind == "index":
        return wf.index, lambda params, results, item, index: index
    if kind == "step":
        name = draw(st.sampled_from(sorted(steps)))
        path = draw(st.sampled_from([(), ("got",), ("list", -1)])) if name.startswith("s") else ()
        return _deeper(steps[name], path), lambda params, results, *_: _deeper(results[name], path)
    if kind == "text":
        head = draw(st.text("a$ {}", max_size=4))
        if not steps:
            return f"{head}{wf.params.p}!", lambda params, *_: f"{head}{text_of(params['p'])}!"
        name = draw(st.sampled_from(sorted(steps)))
        return f"{head}{steps[name]}!", lambda params, results, *_: f"{head}{text_of(results[name])}!"
    inner = draw(st.lists(written_values(wf, steps, mapped, depth - 1), min_size=1, max_size=3))
    if kind == "list":
        return [each for each, _ in inner], lambda *known: [value(*known) for _, value in inner]
    keyed = {f"k{number}": each for number, each in enumerate(inner)}
    return (
        {key: each for key, (each, _) in keyed.items()},
        lambda *known: {key: value(*known) for key, (_, value) in keyed.items()},
    )


def _deeper(value: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        value = value[part]
    return value


@st.composite
def workflows(draw: st.DrawFn) -> tuple[Workflow, Callable[[dict[str, Any]], dict[str, Any]]]:
    """A workflow, and a function from params to the results of its steps."""
    wf = workflow(params={"p": dict[str, Any]})
    steps: dict[str, Any] = {}
    recipes: dict[str, tuple[str | None, dict[str, Written]]] = {}
    for number in range(draw(st.integers(1, 7))):
        source = draw(st.none() | st.sampled_from(sorted(steps))) if steps else None  # of a map
        inputs = {
            f"in{i}": draw(written_values(wf, steps, source is not None))
            for i in range(draw(st.integers(0, 3)))
        }
        given = {key: value for key, (value, _) in inputs.items()}
        after = draw(st.lists(st.sampled_from(sorted(steps)), max_size=2)) if steps else []
        if source is None:
            name = f"s{number}"
            steps[name] = wf.step(name, anything, after=after, inputs=given)
        else:
            name = f"m{number}"
            over = _deeper(steps[source], _list_in(source))
            steps[name] = wf.map(name, anything, over=over, after=after, inputs=given)
        recipes[name] = (source, inputs)

    def evaluate(params: dict[str, Any]) -> dict[str, Any]:
        results: dict[str, Any] = {}
        for name, (source, inputs) in recipes.items():
            if source is None:
                results[name] = body(
                    {key: value(params, results, None, None) for key, (_, value) in inputs.items()}
                )
                continue
            results[name] = [
                body({key: value(params, results, item, index) for key, (_, value) in inputs.items()})
                for index, item in enumerate(_deeper(results[source], _list_in(source)))
            ]
        return results

    return wf, evaluate


def _list_in(source: str) -> tuple[Any, ...]:
    return ("list",) if source.startswith("s") else ()


PARAMS = {"p": {"k": [{"deep": 1}, "${steps.s0}"]}}


@settings(deadline=None)
@given(workflows())
def test_a_plan_runs_to_what_a_naive_evaluation_gives(pair: tuple[Workflow, Any]) -> None:
    wf, evaluate = pair

    found = run(plan(wf.spec, wf.check_params(PARAMS), actions, "celery").steps)

    assert found == evaluate(PARAMS)


@settings(deadline=None)
@given(workflows())
def test_rows_are_topological_and_count_their_parents(pair: tuple[Workflow, Any]) -> None:
    wf, _ = pair
    found = plan(wf.spec, wf.check_params(PARAMS), actions, "celery")

    parents: dict[int, set[int]] = {row.idx: set() for row in found.steps}
    for row in found.steps:
        assert list(row.dependents) == sorted(set(row.dependents))
        for child in row.dependents:
            assert child > row.idx
            parents[child].add(row.idx)
    assert [row.idx for row in found.steps] == list(range(len(found.steps)))
    for row in found.steps:
        assert row.missing == len(parents[row.idx])
        assert set(row.refs) <= parents[row.idx]
    assert found.sinks == sum(not row.dependents for row in found.steps)


@settings(deadline=None)
@given(workflows())
def test_rows_are_json(pair: tuple[Workflow, Any]) -> None:
    wf, _ = pair
    for row in plan(wf.spec, wf.check_params(PARAMS), actions, "celery").steps:
        for part in (row.inputs, row.bindings, row.options):
            assert json.loads(json.dumps(part)) == part


def test_parameters_are_in_their_places_and_literals_as_they_are_meant() -> None:
    wf = workflow(params={"url": str, "deep": dict[str, Any]})
    wf.step("a", anything, url=wf.params.url, text=f"<{wf.params.url}>", both=["${x}", wf.params.deep["k"]])

    row = rows_of(wf, url="u", deep={"k": [1]})["a"]

    assert row.inputs == {"url": "u", "text": "<u>", "both": ["${x}", [1]]}
    assert row.bindings is None


def test_a_path_that_a_parameter_does_not_have_is_told() -> None:
    wf = workflow(params={"deep": dict[str, Any]})
    wf.step("a", anything, x=wf.params.deep["k"])

    with pytest.raises(ParameterError, match=r"parameter 'deep': \.k does not exist: the value has 'j'"):
        rows_of(wf, deep={"j": 1})


def test_queue_and_priority_come_from_the_step_the_action_or_the_default() -> None:
    slow = known(_slow, queue="slow", priority=2)
    wf = workflow()
    wf.step("a", nothing)
    wf.step("b", slow)
    wf.step("c", slow, queue="mine", priority=9)

    rows = rows_of(wf)

    assert [(rows[name].queue, rows[name].priority) for name in "abc"] == [
        ("celery", 5),
        ("slow", 2),
        ("mine", 9),
    ]


def _slow() -> None: ...
def _stubborn() -> None: ...


def test_options_hold_what_differs_from_the_plain_default() -> None:
    stubborn = known(_stubborn, retry=Retry(5), timeout=9.0)
    wf = workflow()
    wf.step("plain", nothing)
    wf.step("said", nothing, retry=Retry(3, base=2), timeout=60, on_failure=Default(None))
    wf.step("of_action", stubborn, on_failure="skip")
    wf.step("back_to_plain", stubborn, retry=1, on_failure="fail")

    rows = rows_of(wf)

    assert rows["plain"].options is None
    assert rows["said"].options == {
        "retry": {"attempts": 3, "base": 2.0},
        "timeout": 60.0,
        "on_failure": {"default": None},
    }
    assert rows["of_action"].options == {"retry": {"attempts": 5}, "timeout": 9.0, "on_failure": "skip"}
    assert rows["back_to_plain"].options == {"timeout": 9.0}


def test_a_condition_names_the_rows_it_needs() -> None:
    wf = workflow(params={"n": int})
    raw = wf.step("raw", load, url="u")
    many = wf.map("many", anything, over=raw["months"], x=wf.item)
    wf.step("end", nothing, when="steps.raw.rows > params.n and steps.many != null")

    rows = rows_of(wf, n=1)

    assert many.name == "many"
    assert rows["end"].options == {
        "when": "steps.raw.rows > params.n and steps.many != null",
        "when_refs": {"many": rows["many[]"].idx, "raw": rows["raw"].idx},
    }
    assert rows["end"].refs == (rows["raw"].idx, rows["many[]"].idx)


def test_a_map_is_two_rows() -> None:
    wf = workflow()
    raw = wf.step("raw", load, url="u")
    other = wf.step("other", load, url="u")
    text = f"{wf.item}-{raw['rows']}"
    wf.map("m", anything, over=raw["months"], concurrency=3, retry=2, timeout=5, when="steps.raw.rows > 0",
           month=wf.item, first=other["months"][0], place=wf.index, text=text)  # fmt: skip
    wf.step("end", nothing, after="m")

    rows = rows_of(wf)
    expand, gather = rows["m"], rows["m[]"]

    assert (expand.action, expand.missing, expand.dependents) == (EXPAND, 2, (gather.idx,))
    assert (gather.action, gather.missing, gather.dependents) == (GATHER, 1, (rows["end"].idx,))
    assert expand.inputs == {"over": None}
    assert expand.bindings == [[["over"], rows["raw"].idx, ["months"]]]
    assert expand.refs == (rows["raw"].idx, rows["other"].idx)
    assert expand.options is not None
    assert expand.options["when"] == "steps.raw.rows > 0"
    assert expand.options["map"] == {
        "action": "anything",
        "queue": "celery",
        "priority": 5,
        "inputs": {"month": None, "first": None, "place": None, "text": None},
        "bindings": [
            [["month"], "item", []],
            [["first"], rows["other"].idx, ["months", 0]],
            [["place"], "index", []],
            [["text"], "text", [["item", []], "-", [rows["raw"].idx, ["rows"]]]],
        ],
        "concurrency": 3,
        "retry": {"attempts": 2},
        "timeout": 5.0,
        "on_failure": None,
    }


def test_binding_leaves_the_template_alone() -> None:
    template = {"a": [None, {"b": None}], "c": 1}
    bindings = [[["a", 0], 0, []], [["a", 1, "b"], 0, ["x"]]]

    assert bind(template, bindings, {0: {"x": 5}}) == {"a": [{"x": 5}, {"b": 5}], "c": 1}
    assert template == {"a": [None, {"b": None}], "c": 1}


@pytest.mark.parametrize(
    ("bindings", "place", "message"),
    [
        ([[["a"], 3, ["x", 0]]], "a", r"in the result of step 'raw', \.x does not exist: the value has 'y'"),
        ([[["a"], "text", ["t", [3, ["y", 7]]]]], "a", r"step 'raw', \.y\[7\] does not exist.*list of 1"),
        ([[["b", 0], "item", ["k"]]], "b[0]", "result of the map's item"),
        ([[["a"], 4, []]], "a", "the result of step 4 is not there"),
    ],
)
def test_a_result_without_the_path_names_input_step_and_path(bindings: Any, place: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        bind({"a": None, "b": [None]}, bindings, {3: {"y": [1]}, "item": 1}, action="act", names={3: "raw"})

    assert caught.value.action == "act"
    assert list(caught.value.problems) == [place]


def test_an_action_that_is_not_here_is_refused() -> None:
    wf = workflow()
    wf.step("a", known(_fleeting))
    spec = wf.spec
    actions.discard("_fleeting")

    with pytest.raises(
        DefinitionError, match=r"step 'a': there is no action '_fleeting' in this process: import"
    ):
        plan(spec, {}, actions, "celery")


def _fleeting() -> None: ...


def gathering(size: int) -> tuple[Any, dict[int | str, Any]]:
    wf = workflow()
    parts = [wf.step(f"s{i}", nothing) for i in range(size)]
    wf.step("sum", anything, values=parts)
    row = rows_of(wf)["sum"]
    return row, {idx: idx for idx in row.refs}


def test_many_references_into_one_list_cost_no_square() -> None:
    """Twice the references, twice the work."""
    (small, few), (large, many) = gathering(1000), gathering(2000)
    assert bind(large.inputs, large.bindings, many) == {"values": list(range(2000))}
    once = work(lambda: bind(small.inputs, small.bindings, few))
    assert work(lambda: bind(large.inputs, large.bindings, many)) < 2.2 * once


def written(shape: str, size: int) -> Workflow:
    wf = workflow()
    before: Any = 0
    for number in range(size):
        step = wf.step(f"s{number}", anything, value=before)
        before = step if shape == "chain" else number
    return wf


@pytest.mark.parametrize("shape", ["wide", "chain"])
def test_writing_checking_and_planning_cost_the_same_per_step(shape: str) -> None:
    """Twice the steps, twice the work."""

    def all_of_it(size: int) -> None:
        plan(written(shape, size).spec, {}, actions, "celery")

    all_of_it(10)  # caches
    assert work(lambda: all_of_it(4000)) < 2.2 * work(lambda: all_of_it(2000))


@pytest.mark.parametrize("shape", ["wide", "chain"])
def test_a_hundred_thousand_steps(shape: str) -> None:
    """No recursion over steps, however long the chain."""
    planned = plan(written(shape, 100_000).spec, {}, actions, "celery")
    assert len(planned.steps) == 100_000
    assert planned.sinks == (1 if shape == "chain" else 100_000)
