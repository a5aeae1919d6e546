"""Native Celery canvases of a definition."""

from __future__ import annotations

import json
from typing import Any

import pytest
from catalogue import anything, known, nothing, workflow
from celery import Celery, group
from celery.canvas import Signature, _chain
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis.tasks.errors import DefinitionError, ParameterError
from trellis.workflows import canvas, graph
from trellis.workflows.contract import Contract
from trellis.workflows.definition import Workflow
from trellis.workflows.spec import Default


def _tell(**inputs: Any) -> Any:
    return {"got": inputs}


_tell.__name__ = "tell"
tell = known(_tell)
contract = Contract.of(_tell, "tell")


def perform(signature: Any, carry: Any = None) -> Any:
    """What Celery does with a canvas, in one process: the results of a group go on as a list."""
    if isinstance(signature, _chain):
        for task in signature.tasks:
            carry = perform(task, carry)
        return carry
    if isinstance(signature, group):
        return [perform(task, carry) for task in signature.tasks]
    assert isinstance(signature, Signature)
    step = json.loads(json.dumps(signature.kwargs))[canvas.STEP]
    called = canvas.run_canvas(lambda inputs: _tell(**inputs), contract, step, json.loads(json.dumps(carry)))
    seen.append((step["step"], called))
    return called


seen: list[tuple[str, Any]] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    seen.clear()


def shape(wf: Workflow) -> Any:
    return canvas.parts(graph.parents(wf.spec))


def test_a_chain() -> None:
    wf = workflow()
    a = wf.step("a", tell)
    b = wf.step("b", tell, x=a)
    wf.step("c", tell, x=b, y=a)

    assert shape(wf) == [[["a"]], [["b"]], [["c"]]]
    made = wf.canvas()
    assert isinstance(made, _chain)
    assert [task.task for task in made.tasks] == ["tell"] * 3
    assert perform(made) == {"c": {"got": {"x": {"got": {"x": {"got": {}}}}, "y": {"got": {}}}}}


def test_independent_steps_are_a_group() -> None:
    wf = workflow()
    for number in range(3):
        wf.step(f"s{number}", tell, n=number)

    made = wf.canvas()

    assert isinstance(made, group)
    assert perform(made) == [{f"s{n}": {"got": {"n": n}}} for n in range(3)]


def test_a_single_step_is_itself() -> None:
    wf = workflow(params={"p": int})
    wf.step("a", tell, p=wf.params.p)

    assert perform(wf.canvas(p=7)) == {"a": {"got": {"p": 7}}}


def test_a_fan_in_is_a_chord() -> None:
    wf = workflow()
    wf.step("sum", tell, parts=[wf.step(f"s{number}", nothing) for number in range(3)])

    assert shape(wf) == [[["s0"], ["s1"], ["s2"]], [["sum"]]]
    made = wf.canvas()
    assert isinstance(made, _chain)
    assert isinstance(made.tasks[0], group)


def test_branches_between_two_waists_run_on_their_own() -> None:
    wf = workflow()
    root = wf.step("root", tell)
    ends = [wf.step(f"b{n}", tell, x=wf.step(f"a{n}", tell, x=root)) for n in range(2)]
    wf.step("join", tell, ends=ends)

    assert shape(wf) == [[["root"]], [["a0", "b0"], ["a1", "b1"]], [["join"]]]


def test_any_other_shape_goes_level_by_level() -> None:
    wf = workflow()
    a, b = wf.step("a", tell), wf.step("b", tell)
    wf.step("c", tell, x=a)
    wf.step("d", tell, x=a, y=b)

    assert shape(wf) == [[["a"], ["b"]], [["c"], ["d"]]]


@st.composite
def dags(draw: st.DrawFn) -> tuple[Workflow, dict[str, list[str]], dict[str, list[str]]]:
    """A workflow, whose results each step uses, and for whom it only waits."""
    wf = workflow()
    uses: dict[str, list[str]] = {}
    waits: dict[str, list[str]] = {}
    refs: dict[str, Any] = {}
    for number in range(draw(st.integers(1, 10))):
        name = f"s{number}"
        earlier = sorted(refs)
        uses[name] = draw(st.lists(st.sampled_from(earlier), max_size=3, unique=True)) if earlier else []
        waits[name] = draw(st.lists(st.sampled_from(earlier), max_size=2, unique=True)) if earlier else []
        refs[name] = wf.step(name, tell, after=waits[name], inputs={each: refs[each] for each in uses[name]})
    return wf, uses, waits


