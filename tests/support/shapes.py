"""Definitions that have a native canvas; `python -m shapes NAME` applies one and prints what it carries."""

import json
import sys
from typing import Any

import steps

from trellis.workflows import Workflow


def _workflow(name: str) -> Workflow:
    return Workflow(name, params={"n": int}, register=False)


def chain() -> Workflow:
    """Five steps in a row."""
    wf = _workflow("chain")
    last: Any = wf.step("s0", steps.add, a=wf.params.n)
    for number in range(1, 5):
        last = wf.step(f"s{number}", steps.add, a=last)
    return wf


def group() -> Workflow:
    """Four steps beside each other."""
    wf = _workflow("group")
    for number in range(4):
        wf.step(f"s{number}", steps.add, a=number, b=wf.params.n)
    return wf


def chord() -> Workflow:
    """Four and their sum."""
    wf = _workflow("chord")
    wf.step("sum", steps.total, values=[wf.step(f"s{n}", steps.add, a=n, b=wf.params.n) for n in range(4)])
    return wf


def cross() -> Workflow:
    """A graph that is neither: c needs a, d needs a and b, e needs b, c and d."""
    wf = _workflow("cross")
    a, b = wf.step("a", steps.add, a=wf.params.n), wf.step("b", steps.add, a=10)
    c = wf.step("c", steps.add, a=a)
    d = wf.step("d", steps.total, values=[a, b])
    wf.step("e", steps.total, values=[c, d, b])
    return wf


ALL = {"chain": chain, "group": group, "chord": chord, "cross": cross}

if __name__ == "__main__":
    found = ALL[sys.argv[1]]().canvas(n=3).apply_async().get(timeout=30)
    parts = found if isinstance(found, list) else [found]
    print(json.dumps({step: value for part in parts for step, value in part.items()}))
