"""Runs that lose workers on their way. The engine's are begun before all else: it takes leases to notice, and meanwhile
the other tests run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import steps

from trellis.workflows import Workflow

# Steps with an effect that may happen once, and where their worker is lost: before or after it.
DOUBTFUL: dict[str, tuple[Any, str]] = {
    "asked_done": (steps.charge_ask, "after"),
    "asked_retry": (steps.charge_ask, "before"),
    "asked_fail": (steps.charge_ask, "after"),
    "repeated": (steps.charge_retry, "after"),
    "probed_yes": (steps.charge_probe, "after"),
    "probed_no": (steps.charge_probe, "before"),
}


def lost(folder: Path) -> Workflow:
    """One step that takes a worker down, and one that takes down each."""
    wf = Workflow("lost", register=False)
    once = wf.step("once", steps.dies, ledger=str(folder / "ledger"), times=1)
    wf.step("behind", steps.add, a=once)
    wf.step("always", steps.dies, ledger=str(folder / "ledger"), times=99)
    return wf


def doubtful(folder: Path) -> Workflow:
    """Each step has a ledger of its own."""
    wf = Workflow("doubtful", register=False)
    for name, (action, where) in DOUBTFUL.items():
        wf.step(name, action, ledger=str(folder / name), where=where, on_failure="skip")
    return wf


CRASHING: dict[str, Callable[[Path], Workflow]] = {"lost": lost, "doubtful": doubtful}