@settings(deadline=None)
@given(dags())
def test_every_shape_gives_the_results_of_a_naive_evaluation(
    dag: tuple[Workflow, dict[str, list[str]], dict[str, list[str]]],
) -> None:
    wf, uses, waits = dag
    expected: dict[str, Any] = {}
    for name, sources in uses.items():
        expected[name] = {"got": {source: expected[source] for source in sources}}
    seen.clear()

    final = perform(wf.canvas())

    order = [name for name, _ in seen]
    assert sorted(order) == sorted(uses)  # each once
    for name in order:
        assert all(order.index(before) < order.index(name) for before in (*uses[name], *waits[name]))
    told: dict[str, Any] = {}
    for _, carry in seen:
        told.update(carry)
    assert all(told[name] == expected[name] for name in told)
    merged = canvas._merged(final)
    assert merged
    assert all(merged[name] == expected[name] for name in merged)


@settings(deadline=None)
@given(dags())
def test_messages_carry_only_what_is_needed(
    dag: tuple[Workflow, dict[str, list[str]], dict[str, list[str]]],
) -> None:
    """Each result leaves a part once, and not after its last use."""
    wf, uses, _ = dag
    layout = shape(wf)
    part = {name: number for number, branches in enumerate(layout) for branch in branches for name in branch}
    seen.clear()
    perform(wf.canvas())
    carried = dict(seen)

    for number, branches in enumerate(layout[:-1]):
        leaving = [name for branch in branches for name in carried[branch[-1]]]
        assert len(leaving) == len(set(leaving))
        for name in leaving:
            assert any(name in uses[later] and part[later] > number for later in uses)


def test_options_become_celery_options() -> None:
    wf = workflow()
    wf.step("a", tell, queue="q", priority=9, timeout=30, retry=4)
    options = wf.canvas().options
    step = wf.canvas().kwargs[canvas.STEP]

    assert options == {"ignore_result": False, "queue": "q", "priority": 0, "soft_time_limit": 30.0}
    assert step == {"step": "a", "own": True, "retry": {"attempts": 4}}


@pytest.mark.parametrize("option", ["map", "loop", "when", "join", "on_failure"])
def test_what_needs_the_engine_is_refused(option: str) -> None:
    wf = workflow()
    if option == "map":
        wf.map("x", anything, over=[1], k=wf.item)
    elif option == "loop":
        wf.loop("x", anything, until="result == 1", limit=3)
    else:
        value = {"when": "1 == 1", "join": "any", "on_failure": Default(1)}[option]
        wf.step("x", nothing, after=wf.step("w", nothing), **{option: value})

    with pytest.raises(DefinitionError, match=f"step 'x': {option} needs the engine.*Client.start"):
        wf.canvas()


def test_wrong_parameters_are_refused() -> None:
    wf = workflow(params={"p": int})
    wf.step("a", nothing)

    with pytest.raises(ParameterError, match="parameter 'p': is missing"):
        wf.canvas()


def test_results_that_are_not_json_are_refused() -> None:
    with pytest.raises(Exception, match="nan"):
        canvas.run_canvas(lambda inputs: float("nan"), contract, {"step": "a"}, None)


def test_celery_itself_runs_it() -> None:
    """A nest of groups and chords by Celery's own eager mode."""
    app = Celery("eager", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.task_always_eager = True
    app.conf.task_eager_propagates = True

    @app.task(name="tell")
    def task(*carry: Any, **kwargs: Any) -> Any:
        return canvas.run_canvas(lambda inputs: _tell(**inputs), contract, kwargs[canvas.STEP], *carry)

    wf = workflow()
    root = wf.step("root", tell)
    ends = [wf.step(f"b{n}", tell, x=wf.step(f"a{n}", tell, x=root)) for n in range(2)]
    wf.step("join", tell, ends=ends, root=root)
    made = wf.canvas()
    for each in (made, *made.tasks):
        each._app = app

    found = made.apply_async().get()

    branch = {"got": {"x": {"got": {"x": {"got": {}}}}}}
    assert found == {"join": {"got": {"ends": [branch, branch], "root": {"got": {}}}}}
    assert task.name == "tell"
