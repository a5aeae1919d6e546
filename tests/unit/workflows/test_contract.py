"""Contracts: what a signature takes and returns."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import pytest
from counting import work
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, PlainSerializer

from trellis.tasks.errors import DefinitionError, InputError, OutputError
from trellis.workflows.contract import Contract, unkeepable


class Context:
    __trellis_context__ = True


class Colour(Enum):
    RED = "red"


class Flight(BaseModel):
    carrier: str
    delay: float


@dataclass
class Point:
    x: int
    y: int


def nothing() -> None: ...
def one(n: int) -> int: ...
def typed(
    day: date, path: Path, flights: list[Flight], point: Point, colour: Colour = Colour.RED
) -> list[Flight]: ...
def untyped(a, b=3): ...
def open_ended(a: int, **more: float): ...
def described(n: Annotated[int, Field(gt=0, description="how many")] = 3) -> None: ...
def with_context(ctx: Context, n: int) -> None: ...
def with_optional_context(n: int, ctx: Context | None = None) -> None: ...
def twice(a: Context, b: Context) -> None: ...
def many(*values: int) -> None: ...
def positional(n: int, /) -> None: ...
def opaque(thing: object.__class__) -> None: ...
def returns_opaque() -> threading.Lock: ...  # noqa: F821
def yields():
    yield 1


async def later(n: int) -> str: ...
async def async_yields():
    yield 1


def field_default(n: int = Field(3)) -> None: ...


def of(function: Any) -> Contract:
    return Contract.of(function, function.__name__)


def test_json_becomes_the_declared_types_and_results_become_json() -> None:
    contract = of(typed)
    inputs = {
        "day": "2013-01-31",
        "path": "/tmp/x",
        "flights": [{"carrier": "UA", "delay": 3}],
        "point": {"x": 1, "y": "2"},
        "colour": "red",
    }

    found = contract.validate(inputs)

    assert found == {
        "day": date(2013, 1, 31),
        "path": Path("/tmp/x"),
        "flights": [Flight(carrier="UA", delay=3)],
        "point": Point(1, 2),
        "colour": Colour.RED,
    }
    assert json.loads(contract.dump(found["flights"])) == [{"carrier": "UA", "delay": 3.0}]


def test_an_absent_input_with_a_default_is_left_to_the_function() -> None:
    assert of(untyped).validate({"a": [1]}) == {"a": [1]}
    assert of(untyped).input_schema["properties"]["b"]["default"] == 3


def test_the_input_schema_is_closed_and_tells_defaults_and_descriptions() -> None:
    schema = of(described).input_schema

    assert schema["additionalProperties"] is False
    assert schema["properties"]["n"]["description"] == "how many"
    assert schema["properties"]["n"]["default"] == 3
    assert of(described).inputs["n"].description == "how many"
    assert "required" not in schema


def test_further_keywords_are_taken_with_their_type_where_the_function_takes_them() -> None:
    contract = of(open_ended)

    assert contract.accepts_any
    assert contract.validate({"a": 1, "b": "2.5"}) == {"a": 1, "b": 2.5}
    with pytest.raises(InputError, match="b: input should be a valid number"):
        contract.validate({"a": 1, "b": "x"})


def test_the_context_is_no_input() -> None:
    assert of(with_context).context_parameter == "ctx"
    assert list(of(with_context).inputs) == ["n"]
    assert of(with_optional_context).context_parameter == "ctx"
    assert of(one).context_parameter is None


def test_async_functions_are_known_as_such() -> None:
    assert of(later).is_async
    assert not of(one).is_async
    assert of(later).output_schema == {"type": "string"}


def test_a_decorated_function_keeps_its_signature() -> None:
    @functools.wraps(one)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return one(*args, **kwargs)

    assert list(of(wrapper).inputs) == ["n"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (many, r"takes \*values: inputs have names"),
        (positional, "positional-only.*remove the `/`"),
        (twice, "asks for the context twice"),
        (returns_opaque, "type hint cannot be read.*'threading'.*TYPE_CHECKING"),
        (yields, "yields.*return a list"),
        (async_yields, "yields.*return a list"),
        (field_default, "Annotated"),
    ],
)
def test_signatures_that_cannot_be_an_action_are_refused_with_the_fix(function: Any, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        of(function)


def test_types_without_a_json_form_are_refused_by_name() -> None:
    class Opaque: ...

    def body(thing: Any) -> Any: ...

    body.__annotations__ = {"thing": Opaque, "return": int}
    with pytest.raises(DefinitionError, match=r"parameter 'thing' \(Opaque\) has no JSON form"):
        of(body)
    body.__annotations__ = {"thing": int, "return": Opaque}
    with pytest.raises(DefinitionError, match=r"the return type \(Opaque\) has no JSON form"):
        of(body)


def test_a_missing_input_is_told_even_where_none_is_given() -> None:
    with pytest.raises(InputError, match="n: is missing"):
        of(one).validate({})


def test_results_are_written_as_their_types_say_for_json() -> None:
    def body() -> Any: ...

    body.__annotations__["return"] = Annotated[float, PlainSerializer("{:.1f} s".format, when_used="json")]
    assert of(body).dump(1.25) == b'"1.2 s"'


def test_every_wrong_input_is_told() -> None:
    with pytest.raises(InputError) as caught:
        of(typed).validate({"day": "soon", "flights": [{"carrier": "UA"}], "points": 3})

    problems = caught.value.problems
    assert problems["day"].startswith("input should be a valid date")
    assert problems["path"] == "is missing"
    assert problems["flights"] == "at [0].delay: field required"
    assert "did you mean 'point'?" in problems["points"]
    assert "it takes 'day', 'path', 'flights', 'point', 'colour'" in problems["points"]


def test_errors_tell_types_and_never_values() -> None:
    """A value may be a secret, and errors are journalled and logged."""
    with pytest.raises(InputError) as caught:
        of(one).validate({"n": "hunter2"})

    assert "hunter2" not in str(caught.value)
    assert "not str" in str(caught.value)


def test_a_single_input_is_judged_alone() -> None:
    assert of(typed).problem("day", "2013-01-01") is None
    assert "valid date" in (of(typed).problem("day", "soon") or "")
    assert of(typed).problem("other", "x") is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "nan is not JSON"),
        ({"a": [1, float("inf")]}, r"inf at \.a\[1\] is not JSON"),
        ("a\0b", "NUL"),
        ({"k\0": 1}, "a key holds a NUL"),
        (["\ud800"], "lone surrogate"),
        (object(), "not JSON"),
        (b"\xff", "not JSON"),
    ],
)
def test_what_postgres_cannot_hold_is_refused(value: Any, message: str) -> None:
    with pytest.raises(OutputError, match=message):
        of(untyped).dump(value)


def test_innocent_text_is_kept() -> None:
    """The quick search for bad tokens hits text as well, which is then looked at."""
    for value in ("NaN", "Infinity", "\\u0000", {"NaN": "-Infinity"}):
        assert json.loads(of(untyped).dump(value)) == value


def test_nan_inside_a_model_does_not_become_null() -> None:
    """pydantic's own default would write it as null, silently."""
    with pytest.raises(OutputError, match=r"nan at \[0\]\.delay"):
        of(typed).dump([Flight(carrier="UA", delay=math.nan)])


