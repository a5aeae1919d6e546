"""The notation of references, and references in Python."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis.tasks.errors import DefinitionError
from trellis.workflows.references import (
    IndexRef,
    ItemRef,
    ParamRef,
    Reference,
    StepRef,
    escape,
    follow,
    holes,
    notation,
    parse,
    text_of,
    write,
)

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,6}", fullmatch=True)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.integers(-3, 3)
REFERENCES = st.builds(
    Reference, st.sampled_from(["params", "steps"]), NAMES, st.lists(KEYS, max_size=3).map(tuple)
) | st.builds(Reference, st.just("item"), st.just(""), st.lists(KEYS, max_size=3).map(tuple))
TEXTS = st.text(
    st.sampled_from("a$ {}.\\\"'[]") | st.characters(exclude_categories=["Cs"], exclude_characters="\0")
)


@settings(deadline=None)
@given(REFERENCES)
def test_what_is_written_is_read(reference: Reference) -> None:
    assert parse(str(reference)) == reference


@settings(deadline=None)
@given(TEXTS)
def test_every_text_can_be_written_as_a_literal(text: str) -> None:
    assert parse(escape(text)) == text


@settings(deadline=None)
@given(st.lists(TEXTS | REFERENCES, max_size=5))
def test_python_texts_with_references_mean_what_they_say(parts: list[str | Reference]) -> None:
    """However many $ and braces stand around a reference, in an f-string."""
    python = "".join(
        f"{StepRef(None, each.kind, each.name, each.path)}" if isinstance(each, Reference) else each
        for each in parts
    )
    merged: list[str | Reference] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        elif part != "":
            merged.append(part)

    found = parse(notation(python))

    if isinstance(found, tuple):
        assert list(found) == merged
    else:
        assert [found] == (merged or [""])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("${params.url}", Reference("params", "url", ())),
        ("${steps.raw.rows[0].id}", Reference("steps", "raw", ("rows", 0, "id"))),
        ('${steps.my-step["odd key"][-1]}', Reference("steps", "my-step", ("odd key", -1))),
        ("${item}", Reference("item", "", ())),
        ("${item.month}", Reference("item", "", ("month",))),
        ("${index}", Reference("index", "", ())),
        ("a ${index}!", ("a ", Reference("index", "", ()), "!")),
        ("$${params.url}", "${params.url}"),
        ("$$${index}", ("$", Reference("index", "", ()))),
        ("price: $5 {x}", "price: $5 {x}"),
        ("", ""),
    ],
)
def test_notation(text: str, found: Any) -> None:
    assert parse(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "${}",
        "${raw}",
        "${steps}",
        "${steps.}",
        "${steps.raw",
        "${ steps.raw }",
        "${steps.raw[x]}",
        "${step.raw}",
        "a ${b}",
    ],
)
def test_what_is_no_reference_is_refused_with_the_forms_there_are(text: str) -> None:
    with pytest.raises(DefinitionError, match=r"is not a reference: write \$\{params.NAME\}"):
        parse(text)


def test_an_index_has_no_fields() -> None:
    with pytest.raises(DefinitionError, match="is a number"):
        parse("${index.x}")
    with pytest.raises(DefinitionError, match="is a number"):
        IndexRef(None, "index", "")["x"]


def test_references_are_found_at_any_depth() -> None:
    value = {"a": ["x", {"b": "${steps.s}"}], "c": "t ${item}", "d": "$${x}"}

    assert dict(holes(value)) == {
        ("a", 1, "b"): Reference("steps", "s", ()),
        ("c",): ("t ", Reference("item", "", ())),
        ("d",): "${x}",
    }


def test_references_go_deeper_by_key_and_position() -> None:
    ref = StepRef(None, "steps", "raw")["rows"][0]["odd key"]

    assert isinstance(ref, StepRef)
    assert str(ref) == '${steps.raw.rows[0]["odd key"]}'
    assert isinstance(ParamRef(None, "params", "p")["x"], ParamRef)
    assert isinstance(ItemRef(None, "item", "")["x"], ItemRef)


def test_a_reference_has_no_value_while_the_workflow_is_written() -> None:
    """What would silently be wrong in Python is refused, with the way to say it."""
    ref = StepRef(None, "steps", "raw")

    with pytest.raises(DefinitionError, match="when="):
        bool(ref)
    with pytest.raises(DefinitionError, match=r"wf\.map"):
        list(ref)
    with pytest.raises(DefinitionError, match=r"wf\.map"):
        assert 1 in ref
    with pytest.raises(DefinitionError, match="cannot be formatted"):
        f"{ref:>10}"
    with pytest.raises(DefinitionError, match="a text or a whole number"):
        ref[1.5]
    with pytest.raises(DefinitionError):
        ref[True]


def test_a_nul_character_is_refused_where_it_could_pass_for_a_mark() -> None:
    for text in ("a\0b", "a\0b\0c"):
        with pytest.raises(DefinitionError, match="NUL"):
            notation(text)


def test_a_path_is_followed_or_told_where_it_ends() -> None:
    value = {"rows": [{"id": 7}], "none": None, "text": "x"}

    assert follow(value, ["rows", -1, "id"]) == 7
    assert follow(value, []) is value
    for path, message in [
        (["row"], r"\.row does not exist: the value has 'rows', 'none', 'text'"),
        (["rows", 3], r"\.rows\[3\] does not exist: the value at \.rows is a list of 1"),
        (["rows", "id"], r"\.rows\.id does not exist"),
        (["none", "x"], r"\.none is null"),
        (["text", 0], r"the value at \.text is str"),
    ]:
        with pytest.raises(LookupError, match=message):
            follow(value, path)


def test_values_in_texts() -> None:
    assert [text_of(each) for each in ("a", 1, 2.5, True, None, [1, "ä"], {"k": None})] == [
        "a", "1", "2.5", "true", "null", '[1, "ä"]', '{"k": null}',
    ]  # fmt: skip


def test_write_is_the_inverse_of_reading_for_odd_keys() -> None:
    assert write("steps", "s", ("a.b", 'q"', "}")) == '${steps.s["a.b"]["q\\""]["}"]}'
