"""Workflows written in Python."""

from __future__ import annotations

from collections import OrderedDict
from datetime import date
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
from catalogue import actions, anything, check, delay, load, nothing, workflow
from pydantic import BaseModel

from trellis.tasks.errors import DefinitionError, ParameterError
from trellis.tasks.retry import Retry
from trellis.workflows.definition import Param, Workflow
from trellis.workflows.spec import Default, WorkflowSpec


class Size(IntEnum):
    BIG = 3


class Opaque: ...


class Point(BaseModel):
    x: int


def test_a_workflow_comes_down_to_data() -> None:
    wf = workflow("flights", params={"url": str, "n": Param(int, default=3, description="how many")})
    raw = wf.step("raw", load, url=wf.params.url)
    wf.step(
        "rows", check, rows=raw["rows"], after=[raw], retry=Retry(3), timeout=60, on_failure=Default(False)
    )
    wf.map("delays", delay, over=raw["months"], concurrency=4, month=wf.item, i=wf.index)
    wf.step("end", "nothing", after=["rows", raw["months"]], when="params.n > 2", queue="q", priority=9)

    assert wf.spec.model_dump(exclude_defaults=True, mode="json") == {
        "name": "flights",
        "params": {
            "url": {"type": "string"},
            "n": {"type": "integer", "description": "how many", "default": 3},
        },
        "steps": {
            "raw": {"action": "load", "inputs": {"url": "${params.url}"}},
            "rows": {
                "action": "check",
                "inputs": {"rows": "${steps.raw.rows}"},
                "after": ["raw"],
                "retry": {"attempts": 3},
                "timeout": 60.0,
                "on_failure": {"default": False},
            },
            "delays": {
                "action": "delay",
                "inputs": {"month": "${item}", "i": "${index}"},
                "map": {"over": "${steps.raw.months}", "concurrency": 4},
            },
            "end": {
                "action": "nothing",
                "after": ["rows", "raw"],
                "when": "params.n > 2",
                "queue": "q",
                "priority": 9,
            },
        },
    }


def test_the_digest_is_the_content() -> None:
    """Neither the order of steps nor the way a value is written matters; what the workflow does, matters."""

    def written(*, swap: bool = False, retry: Any = 3, timeout: Any = 60, n: int = 1) -> str:
        wf = workflow()
        for name in ("b", "a") if swap else ("a", "b"):
            wf.step(name, anything, n=n, retry=retry, timeout=timeout, on_failure="fail")
        return wf.digest()

    assert written() == written(swap=True, retry=Retry(attempts=3), timeout=60.0)
    assert written() != written(n=2)
    assert written() != written(retry=4)


def test_a_workflow_may_grow_after_it_was_looked_at() -> None:
    wf = workflow()
    wf.step("a", nothing)
    first = wf.spec
    wf.step("b", nothing)

    assert list(first.steps) == ["a"]
    assert list(wf.spec.steps) == ["a", "b"]
    assert wf.spec is wf.spec


def test_values_beyond_json_become_json() -> None:
    wf = workflow()
    wf.step(
        "a",
        anything,
        day=date(2013, 1, 1),
        path=Path("/x"),
        size=Size.BIG,
        point=Point(x=1),
        both=(1, OrderedDict(k={2})),
    )

    assert wf.spec.steps["a"].inputs == {
        "day": "2013-01-01",
        "path": "/x",
        "size": 3,
        "point": {"x": 1},
        "both": [1, {"k": [2]}],
    }


def test_inputs_with_the_name_of_an_option_have_a_place() -> None:
    wf = workflow()
    wf.step("a", anything, inputs={"timeout": 5, "retry": "x"}, timeout=60, more=1)

    step = wf.spec.steps["a"]
    assert step.inputs == {"timeout": 5, "retry": "x", "more": 1}
    assert step.timeout == 60


def test_a_definition_survives_the_way_through_data() -> None:
    wf = workflow("x", params={"p": list[int]}, description="about")
    wf.map("m", anything, over=wf.params.p, text=f"${wf.item}$", literal="${x}")

    again = Workflow.from_spec(WorkflowSpec.model_validate_json(wf.spec.canonical()), catalogue=actions)

    assert again.digest() == wf.digest()
    assert str(again.params.p) == "${params.p}"
    assert Workflow.from_dict(wf.spec.model_dump(mode="json"), catalogue=actions).digest() == wf.digest()


