"""Steps that wait for the outside world: a signal, a time.

The law: who waits holds no worker and costs no work. The step is parked; whoever brings what it waits for wakes
it, and its time limit stands in an index that only looks at what is due. What came before the wait is kept.
"""

from __future__ import annotations

import time

from ..tasks.database import Connection
from ..tasks.errors import WaitExpired
from . import wire
from .execution import failed
from .here import Here
from .kinds import CONTRACTS
from .records import Claimed, Json, Outcome, Parked
from .states import StepState


def noted(step: Claimed) -> dict[str, Json]:
    """What the step noted when this attempt of it was parked: nothing from an attempt before."""
    note = step.wait or {}
    return note if note.get("failures") == step.failures else {}


def parked(
    step: Claimed,
    waits_for: str,
    note: dict[str, Json] | None = None,
    *,
    seconds: float | None = None,
    until: str | None = None,
) -> Parked:
    """Put the step aside for so many seconds, or until that moment (ISO 8601), at most; for ever without either."""
    wait = {**(note or {}), "failures": step.failures}
    return Parked(step.idx, step.lease, waits_for, wait, None if until else seconds, until)


def succeeded(step: Claimed, value: Json) -> Outcome:
    """The end of a wait, with its result."""
    return Outcome(
        step.idx, step.lease, StepState.SUCCEEDED, wire.dumps(value).encode(), ended=time.monotonic()
    )


def sleep(here: Here, step: Claimed, inputs: dict[str, Json]) -> Outcome | Parked:
    """Wait so many seconds, from when the step's turn came."""
    given = CONTRACTS[step.action].validate(inputs)
    if noted(step).get("woken") == "time" or not given["seconds"]:
        return succeeded(step, None)
    return parked(step, "time", seconds=given["seconds"])


def until(here: Here, step: Claimed, inputs: dict[str, Json]) -> Outcome | Parked:
    """Wait for a moment; one that is past is due with the next tick, for the database's clock decides."""
    given = CONTRACTS[step.action].validate(inputs)
    if noted(step).get("woken") == "time":
        return succeeded(step, None)
    return parked(step, "time", until=given["moment"].isoformat())


def wait_for(here: Here, step: Claimed, inputs: dict[str, Json]) -> Outcome | None:
    """Wait for a signal, the oldest that no other step has taken; its payload is the step's result."""
    given = CONTRACTS[step.action].validate(inputs)
    name, began = given["signal"], time.monotonic()
    note = noted(step)

    def decision(connection: Connection) -> Outcome | Parked:
        found = here.journal.take_signal(connection, here.run, name, step.idx)
        if found is not None:
            return succeeded(step, found.payload)
        if note.get("woken") != "time":
            return parked(step, f"signal:{name}", seconds=given.get("timeout"), until=note.get("until"))
        if "default" in inputs:
            return succeeded(step, given["default"])
        return failed(step, WaitExpired(f"signal {name!r}", given["timeout"]), began)

    return here.journal.decide(here.run, decision)
