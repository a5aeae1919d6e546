"""Actions that grow their run; workers import this module by name."""

from __future__ import annotations

import os
import signal
from typing import Any

from steps import record, summed

from trellis.tasks.errors import DefinitionError
from trellis.workflows import Context, Retry, action


@action(name="plan")
def plan(ctx: Context, *, parts: list[dict[str, Any]], fails: bool = False) -> list[str]:
    """Appends fragments that are given as data."""
    names = [name for part in parts for name in ctx.append(part)]
    if fails:
        raise RuntimeError("after the append")
    return names


@action(name="plan_late", retries=Retry(attempts=3, base=0, jitter=0))
def plan_late(ctx: Context, ledger: str, attempts: int) -> int:
    """Appends at each attempt, and fails before the given one."""
    record(ledger, ctx)
    more = ctx.fragment()
    more.step(f"try{ctx.attempt}", "effect", ledger=ledger, value=ctx.attempt)
    ctx.append(more)
    if ctx.attempt < attempts:
        raise ConnectionError("not yet")
    return ctx.attempt


@action(name="plan_or_say")
def plan_or_say(ctx: Context, parts: list[dict[str, Any]]) -> list[str]:
    """What is wrong with each of some fragments; the right ones are appended."""
    said = []
    for part in parts:
        try:
            ctx.append(part)
        except DefinitionError as error:
            said.append(str(error))
    return said


@action(name="plan_dies")
def plan_dies(ctx: Context, ledger: str) -> int:
    """Appends, and on its first attempt takes its process down before it returns."""
    record(ledger, ctx)
    ctx.append({"steps": {"once": {"action": "effect", "inputs": {"ledger": ledger}}}})
    if ctx.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return ctx.attempt


@action(name="down")
def down(n: int, ctx: Context) -> int:
    """Appends itself with one less, n times in all."""
    if n > 1:
        more = ctx.fragment()
        more.step("down", "down", n=n - 1)
        ctx.append(more)
    return n


@action(name="fan")
def fan(n: int, ctx: Context) -> None:
    """Appends n steps that know nothing of each other."""
    more = ctx.fragment()
    for number in range(n):
        more.step(f"s{number}", "add", a=number)
    ctx.append(more)


@action(name="reads_all")
def reads_all(step: str, ctx: Context) -> dict[str, Any]:
    """What a step has appended."""
    return {name: [found.state, found.result] for name, found in ctx.appended(step).items()}


@action(name="reads_one")
def reads_one(step: str, ctx: Context) -> Any:
    """The result of a step by its name."""
    return ctx.result(step)


@action(name="refers")
def refers(step: str, ctx: Context) -> None:
    """Appends a step that uses the result of a finished one."""
    more = ctx.fragment()
    found = more.done(step)
    more.step("sum", "combine", parts=[found, 0], number=1)
    more.step("text", "returns", value=f"{found}!")
    ctx.append(more)


@action(name="plays_and_grows")
def plays_and_grows(
    ledger: str, ctx: Context, own: int, parts: list[Any], more: dict[str, Any], fails: int = 0
) -> int:
    """A sum, which the steps that it appends get as well; attempts that fail have appended them too."""
    record(ledger, ctx)
    value = summed(own, parts)
    for step in more.values():
        inputs = step.get("inputs", {})
        if "ledger" in inputs:
            step["inputs"] = {**inputs, "ledger": ledger, "parts": [*inputs["parts"], value]}
    ctx.append({"steps": more})
    if ctx.attempt <= fails:
        raise ValueError(f"attempt {ctx.attempt}")
    return value
