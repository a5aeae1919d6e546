"""Upward ranks: what they are, when there are any, and how ranked steps share messages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trellis.tasks.errors import DefinitionError
from trellis.workflows import Workflow, action
from trellis.workflows.dispatch import parts
from trellis.workflows.plan import EXPAND, GATHER, PlannedStep, plan
from trellis.workflows.ranks import differ, lane, ranked, ranking, upward
from trellis.workflows.records import Ready
from trellis.workflows.registry import actions


@action(name="ranks.plain")
def plain() -> list[int]:
    """Nothing that anybody has timed."""
    return []


@action(name="ranks.slow", expect=2)
def slow(item: Any = None) -> None:
    """Two seconds, as it says."""


def laid(wf: Workflow, params: dict[str, Any] | None = None, **means: float) -> list[PlannedStep]:
    """The rows of a workflow, where these means (milliseconds) were measured."""
    spec = wf.spec
    rows = plan(spec, params or {}, actions, "q")
    measured = {name.replace("_", "."): mean for name, mean in means.items()}
    return ranked(rows, spec, params or {}, actions, measured.get).steps


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[list[int]], list[float]]:
    """Dependents by row, in topological order, some edges of order alone, and seconds."""
    count = draw(st.integers(1, 12))
    below = [
        [
            draw(st.sampled_from([child, ~child]))
            for child in draw(st.sets(st.integers(at + 1, count - 1)) if at + 1 < count else st.just(set()))
        ]
        for at in range(count)
    ]
    return below, draw(st.lists(st.floats(0, 100), min_size=count, max_size=count))


@given(graphs())
def test_a_rank_is_the_longest_path_that_begins_with_the_step(
    graph: tuple[list[list[int]], list[float]],
) -> None:
    """Compared with all paths, walked one by one."""
    below, seconds = graph

    def longest(at: int) -> float:
        return seconds[at] + max((longest(c if c >= 0 else ~c) for c in below[at]), default=0.0)

    assert upward(below, seconds) == pytest.approx([longest(at) for at in range(len(seconds))])


@pytest.mark.parametrize(
    ("below", "seconds", "matters"),
    [
        ([[], []], [3.0, 1.0], True),
        ([[], []], [3.0, 3.01], False),  # a difference of 10 ms is none
        ([[], []], [0.0201, 0.0], True),
        ([[], []], [0.02, 0.0], False),  # all short
        ([[], []], [None, None], False),  # nothing known
        ([[], []], [None, 1.0], True),
        ([[1], [2], []], [3.0, 1.0, 2.0], False),  # a chain
        ([[2], [2], []], [1.0, 1.0, 5.0], False),  # a join of equals
        ([[2], [], []], [1.0, 1.0, 5.0], True),  # one has more behind it
    ],
)
def test_there_are_ranks_only_where_they_can_matter(
    below: list[list[int]], seconds: list[float | None], matters: bool
) -> None:
    """Something is known not to be short, and steps that wait together differ."""
    assert (ranking(below, seconds) is not None) is matters
    if not matters:
        assert not differ(below, upward(below, seconds)) or all((s or 0.0) <= 0.02 for s in seconds)


def test_a_step_says_what_it_takes_else_its_action_else_the_measured_mean() -> None:
    """In this order; what nobody has said or measured counts as nothing."""
    wf = Workflow("says", register=False)
    wf.step("own", slow, expect=7.5)
    wf.step("action", slow)
    wf.step("mean", plain)
    assert [(row.name, row.expect, row.rank) for row in laid(wf, ranks_slow=9000.0, ranks_plain=500.0)] == [
        ("own", 7.5, 7.5),
        ("action", 2.0, 2.0),
        ("mean", 0.5, 0.5),
    ]
    assert [row.rank for row in laid(wf)] == [7.5, 2.0, 0.0]
    assert [row.expect for row in laid(wf)] == [7.5, 2.0, None]


def test_runs_of_short_and_unmeasured_actions_have_no_ranks() -> None:
    """They pay nothing: their rows are the ones that the plan made."""
    wf = Workflow("short", register=False)
    wf.step("a", plain)
    wf.step("b", plain, after=["a"])
    wf.step("c", plain)
    for means in ({}, {"ranks_plain": 20.0}):
        assert [(row.rank, row.expect) for row in laid(wf, **means)] == [(None, None)] * 3
    assert all(row.rank is not None for row in laid(wf, ranks_plain=21.0))


def test_the_path_of_a_map_is_an_item_or_its_longest_lane_where_the_list_is_known() -> None:
    """And its items are told how long the path behind them is."""
    wf = Workflow("maps", params={"given": list, "n": int}, register=False)
    raw = wf.step("raw", plain)
    wf.map("unknown", slow, over=raw, concurrency=2, item=wf.item)
    wf.map("literal", slow, over=list(range(5)), concurrency=2, item=wf.item)
    wf.map("params", slow, over=wf.params.given, concurrency=2, item=wf.item)
    wf.map("wide", slow, over=wf.params.given, item=wf.item)
    wf.step("end", slow, after=["unknown", "literal"], expect=10)
    rows = laid(wf, {"given": [1, 2, 3], "n": 1})
    found = {row.name: row for row in rows}
    assert {name: row.rank for name, row in found.items()} == {
        "raw": 12.0, "unknown": 12.0, "unknown[]": 10.0, "literal": 16.0, "literal[]": 10.0, "params": 4.0,
        "params[]": 0.0, "wide": 2.0, "wide[]": 0.0, "end": 10.0,
    }  # fmt: skip
    told = {row.name: row.options["map"] for row in rows if row.action == EXPAND and row.options}
    assert {name: (each["expect"], each["rank"]) for name, each in told.items()} == {
        "unknown": (2.0, 10.0), "literal": (2.0, 10.0), "params": (2.0, 0.0), "wide": (2.0, 0.0),
    }  # fmt: skip
    assert {row.expect for row in rows if row.action in (EXPAND, GATHER)} == {
        None
    }  # they are short themselves


@given(st.integers(1, 40), st.integers(1, 10))
def test_lanes_hold_every_item_once(count: int, lanes: int) -> None:
    """Item i stands in front of the items i + lanes, i + 2 · lanes, …"""
    assert all(lane(count, lanes, i) == len(range(i, count, lanes)) for i in range(count))


def ready(*expected: float | None) -> list[Ready]:
    return [Ready(at, f"s{at}", "a", "q", 5, 9.0, expect, False) for at, expect in enumerate(expected)]


@pytest.mark.parametrize(
    ("expected", "budget", "sizes"),
    [
        ((0.01, 0.01, 0.01, 0.01, 0.01, 0.01), 50.0, [5, 1]),
        ((0.01, 3.0, 0.01), 50.0, [1, 1, 1]),
        ((None, None), 50.0, [1, 1]),
        ((0.0,) * 25, 50.0, [10, 10, 5]),
        ((), 50.0, []),
    ],
)
def test_short_ranked_steps_share_a_message_and_slow_ones_have_their_own(
    expected: tuple[float | None, ...], budget: float, sizes: list[int]
) -> None:
    """In their order, as far as their time fits."""
    found = list(parts(ready(*expected), budget, 10))
    assert [len(part) for part in found] == sizes
    assert [step for part in found for step in part] == ready(*expected)


@pytest.mark.parametrize("wrong", [-1, "soon", float("inf"), float("nan")])
def test_a_wrong_expectation_is_refused_where_it_is_written(wrong: Any) -> None:
    """By the step, the map, the file and the action, each with its name."""
    wf = Workflow("wrong", register=False)
    with pytest.raises(DefinitionError, match=r"'wrong', step 's': expect = "):
        wf.step("s", plain, expect=wrong)
    with pytest.raises(DefinitionError, match=r"step 'm': expect = "):
        wf.map("m", slow, over=[1], item=wf.item, expect=wrong)
    with pytest.raises(DefinitionError, match="expect"):
        Workflow.from_dict({"name": "w", "steps": {"s": {"action": "ranks.plain", "expect": wrong}}})
    with pytest.raises(DefinitionError, match=r"'ranks.wrong': expect .* seconds from 0 on"):
        action(name="ranks.wrong", expect=wrong)(lambda: None)
