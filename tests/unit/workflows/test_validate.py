"""Everything that is refused when a workflow is defined, with the step and the fix."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from catalogue import actions, anything, check, delay, known, load, nothing, workflow
from pydantic import BaseModel

from trellis.tasks.errors import CycleError, DefinitionError
from trellis.workflows.definition import Param, Workflow
from trellis.workflows.references import StepRef
from trellis.workflows.spec import StepSpec, WorkflowSpec
from trellis.workflows.validate import validate


class Inner(BaseModel):
    id: int


class Outer(BaseModel):
    inner: Inner
    rows: list[Inner]
    either: Inner | str | None = None


def _outer() -> Outer: ...
def _option(timeout: int) -> None: ...
def _lists(values: list[int], table: dict[str, int]) -> None: ...
def _number(value: float) -> None: ...
def _maybe(value: int | None) -> int | None: ...


outer, option, lists, number, maybe = map(known, (_outer, _option, _lists, _number, _maybe))

Write = Callable[[Workflow, StepRef], Any]

REFUSED: list[tuple[Write, str]] = [
    # actions
    (
        lambda w, r: w.step("x", "chekc", rows=1),
        r"no action 'chekc' .*import the module.*TRELLIS_IMPORTS.*did you mean 'check'\?",
    ),
    # dependencies
    (
        lambda w, r: w.step("x", nothing, after="rwa"),
        r"`after` names a step 'rwa' that does not exist; did you mean 'raw'\?",
    ),
    (
        lambda w, r: w.step("x", check, rows=1, after=["raw", "zzz"]),
        r"'zzz' that does not exist; there are: 'raw', 'x'",
    ),
    # inputs
    (lambda w, r: w.step("x", check), r"input 'rows' of action 'check' is missing"),
    (
        lambda w, r: w.step("x", check, inputs={"row": 1}),
        r"input 'rows' of action 'check' is missing; did you mean 'row'\?",
    ),
    (
        lambda w, r: w.step("x", check, inputs={"rows": 1, "colour": 2}),
        r"'colour' is neither an input of action 'check' nor an option",
    ),
    (
        lambda w, r: w.step("x", option, timeout=5),
        r"'timeout' of action '_option' is missing; .*inputs=\{'timeout': …\}",
    ),
    (
        lambda w, r: w.step("x", check, rows="abc"),
        r"input 'rows' of action 'check': input should be a valid integer",
    ),
    (
        lambda w, r: w.step("x", check, rows="${x}"),
        r"input 'rows' of action 'check': input should be a valid integer",
    ),
    (
        lambda w, r: w.step("x", delay, month=r["rows"], i="abc"),
        r"input 'i' of action 'delay': input should be a valid integer",
    ),
    (
        lambda w, r: w.step("x", check, rows=r["months"]),
        r"'rows' of action 'check' takes integer, but \$\{steps.raw.months\} is of type array",
    ),
    (
        lambda w, r: w.step("x", check, rows=w.params.url),
        r"takes integer, but \$\{params.url\} is of type string",
    ),
    (
        lambda w, r: w.step("x", check, rows=f"{r['rows']}0"),
        r"takes integer, but a text with references is of type string",
    ),
    (
        lambda w, r: w.step("x", check, rows=[r["rows"]]),
        r"takes integer, but it is given a value of type array",
    ),
    (
        lambda w, r: w.step("x", lists, values={"a": r}, table={}),
        r"'values' of action '_lists' takes array, but .* type object",
    ),
    # references
    (
        lambda w, r: w.step("x", check, rows=r["rosw"]),
        r"'rows' refers to \$\{steps.raw.rosw\}, but there is no .rosw; did you mean 'rows'\?",
    ),
    (
        lambda w, r: w.step("x", anything, k=[{"deep": r["rosw"]}]),
        r"input 'k' at \[0\].deep refers to .*did you mean 'rows'",
    ),
    (
        lambda w, r: w.step("x", anything, k=r["rows"]["x"]),
        r"there is no .rows.x; the value is of type integer and has nothing inside",
    ),
    (
        lambda w, r: w.step("x", anything, k=r["months"]["jan"]),
        r"the value is a list, which is entered by a number",
    ),
    (
        lambda w, r: w.step("x", anything, k=r[0]),
        r"the value is an object, which is entered by the name of a field",
    ),
    (lambda w, r: w.step("x", anything, k=w.params.url["x"]), r"there is no .x; the value is of type string"),
    # conditions
    (
        lambda w, r: w.step("x", nothing, when="steps.raw.rosw > 1"),
        r"uses steps.raw, but there is no .rosw; did you mean 'rows'\?",
    ),
    (
        lambda w, r: w.step("x", nothing, when="steps.rwa.rows > 1"),
        r"uses a step 'rwa' that does not exist; did you mean 'raw'\?",
    ),
    (
        lambda w, r: w.step("x", nothing, when="params.ulr == 1"),
        r"uses a parameter 'ulr' that does not exist; did you mean 'url'\?",
    ),
    (lambda w, r: w.step("x", nothing, when="steps.raw.rows >"), r"a syntax error at its end"),
    # maps
    (
        lambda w, r: w.map("x", delay, over=r["rows"], month=w.item),
        r"the map goes over a list, but '\$\{steps.raw.rows\}' is of type integer",
    ),
    (
        lambda w, r: w.map("x", delay, over="abc", month=w.item),
        r"the map goes over a list, but 'abc' is of type string: give a list",
    ),
    (
        lambda w, r: w.map("x", delay, over=f"x{r['rows']}", month=w.item),
        r"the map goes over a list, but .* is of type string",
    ),
    (
        lambda w, r: w.map("x", delay, over=r["months"], month=w.item["a"]),
        r"refers to \$\{item.a\}, but there is no .a; the value is of type integer",
    ),
    (
        lambda w, r: w.step("y", check, rows=w.map("x", delay, over=r["months"], month=w.item)),
        r"is of type array",
    ),
    (
        lambda w, r: w.step("y", anything, k=w.map("x", delay, over=r["months"], month=w.item)["a"]),
        r"entered by a number",
    ),
    # content
    (lambda w, r: w.step("x", anything, k={"v": float("nan")}), r"nan at .inputs.k.v is not JSON"),
    (lambda w, r: w.step("x", anything, k=["\ud800"]), r"lone surrogate"),
    (lambda w, r: w.step("x", anything, k={"a\0": 1}), r"NUL"),
]


@pytest.mark.parametrize(("write", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused(write: Write, message: str) -> None:
    wf = workflow("bad", params={"url": str})
    raw = wf.step("raw", load, url=wf.params.url)

    def define() -> None:
        write(wf, raw)
        wf.spec

    with pytest.raises(DefinitionError) as caught:
        define()

    assert re.search(message, str(caught.value)), str(caught.value)
    assert caught.value.workflow == "bad"
    assert caught.value.step in ("x", "y")
    assert "workflow 'bad', step " in str(caught.value)


TAKEN: list[Write] = [
    lambda w, r: w.step("x", check, rows="12"),  # as pydantic reads texts of numbers
    lambda w, r: w.step("x", number, value=r["rows"]),
    lambda w, r: w.step("x", maybe, value=None),
    lambda w, r: w.step("y", check, rows=w.step("x", maybe, value=1)),  # it may be one
    lambda w, r: w.step("x", anything, k=r["name"], more=r),
    lambda w, r: w.step("y", check, rows=w.step("x", anything, z=1)["deep"][0]["er"]),  # nobody knows
    lambda w, r: w.step("y", check, rows=w.step("x", outer)["inner"]["id"]),
    lambda w, r: w.step("y", check, rows=w.step("x", outer)["rows"][-1]["id"]),
    lambda w, r: w.step("y", check, rows=w.step("x", outer)["either"]["id"]),
    lambda w, r: w.map(
        "y", check, over=w.step("x", outer)["rows"], rows=w.item["id"], when="steps.x.rows.length > 0"
    ),
    lambda w, r: w.map("x", delay, over=[1, 2], month=w.item, i=w.index),
    lambda w, r: w.map("x", delay, over=[r["rows"], 2], month=w.item),
    lambda w, r: w.step("x", lists, values=[r["rows"], 2], table={"a": r["rows"]}),
    lambda w, r: [w.step("x", nothing, after=["y"]), w.step("y", nothing)],  # a later one, by name
    lambda w, r: w.step("x", nothing, when="steps.raw.months.length > 0 and steps.raw.name.as_lower == 'x'"),
    lambda w, r: w.step("x", anything, k="$${x} ${"[:6]),
]


@pytest.mark.parametrize("number_of_case", range(len(TAKEN)))
def test_taken(number_of_case: int) -> None:
    wf = workflow(params={"url": str})
    TAKEN[number_of_case](wf, wf.step("raw", load, url=wf.params.url))

    assert wf.spec


def spec(**steps: StepSpec) -> WorkflowSpec:
    return WorkflowSpec(name="bad", params={"n": {"type": "integer"}}, steps=steps)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            {"x": StepSpec(action="anything", inputs={"k": "${nope}"})},
            r"step 'x': '\$\{nope\}' is not a reference",
        ),
        (
            {"x": StepSpec(action="anything", inputs={"k": "${steps.y}"})},
            r"refers to a step 'y' that does not exist",
        ),
        (
            {"x": StepSpec(action="anything", inputs={"k": "${params.m}"})},
            r"refers to a parameter 'm' .*there are: 'n'",
        ),
        (
            {"x": StepSpec(action="anything", inputs={"k": "${item}"})},
            r"uses \$\{item\} outside a map: make the step a map",
        ),
        (
            {"x": StepSpec(action="delay", inputs={"month": 1}, map={"over": "${item}"})},
            r"exists only once the list is there",
        ),
        ({"x": StepSpec(action="delay", inputs={"month": 1}, map={"over": {"a": 1}})}, r"is of type object"),
    ],
)
def test_definitions_from_files_are_refused_alike(steps: dict[str, StepSpec], message: str) -> None:
    with pytest.raises(DefinitionError, match=message) as caught:
        validate(spec(**steps), actions, 10**6)
    assert caught.value.step == "x"


def test_a_circle_is_told_with_its_path() -> None:
    wf = workflow("round")
    wf.step("a", nothing, after="c")
    wf.step("b", nothing, after="a")
    wf.step("c", nothing, when="steps.b != null")

    with pytest.raises(CycleError) as caught:
        wf.spec

    assert " → ".join(caught.value.path) in ("a → b → c → a", "b → c → a → b", "c → a → b → c")
    assert "workflow 'round': the steps wait for each other in a circle: " in str(caught.value)


def test_a_map_that_goes_over_itself_is_a_circle() -> None:
    with pytest.raises(CycleError, match="x → x"):
        validate(
            spec(x=StepSpec(action="anything", inputs={"k": 1}, map={"over": "${steps.x}"})), actions, 10**6
        )


def test_a_workflow_without_steps_is_refused() -> None:
    with pytest.raises(DefinitionError, match="workflow 'test': it has no steps"):
        workflow().spec


def test_a_definition_over_the_cap_is_refused() -> None:
    with pytest.raises(
        DefinitionError, match=r"is 1,0\d\d bytes of JSON, the limit is 1,000: .*DEFINITION_MAX_BYTES"
    ):
        validate(spec(x=StepSpec(action="anything", inputs={"k": "x" * 950})), actions, 1000)


def test_schemas_and_defaults_of_params_are_checked() -> None:
    wf = workflow(params={"n": Param(int, default="three")})
    wf.step("a", nothing)
    with pytest.raises(
        DefinitionError, match="the default of parameter 'n' does not fit: 'three' is not of type"
    ):
        wf.spec
    with pytest.raises(DefinitionError, match="parameter 'n' is not a JSON Schema"):
        validate(
            WorkflowSpec(name="bad", params={"n": {"type": "int"}}, steps={"a": StepSpec(action="nothing")}),
            actions,
            1000,
        )
