"""The ideal schedulers that the benchmarks compare with: hand-computed cases, and laws on random graphs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st


def _module(name: str) -> ModuleType:
    """A benchmark's module; they are scripts, not part of the package."""
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look it up there
    spec.loader.exec_module(module)
    return module


simulate = _module("simulate")
Task = simulate.Task


def tasks(**spec):
    """`a=(2, "b", "c")`: task a of 2 seconds with the parents b and c."""
    return [Task(name, tuple(parents), runtime) for name, (runtime, *parents) in spec.items()]


@st.composite
def graphs(draw):
    runtimes = draw(st.lists(st.integers(0, 20), max_size=25))
    found = []
    for at, runtime in enumerate(runtimes):
        parents = draw(st.sets(st.integers(0, at - 1), max_size=4)) if at else set()
        found.append(Task(str(at), tuple(str(parent) for parent in sorted(parents)), float(runtime)))
    return draw(st.permutations(found))


SCHEDULERS = pytest.mark.parametrize("schedule", [simulate.fifo, simulate.best])


def test_fifo_takes_what_was_ready_first_and_best_what_holds_up_most():
    # Two slots. a, b and long are ready at once; tail waits for long.
    graph = tasks(a=(3,), b=(3,), long=(2,), tail=(4, "long"))
    # fifo: a 0-3, b 0-3, long 3-5, tail 5-9. best: long 0-2, a 0-3, tail 2-6, b 3-6.
    assert simulate.fifo(graph, 2).starts == [0, 0, 3, 5]
    assert simulate.fifo(graph, 2).makespan == 9
    assert simulate.best(graph, 2).starts == [0, 3, 0, 2]
    assert simulate.best(graph, 2).makespan == 6


def test_fifo_is_by_the_time_of_becoming_ready_then_by_the_file():
    # One slot. c is earlier in the file than b, but is ready only after a.
    graph = tasks(a=(1,), c=(1, "a"), b=(1,))
    assert simulate.fifo(graph, 1).starts == [0, 2, 1]
    # Both children become ready together: the file decides.
    graph = tasks(root=(1,), x=(2, "root"), y=(1, "root"))
    assert simulate.fifo(graph, 1).starts == [0, 1, 3]


def test_a_freed_slot_and_a_freed_child_meet_at_the_same_moment():
    # p and q end together; r needs both, and starts then.
    graph = tasks(p=(2,), q=(2,), r=(1, "p", "q"))
    assert simulate.fifo(graph, 2).starts == [0, 0, 2]


def test_a_task_without_runtime_takes_no_time_but_needs_a_slot():
    graph = tasks(a=(0,), b=(0, "a"), c=(5, "b"), d=(5,))
    assert simulate.fifo(graph, 1).makespan == 10
    assert simulate.fifo(graph, 2).makespan == 5


def test_parents_may_stand_after_their_children_in_the_file():
    graph = tasks(last=(1, "first"), first=(2,))
    assert simulate.fifo(graph, 4).starts == [2, 0]


def test_upward_ranks_and_the_critical_path():
    graph = tasks(a=(1,), b=(2, "a"), c=(5, "a"), d=(1, "b", "c"))
    assert simulate.upward_ranks(graph) == [7, 3, 6, 1]
    assert simulate.critical_path(graph) == 7
    assert simulate.total(graph) == 9


@SCHEDULERS
def test_nothing_takes_no_time(schedule):
    assert schedule([], 3).makespan == 0


@SCHEDULERS
@pytest.mark.parametrize(
    ("graph", "problem"),
    [
        (tasks(a=(1, "b"), b=(1, "a")), "circle"),
        (tasks(a=(1, "nobody")), "nobody"),
        (tasks(a=(-1,)), "-1"),
        ([Task("a", (), 1.0), Task("a", (), 1.0)], "same id"),
    ],
)
def test_graphs_that_cannot_run_are_refused(schedule, graph, problem):
    with pytest.raises(ValueError, match=problem):
        schedule(graph, 2)


def test_no_slots_are_refused():
    with pytest.raises(ValueError, match="0 slots"):
        simulate.fifo(tasks(a=(1,)), 0)


@SCHEDULERS
@given(graph=graphs(), slots=st.integers(1, 6))
def test_a_schedule_is_legal(schedule, graph, slots):
    found = schedule(graph, slots)
    place = {task.id: at for at, task in enumerate(graph)}
    for at, task in enumerate(graph):
        assert found.ends[at] == found.starts[at] + task.runtime
        assert all(found.ends[place[parent]] <= found.starts[at] for parent in task.parents)
    for moment in found.starts:
        at_work = sum(start <= moment < end for start, end in zip(found.starts, found.ends, strict=True))
        assert at_work <= slots


@SCHEDULERS
@given(graph=graphs(), slots=st.integers(1, 6))
def test_no_schedule_beats_the_bounds_and_every_list_schedule_keeps_grahams(schedule, graph, slots):
    makespan = schedule(graph, slots).makespan
    path, work = simulate.critical_path(graph), simulate.total(graph)
    assert makespan >= path
    assert makespan >= work / slots - 1e-9
    assert makespan <= work / slots + path * (1 - 1 / slots) + 1e-9  # Graham 1966


@SCHEDULERS
@given(graph=graphs())
def test_one_slot_needs_the_sum_and_enough_slots_the_critical_path(schedule, graph):
    assert schedule(graph, 1).makespan == simulate.total(graph)
    assert schedule(graph, max(1, len(graph))).makespan == simulate.critical_path(graph)


@SCHEDULERS
@given(graph=graphs(), slots=st.integers(1, 6), factor=st.sampled_from([0.25, 2.0, 1024.0]))
def test_the_makespan_scales_with_the_runtimes(schedule, graph, slots, factor):
    scaled = [Task(task.id, task.parents, task.runtime * factor) for task in graph]
    assert schedule(scaled, slots).makespan == schedule(graph, slots).makespan * factor
