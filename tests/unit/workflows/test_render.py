"""Pictures: text, Mermaid and SVG."""

from __future__ import annotations

from collections import Counter
from typing import Any
from xml.etree import ElementTree

import pytest
from catalogue import anything, check, delay, load, nothing, workflow
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis.workflows import render
from trellis.workflows.definition import Workflow
from trellis.workflows.layout import layout
from trellis.workflows.overview import STATES, SYMBOLS, overview
from trellis.workflows.spec import Default
from trellis.workflows.states import StepState

SVG = "{http://www.w3.org/2000/svg}"


def flights() -> Workflow:
    wf = workflow("flights", params={"n": int})
    raw = wf.step("raw", load, url="u")
    rows = wf.step("rows", check, rows=raw["rows"], when='params.n > 2 and "a" != "<b>"', retry=3, timeout=60)
    delays = wf.map("delays", delay, over=raw["months"], concurrency=4, month=wf.item)
    wf.step("join", anything, x=[rows, delays], on_failure=Default(0))
    return wf


STATE = {
    "raw": "succeeded",
    "rows": "skipped",
    "delays": "succeeded",
    "delays[]": "waiting",
    "delays[0]": "succeeded",
    "delays[1]": "running",
    "delays[2]": "ready",
    "join": "waiting",
}


def test_text() -> None:
    assert render.text(flights().spec) == (
        "flights · 4 steps in 3 levels\n"
        "\n"
        "1  raw       load\n"
        '2  rows      check     ← raw  if params.n > 2 and "a" != "<b>"  3 attempts  timeout 60 s\n'
        "   delays[]  delay     ← raw  4 at once\n"
        "3  join      anything  ← rows, delays  a default on failure\n"
    )


def test_text_with_the_states_of_a_run() -> None:
    assert render.text(flights().spec, STATE) == (
        "flights · 4 steps in 3 levels\n"
        "\n"
        "1  ✓ raw       load\n"
        '2  - rows      check     ← raw  if params.n > 2 and "a" != "<b>"  3 attempts  timeout 60 s\n'
        "   ▶ delays[]  delay     ← raw  1/3 succeeded  4 at once\n"
        "3  · join      anything  ← rows, delays  a default on failure\n"
        "\n"
        "▶ running   ○ ready   · waiting   - skipped   ✓ succeeded\n"
    )


def test_mermaid() -> None:
    text = render.mermaid(flights().spec, STATE)

    assert text.startswith("flowchart TD\n")
    assert 's0["<b>raw</b><br/>load"]' in text
    assert "&quot;" not in text
    assert "if params.n &gt; 2 and #quot;a#quot; != #quot;&lt;b&gt;#quot;" in text
    assert 's2[["<b>delays</b><br/>delay<br/>1/3 succeeded"]]' in text
    assert Counter(line for line in text.splitlines() if "-->" in line) == Counter(
        ["    s0 --> s1", "    s0 --> s2", "    s1 --> s3", "    s2 --> s3"]
    )
    assert "class s2 running" in text


def nodes(text: str) -> dict[str, ElementTree.Element]:
    """The boxes of a drawing by the first line of their tooltip."""
    root = ElementTree.fromstring(text)
    return {
        str(group.findtext(f"{SVG}title")).splitlines()[0]: group
        for group in root.iter(f"{SVG}g")
        if "step" in str(group.get("class")).split()
    }


def test_svg() -> None:
    text = render.draw(flights().spec, STATE)
    found = nodes(text)

    assert list(found) == ["raw", "rows", "delays", "join"]
    assert "running" in str(found["delays"].get("class")).split()
    assert "action: delay" in str(found["delays"].findtext(f"{SVG}title"))
    assert 'if params.n > 2 and "a" != "<b>"' in str(found["rows"].findtext(f"{SVG}title"))
    assert "timeout 60 s" in str(found["rows"].findtext(f"{SVG}title"))
    assert text.count('class="way"') == 4
    assert "prefers-color-scheme:dark" in text
    assert "var(" not in text  # converters to PNG and PDF do not know it
    for outside in ("<script", "href", "url(http", "@import"):
        assert outside not in text


def boxes_of(text: str) -> list[tuple[float, float, float, float]]:
    found = []
    for group in nodes(text).values():
        rect = group.findall(f"{SVG}rect[@class='box']")[-1]
        found.append(tuple(float(str(rect.get(key))) for key in ("x", "y", "width", "height")))
    return found  # type: ignore[return-value]


