"""The bodies of the benchmarks. Workers load this module by name (TRELLIS_IMPORTS=actions)."""

from __future__ import annotations

import time

from trellis.workflows import action


@action(name="bench.noop")
def noop() -> None:
    """Nothing: what is left is overhead."""


@action(name="bench.work")
def work(seconds: float) -> None:
    """A task of a recorded workflow, asleep for as long as it ran."""
    time.sleep(seconds)


# The same under other names, so that each kind of task of a recorded workflow has a mean of its own.
KINDS = [action(name=f"bench.kind_{number}")(work.contract.function) for number in range(256)]


@action(name="bench.warm")
def warm(seconds: float) -> None:
    """Like `work`, for warming up: what Trellis learns of its duration must not bear on `work`."""
    time.sleep(seconds)
