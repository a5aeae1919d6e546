"""Actions that go round in loops; workers import this module by name."""

from __future__ import annotations

from typing import Any

from steps import record, summed

from trellis.workflows import Context, Retry, action


@action(name="improve")
def improve(draft: dict[str, Any], step: float = 0.25) -> dict[str, Any]:
    """A draft with a better score."""
    return {"score": draft["score"] + step, "turns": draft.get("turns", 0) + 1}


@action(name="count_up")
def count_up(n: int | None = None, by: int = 1) -> int:
    """One more."""
    return (n or 0) + by


@action(name="shaky", retries=Retry(attempts=3, base=0, jitter=0))
def shaky(n: int | None, ledger: str, ctx: Context) -> int:
    """One more, at the second attempt."""
    record(ledger, ctx)
    if ctx.attempt == 1:
        raise ConnectionError("the first attempt")
    return (n or 0) + 1


@action(name="breaks_at")
def breaks_at(n: int | None, at: int) -> int:
    """One more, until it breaks."""
    if (n or 0) >= at:
        raise RuntimeError(f"broke at {n}")
    return (n or 0) + 1


@action(name="turns_and_grows")
def turns_and_grows(n: int | None, ctx: Context) -> int:
    """Appends a step at each turn, and reads that of the turn before."""
    now = (n or 0) + 1
    if n:
        assert ctx.result(f"think[{n - 1}].act") == n
    more = ctx.fragment()
    more.step("act", "returns", value=now)
    ctx.append(more)
    return now


@action(name="plays_a_turn")
def plays_a_turn(
    ledger: str, ctx: Context, previous: int, index: int, own: int, parts: list[Any], fails: list[int]
) -> int:
    """What the turn before gave, and a sum; the first attempts of each turn fail as often as is said of it."""
    record(ledger, ctx)
    if ctx.attempt <= fails[index]:
        raise ValueError(f"attempt {ctx.attempt}")
    return summed(previous + own, parts)