@st.composite
def dags(draw: st.DrawFn) -> Workflow:
    wf = workflow()
    for number in range(draw(st.integers(1, 20))):
        earlier = [f"s{other}" for other in range(number)]
        after = draw(st.lists(st.sampled_from(earlier), max_size=3, unique=True)) if earlier else []
        wf.step(f"s{number}", nothing, after=after)
    return wf


@settings(deadline=None, max_examples=50)
@given(dags())
def test_boxes_never_lie_on_each_other(wf: Workflow) -> None:
    text = render.draw(wf.spec)
    boxes = boxes_of(text)
    root = ElementTree.fromstring(text)
    width, height = float(str(root.get("width"))), float(str(root.get("height")))

    assert len(boxes) == len(wf)
    for number, (x, y, w, h) in enumerate(boxes):
        assert x >= 0
        assert y >= 0
        assert x + w <= width
        assert y + h <= height
        for other_x, other_y, other_w, other_h in boxes[:number]:
            apart = x >= other_x + other_w or other_x >= x + w or y >= other_y + other_h or other_y >= y + h
            assert apart


@settings(deadline=None, max_examples=50)
@given(dags())
def test_every_edge_is_routed_through_each_layer_between(wf: Workflow) -> None:
    parents = {name: box.after for name, box in wf.spec.steps.items()}
    placed = layout(parents, dict.fromkeys(parents, 10.0), 5.0)
    level = {name: number for number, layer in enumerate(placed.layers) for name in layer}

    assert set(placed.routes) == {(parent, name) for name in parents for parent in parents[name]}
    for route in placed.routes.values():
        assert [level[each] for each in route] == list(range(level[route[0]], level[route[-1]] + 1))


@settings(deadline=None, max_examples=50)
@given(dags(), st.integers(1, 10))
def test_folding_loses_no_step_and_makes_no_circle(wf: Workflow, limit: int) -> None:
    shown = overview(wf.spec, dict.fromkeys(wf.spec.steps, "running"), limit=limit)

    assert shown.left_out == 0
    assert sorted(step for box in shown.boxes for step in box.steps) == sorted(wf.spec.steps)
    assert sum(sum(box.states.values()) for box in shown.boxes) == len(wf)
    before: set[str] = set()
    for box in shown.boxes:
        assert set(box.parents) <= before
        before.add(box.name)


def test_a_folded_box_shows_its_most_telling_state() -> None:
    wf = workflow()
    for number in range(400):
        wf.step(f"s{number}", nothing)
    states = {f"s{number}": "succeeded" for number in range(399)} | {"s399": "failed"}

    text = render.text(wf.spec, states)

    assert "✗ s0 … s399  nothing  399/400 succeeded" in text


def test_states_are_those_of_the_engine() -> None:
    assert set(STATES) == {state.value for state in StepState} == set(SYMBOLS)


@pytest.mark.parametrize("shape", ["wide", "chain", "ladder", "tangle"])
def test_big_graphs_finish_quickly(shape: str) -> None:
    wf = workflow()
    count = 5_000 if shape == "tangle" else 20_000
    for number in range(count):
        after: Any = ()
        if shape == "chain" and number:
            after = f"s{number - 1}"
        elif shape == "ladder" and number >= 10:
            after = [f"s{number // 10 * 10 - 10 + each}" for each in range(10)]
        elif shape == "tangle" and number:
            after = sorted({f"s{(number * 7919 * each) % number}" for each in (1, 3, 5)})
        wf.step(f"s{number}", nothing, after=after)
    spec = wf.spec
    for picture in (render.text(spec), render.mermaid(spec), render.draw(spec)):
        assert len(picture) < 4_000_000


def folded(wf: Workflow, limit: int) -> list[tuple[str, ...]]:
    return [box.steps for box in overview(wf.spec, limit=limit).boxes]


def test_steps_that_look_the_same_are_folded_first() -> None:
    """The same action, parents and children; one that leads elsewhere stays on its own."""
    wf = workflow()
    wf.step("root", nothing)
    for name in ("a", "b", "c"):
        wf.step(name, nothing, after="root")
    wf.step("ab", anything, after=["a", "b"])
    wf.step("other", anything, after="c")

    assert folded(wf, 5) == [("root",), ("a", "b"), ("c",), ("ab",), ("other",)]


def test_then_steps_in_a_row_are_folded() -> None:
    wf = workflow()
    wf.step("root", nothing)
    for branch in "xy":
        wf.step(f"{branch}1", nothing, after="root")
        wf.step(f"{branch}2", nothing, after=f"{branch}1")
        wf.step(f"{branch}3", anything, after=f"{branch}2")

    assert folded(wf, 5) == [("root",), ("x1", "x2"), ("x3",), ("y1", "y2"), ("y3",)]
