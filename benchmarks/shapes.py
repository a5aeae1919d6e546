"""The workloads: workflows of no-op steps, each the same definition for the engine and for the canvas.

The law: a shape is built and validated before any clock starts, and has no data flow, so that both sides
carry nothing but the order of the steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from actions import noop, warm

from trellis.workflows import Workflow


@dataclass(frozen=True, slots=True)
class Shape:
    """A workload, and the ratios to the native canvas that it should reach."""

    name: str
    workflow: Workflow
    goal_on: float | None = None
    goal_off: float | None = None

    @property
    def steps(self) -> int:
        """How many steps it has."""
        return len(self.workflow)


def independent(count: int) -> Workflow:
    """Steps that wait for nothing."""
    workflow = Workflow(f"independent_{count}", register=False)
    for at in range(count):
        workflow.step(f"s{at}", noop)
    return _checked(workflow)


def chain(count: int) -> Workflow:
    """Steps one after the other."""
    workflow = Workflow(f"chain_{count}", register=False)
    for at in range(count):
        workflow.step(f"s{at}", noop, after=[f"s{at - 1}"] if at else [])
    return _checked(workflow)


def fanin(count: int) -> Workflow:
    """Steps side by side, and one behind all of them."""
    workflow = Workflow(f"fanin_{count}", register=False)
    names = [f"s{at}" for at in range(count)]
    for name in names:
        workflow.step(name, noop)
    workflow.step("join", noop, after=names)
    return _checked(workflow)


def ladder(rungs: int, width: int) -> Workflow:
    """Rungs one after the other, each of steps side by side and one behind them."""
    workflow = Workflow(f"ladder_{rungs}x{width + 1}", register=False)
    for rung in range(rungs):
        names = [f"s{rung}_{at}" for at in range(width)]
        for name in names:
            workflow.step(name, noop, after=[f"join{rung - 1}"] if rung else [])
        workflow.step(f"join{rung}", noop, after=names)
    return _checked(workflow)


def warm_up(slots: int, seconds: float) -> Workflow:
    """One step for each slot, long enough that no slot takes two."""
    workflow = Workflow(f"warm_{slots}", register=False)
    for at in range(slots):
        workflow.step(f"s{at}", warm, seconds=seconds)
    return _checked(workflow)


def compared() -> list[Shape]:
    """The shapes of the comparison with their goals, bundling on and off (None: no goal was set)."""
    return [
        Shape("independent_3000", independent(3000), 10.0, 0.9),
        Shape("chain_500", chain(500), 3.0, 1.3),
        Shape("chain_2000", chain(2000), 8.0, 4.0),
        Shape("fanin_1000", fanin(1000)),
        Shape("fanin_10000", fanin(10_000), 30.0, 3.0),
        Shape("ladder_50x11", ladder(50, 10), 30.0, 6.0),
    ]


def _checked(workflow: Workflow) -> Workflow:
    workflow.validate()
    return workflow
