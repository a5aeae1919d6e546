"""The kinds of step that the engine runs itself, by the name of their action.

The law: one table. Whatever waits, grows or branches is an ordinary step of one of these kinds: it is claimed,
fenced, retried and recovered like any other, and answers with an outcome, with what it completed on its own,
with what it waits for, or with nothing where it was parked already.
"""

from __future__ import annotations

from collections.abc import Callable

from . import approvals, children, foreign, growth, kinds, looping, plan, spec, waiting
from .here import Here
from .records import Claimed, Json, Outcome, Parked, Recorded

Native = Callable[[Here, Claimed, dict[str, Json]], Outcome | Parked | Recorded | None]

NATIVES: dict[str, Native] = {
    plan.EXPAND: growth.expand,
    plan.GATHER: growth.gather,
    plan.LOOP: looping.turn,
    kinds.WAIT_FOR: waiting.wait_for,
    kinds.APPROVE: approvals.approve,
    kinds.SLEEP: waiting.sleep,
    kinds.UNTIL: waiting.until,
    spec.CHILD: children.child,
    spec.TASK: foreign.call,
}