def refused(wf: Workflow) -> dict[str, Any]:
    """Each a mistake in one call, and what is said about it."""
    other = workflow("other")
    foreign = other.step("raw", load, url="u")
    return {
        r"step 'x': 'row' is neither an input of .* nor an option; did you mean 'rows'\?": lambda: wf.step(
            "x", check, row=1
        ),
        r"step 'x': 'retires' is neither .* did you mean 'retry'\?": lambda: wf.step(
            "x", check, rows=1, retires=3
        ),
        r"'concurency' is neither .* did you mean 'concurrency'\?": lambda: wf.map(
            "x", delay, over=[1], month=1, concurency=3
        ),
        r"step 'raw': this step is defined twice": lambda: wf.step("raw", nothing),
        r"'x y' cannot be the name of a step": lambda: wf.step("x y", nothing),
        r"cannot be the name of a step": lambda: wf.step("", nothing),
        r"uses \$\{steps.raw.rows\} of workflow 'other'.*pass the value as a parameter": lambda: wf.step(
            "x", check, rows=foreign["rows"]
        ),
        r"input 'after' uses \$\{steps.raw\} of workflow 'other'": lambda: wf.step(
            "x", nothing, after=foreign
        ),
        r"`after` takes steps or their names, not <ParamRef": lambda: wf.step(
            "x", nothing, after=[wf.params.url]
        ),
        r"input 'rows' uses \$\{item\} outside a map: add the step with wf.map": lambda: wf.step(
            "x", check, rows=wf.item
        ),
        r"input 'over' uses \$\{index\} outside a map": lambda: wf.map("x", delay, over=[wf.index], month=1),
        r"len is not an action: decorate the function with @action": lambda: wf.step("x", len),
        r"input 'rows' is of type object, which has no JSON form": lambda: wf.step("x", check, rows=object()),
        r"input 'k' has the key 1: the keys of JSON objects are texts": lambda: wf.step(
            "x", anything, k={1: 2}
        ),
        r"input 'k' is given twice": lambda: wf.step("x", anything, inputs={"k": 1}, k=2),
        r"input 'k' nests deeper": lambda: wf.step("x", anything, k=nested(200)),
        r"step 'x': priority = 12: input should be less than or equal to 9": lambda: wf.step(
            "x", nothing, priority=12
        ),
        r"step 'x': timeout = 0": lambda: wf.step("x", nothing, timeout=0),
        r"step 'x': retry.attempts = 0": lambda: wf.step("x", nothing, retry=0),
        r"step 'x': map.concurrency = 0": lambda: wf.map("x", delay, over=[1], month=1, concurrency=0),
        r"`when` takes a plain text": lambda: wf.step("x", nothing, when=f"{wf.params.url} == 1"),
        r"there is no parameter 'ulr': .*did you mean 'url'\?": lambda: wf.params.ulr,
        r"input 'k': the text 'a\\x00' holds a NUL": lambda: wf.step("x", anything, k="a\0"),
    }


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 1


@pytest.mark.parametrize("message", refused(workflow(params={"url": str})))
def test_a_mistake_is_refused_where_it_is_made(message: str) -> None:
    wf = workflow(params={"url": str})
    wf.step("raw", load, url="u")

    with pytest.raises(DefinitionError, match=message) as caught:
        refused(wf)[message]()
    assert caught.value.workflow == "test"


def test_names_of_workflows_and_params_are_checked() -> None:
    with pytest.raises(DefinitionError, match="name = 'a b'"):
        workflow("a b")
    with pytest.raises(DefinitionError, match=r"parameter 'p': .* is not a type of JSON values"):
        workflow(params={"p": Opaque})
    wf = workflow(params={"a b": str})
    wf.step("a", nothing)
    with pytest.raises(DefinitionError, match="params"):
        wf.spec


def test_params_have_one_schema() -> None:
    wf = workflow(params={"point": Point, "n": Param(int, default=3), "raw": {"type": "string"}})
    wf.step("a", nothing)

    schema = wf.params_schema

    assert schema["required"] == ["point", "raw"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["n"] == {"type": "integer", "default": 3}


def test_params_are_checked_all_at_once_and_defaults_filled_in() -> None:
    wf = workflow(
        params={"url": str, "n": Param(int, default=3), "day": Param(date, default=date(2013, 1, 1))}
    )
    wf.step("a", nothing)

    assert wf.check_params({"url": "u"}) == {"url": "u", "n": 3, "day": "2013-01-01"}
    assert wf.check_params({"url": "u", "day": date(2014, 2, 3)})["day"] == "2014-02-03"
    with pytest.raises(ParameterError) as caught:
        wf.check_params({"ulr": "u", "n": "three", "day": "someday"})
    assert set(caught.value.problems) == {"ulr", "url", "n", "day"}
    assert "did you mean 'url'?" in caught.value.problems["ulr"]
    assert caught.value.problems["url"] == "is missing"
