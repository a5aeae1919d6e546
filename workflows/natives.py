"""The kinds of step that the engine runs itself, by the name of their action.

The law: one table. Whatever waits, grows or branches is an ordinary step of one of these kinds: it is claimed,
fenced, retried and recovered like any other, and answers with an outcome, with what it completed on its own, or
with what it waits for.
"""

from __future__ import annotations

from collections.abc import Callable

from . import growth, plan
from .here import Here
from .records import Claimed, Json, Outcome, Parked, Recorded

Native = Callable[[Here, Claimed, dict[str, Json]], Outcome | Parked | Recorded]

NATIVES: dict[str, Native] = {
    plan.EXPAND: growth.expand,
    plan.GATHER: growth.gather,
}
