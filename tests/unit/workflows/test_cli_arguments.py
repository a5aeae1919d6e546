"""`-p key=value`: what texts become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trellis.tasks.errors import ConfigurationError, ParameterError
from trellis.workflows import arguments
from trellis.workflows.spec import StepSpec, WorkflowSpec

LIST = {"type": "array", "items": {"type": "integer"}}
MAYBE = {"anyOf": [{"type": "string"}, {"type": "null"}]}
MIXED = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
MODEL = {"$ref": "#/$defs/Point", "$defs": {"Point": {"type": "object"}}}


@pytest.mark.parametrize(
    ("schema", "text", "expected"),
    [
        ({"type": "string"}, "text", "text"),
        ({"type": "string"}, "3", "3"),
        ({"type": "string"}, "null", "null"),
        ({"type": "string"}, '"quoted"', '"quoted"'),
        ({"type": "string"}, "", ""),
        ({"type": "string"}, "a=b", "a=b"),
        ({"type": "string", "format": "date"}, "2013-01-01", "2013-01-01"),
        ({"enum": ["a", "b"]}, "a", "a"),
        ({"type": "integer"}, "3", 3),
        ({"type": "integer"}, "-3", -3),
        ({"type": "integer"}, "three", "three"),
        ({"type": "integer"}, "", ""),
        ({"type": "number"}, "0.5", 0.5),
        ({"type": "number"}, ".5", 0.5),
        ({"type": "number"}, "1e3", 1000.0),
        ({"type": "number"}, "2", 2),
        ({"type": "number"}, "nan", "nan"),
        ({"type": "number"}, "inf", "inf"),
        ({"enum": [1, 2]}, "2", 2),
        ({"type": "boolean"}, "true", True),
        ({"type": "boolean"}, "False", False),
        ({"type": "boolean"}, "yes", True),
        ({"type": "boolean"}, "0", False),
        ({"type": "boolean"}, "perhaps", "perhaps"),
        (LIST, "[1, 2]", [1, 2]),
        (MODEL, '{"x": 1}', {"x": 1}),
        (MAYBE, "null", None),
        (MAYBE, "text", "text"),
        (MIXED, "3", 3),
        (MIXED, "x3", "x3"),
        ({"type": ["integer", "boolean"]}, "1", 1),
        ({"type": ["integer", "boolean"]}, "true", True),
        ({"anyOf": [LIST, {"type": "string"}]}, "[1]", [1]),
        ({"anyOf": [LIST, {"type": "string"}]}, "[1", "[1"),
        ({}, "3", 3),
        ({}, "null", None),
        ({}, "[1", "[1"),
        ({}, "NaN", "NaN"),
    ],
)
def test_the_schema_decides_what_a_text_means(schema: dict[str, Any], text: str, expected: Any) -> None:
    found = arguments.value(text, schema)
    assert found == expected
    assert type(found) is type(expected)


def spec(**params: dict[str, Any]) -> WorkflowSpec:
    return WorkflowSpec(name="w", params=params, steps={"a": StepSpec(action="x")})


def test_pairs_go_over_the_file(tmp_path: Path) -> None:
    """What is given on the command line counts more than what a file says."""
    file = tmp_path / "params.json"
    file.write_text('{"n": 1, "tags": ["x"]}')
    given = arguments.parse(spec(n={"type": "integer"}, tags={"type": "array"}), ["n=2"], file)
    assert given == {"n": 2, "tags": ["x"]}


def test_a_value_may_hold_equals_signs() -> None:
    assert arguments.parse(spec(q={"type": "string"}), ["q=a=b=c"]) == {"q": "a=b=c"}


def test_a_name_that_does_not_exist_is_left_to_the_check_of_the_parameters() -> None:
    assert arguments.parse(spec(), ["m=2"]) == {"m": 2}


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["n"], "parameter 'n': has no value: write -p n=VALUE"),
        (["=3"], "parameter '': has no value: write -p NAME=VALUE"),
        (["n=1", "n=2"], "parameter 'n': is given twice"),
        (["tags=a,b"], "parameter 'tags': 'a,b' is not an array in JSON; write e.g. -p tags='[1, 2]'"),
        (["tags=3"], "parameter 'tags': '3' is not an array in JSON"),
        (["point=x"], "'x' is not an object in JSON; write e.g. -p point='{\"a\": 1}'"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_right_way(pairs: list[str], message: str) -> None:
    with pytest.raises(ParameterError) as refused:
        arguments.parse(spec(n={"type": "integer"}, tags=LIST, point=MODEL), pairs)
    assert message in str(refused.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ParameterError) as refused:
        arguments.parse(spec(tags=LIST), ["n", "tags=x"])
    assert set(refused.value.problems) == {"n", "tags"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        ("[1]", "holds no object"),
        ("{", "is not JSON"),
        ('{"n": NaN}', "is not JSON: NaN is not JSON"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "params.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigurationError) as refused:
        arguments.parse(spec(n={"type": "integer"}), [], file)
    assert f"--params-file: {file} {message}" in str(refused.value)
