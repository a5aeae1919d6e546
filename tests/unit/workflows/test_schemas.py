"""Schemas of results, as far as references need them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from trellis.workflows.schemas import Schema, enter, fits, types, whole


class Node(BaseModel):
    id: int
    below: list[Node] = []
    extra: dict[str, float] | None = None


def schema_of(kind: Any) -> Schema:
    return whole(TypeAdapter(kind).json_schema(mode="serialization"))


@pytest.mark.parametrize(
    ("kind", "path", "found"),
    [
        (Node, (), {"object"}),
        (Node, ("id",), {"integer"}),
        (Node, ("below", 0, "below", -1, "id"), {"integer"}),
        (Node, ("extra",), {"object", "null"}),
        (Node, ("extra", "anything"), {"number"}),
        (list[Node] | None, (3, "id"), {"integer"}),
        (int | str, (), {"integer", "string"}),
        (dict[str, Any], ("x", "y", 0), None),
        (Any, ("x",), None),
        (list, (0, "x"), None),
        (tuple[int, str], (1,), None),
        (Node | dict[str, str], ("id",), None),
    ],
)
def test_types_at_a_path(kind: Any, path: tuple[Any, ...], found: set[str] | None) -> None:
    assert types(enter(schema_of(kind), path)) == found


@pytest.mark.parametrize(
    ("kind", "path", "message"),
    [
        (Node, ("idd",), r"there is no \.idd; did you mean 'id'"),
        (Node, ("below", "id"), r"there is no \.below\.id; the value is a list"),
        (Node, ("id", "x"), "type integer and has nothing inside"),
        (Node, (0,), "entered by the name of a field"),
        (None, ("x",), "the value is null"),
        (int | str, ("x",), "has nothing inside"),
    ],
)
def test_paths_that_cannot_be(kind: Any, path: tuple[Any, ...], message: str) -> None:
    with pytest.raises(LookupError, match=message):
        enter(schema_of(kind), path)


def test_circular_references_end() -> None:
    schema = whole({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}})

    assert types(schema) is None


KINDS = st.none() | st.frozensets(
    st.sampled_from(["string", "integer", "number", "null", "array"]), min_size=1
)


@settings(deadline=None)
@given(KINDS, KINDS)
def test_only_what_cannot_be_is_refused(
    given_types: frozenset[str] | None, taken: frozenset[str] | None
) -> None:
    if given_types is None or taken is None or given_types & taken:
        assert fits(given_types, taken)


def test_whole_numbers_and_decimals_fit_each_other() -> None:
    assert fits(frozenset({"integer"}), frozenset({"number"}))
    assert fits(frozenset({"number"}), frozenset({"integer"}))
    assert not fits(frozenset({"string"}), frozenset({"integer", "null"}))
