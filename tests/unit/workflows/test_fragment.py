"""Fragments: names of finished steps, and pictures of what was appended."""

from __future__ import annotations

import pytest
from catalogue import actions, anything, workflow
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis.tasks.errors import DefinitionError
from trellis.workflows import Workflow
from trellis.workflows.additions import AppendedRow, additions, shown
from trellis.workflows.fragment import Fragment, readings, uses
from trellis.workflows.overview import overview
from trellis.workflows.references import Reference, parse

PART = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,4}", fullmatch=True)
ITEM = st.one_of(st.just(""), st.integers(0, 99).map("[{}]".format))
NAMES = st.lists(st.tuples(PART, ITEM).map("".join), min_size=1, max_size=4).map(".".join)


@settings(deadline=None)
@given(NAMES, st.lists(st.text("ab.-", min_size=1, max_size=3) | st.integers(0, 9), max_size=3))
def test_a_finished_step_is_found_by_the_name_that_was_given(name: str, path: list[str | int]) -> None:
    """Whatever stands behind it: the name is among the readings, with the rest as the path."""
    reference = Fragment(catalogue=actions).done(name)
    for part in path:
        reference = reference[part]
    parsed = parse(str(reference))
    assert isinstance(parsed, Reference)
    assert (name, tuple(path)) in readings(parsed)


@pytest.mark.parametrize("name", ["", "a.", ".a", "a b", "a[x]", "a[]", "1a", "a[1][2]", "a..b"])
def test_what_cannot_be_a_name_is_refused(name: str) -> None:
    with pytest.raises(DefinitionError, match="is no name of a step"):
        Fragment(catalogue=actions).done(name)


def test_uses_are_found_wherever_they_stand() -> None:
    """In inputs, inside texts, in what a map goes over and a loop begins with."""
    more = Fragment(catalogue=actions)
    more.step("a", anything, k=more.done("x.y"))
    more.map("b", anything, over=more.done("list"), k=f"{more.done('z')['q']}!")
    more.loop("c", anything, until="result == 1", limit=2, start=[more.done("s")], k=more.previous)
    assert {(step, str(reference)) for step, reference in uses(more.spec)} == {
        ("a", "${run.x.y}"), ("b", "${run.list}"), ("b", "${run.z.q}"), ("c", "${run.s}"),
    }  # fmt: skip


def test_a_workflow_cannot_use_what_only_a_fragment_may() -> None:
    """It has no run yet."""
    content = {"name": "x", "steps": {"a": {"action": "anything", "inputs": {"k": "${run.x}"}}}}
    with pytest.raises(DefinitionError, match="only a fragment can"):
        Workflow.from_dict(content, catalogue=actions).validate()
    Fragment.from_dict(content, catalogue=actions).validate()


def test_items_and_turns_are_shown_under_one_name() -> None:
    assert {shown(name) for name in ("a[3].b", "a[4].b", "a[].b")} == {"a[].b"}
    assert (shown("a.b[]"), shown("a.b[?7]"), shown("a.b[7]")) == ("a.b", "a.b", "a.b")


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["g.a", "g.b", "m[0].a", "m[1].a", "m[1].b", "m[0].b"]),
                          st.lists(st.integers(1, 4), max_size=3)), max_size=8))  # fmt: skip
def test_what_was_appended_never_makes_a_circle_in_a_picture(found: list[tuple[str, list[int]]]) -> None:
    """Steps shown as one may wait for each other in both directions; their box does not."""
    wf = workflow()
    grower = wf.step("g", anything, k=1)
    each = wf.map("m", anything, over=[1, 2], k=wf.item)
    wf.step("behind", anything, k=[grower, each])
    rows = [
        AppendedRow(
            10 + place, name, "anything", "anything", "ready", [~3, *(10 + place + step for step in ahead)]
        )
        for place, (name, ahead) in enumerate(found)
    ]
    there = {row.idx for row in rows}
    rows = [
        row._replace(dependents=[each for each in row.dependents if each < 0 or each in there])
        for row in rows
    ]
    boxes = overview(wf.spec, {}, additions(rows, {0: "g", 1: "m", 2: "m", 3: "behind"})).boxes
    assert len(boxes) == 3 + len({shown(name) for name, _ in found})
    seen: set[str] = set()
    for box in boxes:
        assert seen.issuperset(box.parents)
        seen.add(box.name)
