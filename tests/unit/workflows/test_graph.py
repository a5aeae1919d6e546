"""Orders, levels and circles of random graphs."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis.tasks.errors import CycleError
from trellis.workflows import graph


@st.composite
def dags(draw: st.DrawFn) -> dict[str, tuple[str, ...]]:
    """Steps, each with parents among those numbered lower, defined in any order."""
    count = draw(st.integers(1, 25))
    parents = {
        f"s{i}": tuple(f"s{j}" for j in sorted(draw(st.sets(st.integers(0, i - 1), max_size=4)))) if i else ()
        for i in range(count)
    }
    return {name: parents[name] for name in draw(st.permutations(list(parents)))}


@settings(deadline=None)
@given(dags())
def test_an_order_has_every_step_behind_its_parents(parents: dict[str, tuple[str, ...]]) -> None:
    order = graph.order(parents)

    place = {name: position for position, name in enumerate(order)}
    assert sorted(order) == sorted(parents)
    assert all(place[parent] < place[name] for name in parents for parent in parents[name])


@settings(deadline=None)
@given(dags())
def test_an_order_that_is_one_already_stays(parents: dict[str, tuple[str, ...]]) -> None:
    ordered = {name: parents[name] for name in graph.order(parents)}

    assert graph.order(ordered) == list(ordered)


@settings(deadline=None)
@given(dags())
def test_an_order_is_stable(parents: dict[str, tuple[str, ...]]) -> None:
    """Of the steps that could come next, the one that was defined first does."""
    if graph.order(parents) == list(parents):
        return
    left = list(parents)
    expected: list[str] = []
    while left:
        chosen = next(name for name in left if all(parent in expected for parent in parents[name]))
        left.remove(chosen)
        expected.append(chosen)

    assert graph.order(parents) == expected


@settings(deadline=None)
@given(dags())
def test_levels_are_the_longest_ways(parents: dict[str, tuple[str, ...]]) -> None:
    levels = graph.levels(parents)

    level = {name: number for number, names in enumerate(levels) for name in names}
    assert all(levels)
    assert all(level[name] == max((level[p] + 1 for p in parents[name]), default=0) for name in parents)


@settings(deadline=None)
@given(dags(), st.randoms(use_true_random=False))
def test_a_circle_is_found_and_told_in_the_direction_of_the_work(
    parents: dict[str, tuple[str, ...]], chance: random.Random
) -> None:
    name = chance.choice(list(parents))
    above = graph.ancestors(parents, [name])
    top = chance.choice(sorted(above))
    closed = {**parents, top: (*parents[top], name)}  # an edge back up

    with pytest.raises(CycleError) as caught:
        graph.order(closed)

    path = caught.value.path
    assert path[0] == path[-1]
    assert len(set(path)) == len(path) - 1
    assert all(before in closed[after] for before, after in pairwise(path))
    assert " → ".join(path) in str(caught.value)


def test_steps_that_wait_for_a_circle_are_not_part_of_its_path() -> None:
    with pytest.raises(CycleError) as caught:
        graph.order({"behind": ("a",), "a": ("b",), "b": ("a", "before"), "before": ()})

    assert set(caught.value.path) == {"a", "b"}


def test_a_step_that_waits_for_itself_is_a_circle() -> None:
    with pytest.raises(CycleError, match="a → a"):
        graph.order({"a": ("a",)})


@settings(deadline=None)
@given(dags())
def test_sinks_are_those_without_children(parents: dict[str, tuple[str, ...]]) -> None:
    assert graph.sinks(parents) == [name for name, below in graph.children(parents).items() if not below]


def test_a_long_chain_needs_no_deep_stack() -> None:
    chain = {f"s{i}": (f"s{i - 1}",) if i else () for i in range(100_000)}
    backwards = dict(reversed(chain.items()))

    assert graph.order(backwards) == list(chain)
    assert len(graph.levels(chain)) == 100_000
    with pytest.raises(CycleError):
        graph.order({**chain, "s0": ("s99999",)})
