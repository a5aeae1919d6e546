"""Parameters whose schemas refer to definitions of their own."""

from __future__ import annotations

import jsonschema
import pytest
from catalogue import nothing, workflow
from pydantic import BaseModel

from trellis.tasks.errors import DefinitionError, ParameterError
from trellis.workflows.parameters import Param


class Airport(BaseModel):
    code: str


class Trip(BaseModel):
    start: Airport
    end: Airport


def test_each_parameter_keeps_its_own_definitions() -> None:
    """Two types may have the same name, so definitions are not thrown together."""

    class Airport(BaseModel):  # another one
        gates: int

    wf = workflow(params={"trip": Trip, "home": list[Airport]})
    wf.step("a", nothing)
    schema = wf.params_schema

    jsonschema.Draft202012Validator.check_schema(schema)
    good = {"trip": {"start": {"code": "EWR"}, "end": {"code": "JFK"}}, "home": [{"gates": 3}]}
    jsonschema.validate(good, schema)
    assert wf.check_params(good) == good
    bad = {**good, "home": [{"code": "EWR"}]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, schema)
    with pytest.raises(ParameterError, match=r"parameter 'home': at \[0\]: 'gates' is a required property"):
        wf.check_params(bad)


def test_models_may_be_given_as_they_are() -> None:
    wf = workflow(params={"trip": Trip})
    wf.step("a", nothing)
    trip = Trip(start=Airport(code="EWR"), end=Airport(code="JFK"))

    assert wf.check_params({"trip": trip})["trip"]["end"] == {"code": "JFK"}


@pytest.mark.parametrize(
    ("value", "message"), [(object(), "is not JSON"), ("a\0", "NUL"), ([float("nan")], "nan")]
)
def test_values_that_cannot_be_kept_are_refused(value: object, message: str) -> None:
    wf = workflow(params={"p": {}})
    wf.step("a", nothing)

    with pytest.raises(ParameterError, match=f"parameter 'p': .*{message}"):
        wf.check_params({"p": value})


def test_a_default_has_to_be_json() -> None:
    with pytest.raises(DefinitionError, match=r"the default .* is not JSON"):
        Param(int, default=object()).schema()