def test_the_return_type_is_enforced() -> None:
    with pytest.raises(OutputError, match="valid integer"):
        of(one).dump("many")
    with pytest.raises(OutputError):
        of(nothing).dump(3)
    assert of(nothing).dump(None) == b"null"
    with pytest.raises(OutputError):
        of(one).dump(None)


def test_values_beyond_json_are_written_as_it_can() -> None:
    assert json.loads(of(untyped).dump({"d": date(2013, 1, 1), "t": (1, 2), "n": Decimal("1.5")})) == {
        "d": "2013-01-01",
        "t": [1, 2],
        "n": "1.5",
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(JSON)
def test_a_value_is_dumped_faithfully_or_refused(value: Any) -> None:
    """Never something else than what was returned."""
    bad = unkeepable(value) is not None
    try:
        data = of(untyped).dump(value)
    except OutputError:
        assert bad or "\\ud" in json.dumps(value)
    else:
        assert not bad
        assert json.loads(data) == value


def test_small_signatures_cost_next_to_nothing() -> None:
    """The engine calls these for every step: pydantic does it in a few calls, whatever the types are."""
    for function, inputs, output in ((nothing, {}, None), (one, {"n": 3}, 3)):
        contract = of(function)
        contract.validate(inputs)
        assert work(lambda c=contract, i=inputs: c.validate(i)) < 15  # type: ignore[misc]
        assert work(lambda c=contract, o=output: c.dump(o)) < 10  # type: ignore[misc]
