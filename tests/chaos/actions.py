"""The bodies of the suite's programs. Each leaves its lines in the ledger and gives a value that can be foretold.

The law: a value depends on the inputs alone, never on attempts or clocks, so the program's model knows it.
"""

from __future__ import annotations

import errno
import time
from typing import Any

from trellis.workflows import Artifact, Context, Happened, Retry, action

from . import ledger
from .sums import total
from .trigger import folder, passed

SOON = Retry(attempts=9, base=0.05, max_delay=0.3, jitter=0.5)
PATIENT = Retry(attempts=1000, backoff="constant", base=0.2)
BIG = "x" * 4000


def told(ctx: Context, kind: str) -> None:
    """One line of this step in the ledger."""
    ledger.write(folder(), kind, ctx.run_id, ctx.step, ctx.attempt, ctx.idempotency_key)


def leave(ctx: Context) -> None:
    """The effect itself, with its two points."""
    passed("before the effect")
    told(ctx, "effect")
    passed("after the effect")


@action(name="chaos.effect")
def effect(value: int, parts: list[Any], ctx: Context) -> int:
    """An effect, and a number plus all that went in."""
    told(ctx, "begin")
    leave(ctx)
    told(ctx, "end")
    return value + total(parts)


@action(name="chaos.slow")
def slow(value: int, parts: list[Any], seconds: float, ctx: Context) -> int:
    """The same with some heartbeats on the way."""
    told(ctx, "begin")
    for _ in range(4):
        time.sleep(seconds / 4)
        ctx.heartbeat({"value": value})
    leave(ctx)
    told(ctx, "end")
    return value + total(parts)


@action(name="chaos.flaky", retries=SOON)
def flaky(value: int, parts: list[Any], times: int, ctx: Context) -> int:
    """Fails on its first attempts."""
    told(ctx, "begin")
    if ctx.attempt <= times:
        raise ConnectionError(f"attempt {ctx.attempt} of {times} that fail")
    leave(ctx)
    told(ctx, "end")
    return value + total(parts)


@action(name="chaos.broken", retries=Retry(attempts=2, base=0.05))
def broken(value: int, parts: list[Any], ctx: Context) -> int:
    """Always fails."""
    told(ctx, "begin")
    raise RuntimeError(f"{value} is out of order")


@action(name="chaos.listing")
def listing(value: int, parts: list[Any], count: int, ctx: Context) -> list[int]:
    """A list, known only when it has run."""
    told(ctx, "begin")
    leave(ctx)
    told(ctx, "end")
    return [value + total(parts) + number for number in range(count)]


@action(name="chaos.store", retries=PATIENT)
def store(value: int, parts: list[Any], ctx: Context) -> Artifact:
    """Writes an artifact; while the disk is full it tries again."""
    return _store(value, parts, ctx)


@action(name="chaos.store_or_not")
def store_or_not(value: int, parts: list[Any], ctx: Context) -> Artifact:
    """Writes an artifact, or fails where the disk is full."""
    return _store(value, parts, ctx)


def _store(value: int, parts: list[Any], ctx: Context) -> Artifact:
    told(ctx, "begin")
    passed("before the effect")
    try:
        written = ctx.artifact("numbers.txt").write_text(f"{value + total(parts)} {BIG}")
    except OSError as error:
        told(ctx, "full" if error.errno == errno.ENOSPC else "odd")
        raise
    told(ctx, "effect")
    passed("after the effect")
    told(ctx, "end")
    return written


@action(name="chaos.load")
def load(file: Artifact, ctx: Context) -> int:
    """Reads what another step has written: all of it is there."""
    told(ctx, "begin")
    number, _, rest = file.read_text().partition(" ")
    assert rest == BIG, "a torn artifact"
    leave(ctx)
    told(ctx, "end")
    return int(number)


@action(name="chaos.append")
def append(value: int, parts: list[Any], count: int, ctx: Context) -> int:
    """Appends a chain and a map to its run."""
    told(ctx, "begin")
    more = ctx.fragment()
    last = more.step("n0", effect, value=value, parts=parts)
    for number in range(1, count):
        last = more.step(f"n{number}", effect, value=value, parts=[last])
    more.map("m", effect, over=list(range(count)), value=value, parts=[more.item, last])
    ctx.append(more)
    leave(ctx)
    told(ctx, "end")
    return count


@action(name="chaos.appended")
def appended(parent: str, parts: list[Any], ctx: Context) -> int:
    """The sum of what a step has appended."""
    told(ctx, "begin")
    value = total([step.result for step in ctx.appended(parent).values()])
    leave(ctx)
    told(ctx, "end")
    return value


@action(name="chaos.turn")
def turn(previous: int, parts: list[Any], ctx: Context) -> int:
    """A turn of a loop: one more than the turn before, and all that goes in."""
    told(ctx, "begin")
    leave(ctx)
    told(ctx, "end")
    return previous + 1 + total(parts)


@action(name="chaos.undo", retries=PATIENT)
def undo(value: int, ctx: Context) -> int:
    """Takes back what a step did."""
    told(ctx, "begin")
    leave(ctx)
    told(ctx, "end")
    return value


@action(name="chaos.once", effects="once")
def once(value: int, parts: list[Any], ctx: Context) -> int:
    """An effect that may happen once only; where nobody knows, a person (the harness) is asked."""
    return _announced(value, parts, ctx)


def _announced(value: int, parts: list[Any], ctx: Context) -> int:
    """An effect, and a word when nobody is at it any more."""
    told(ctx, "begin")
    try:
        leave(ctx)
    finally:
        told(ctx, "out")
    return value + total(parts)


def looked_up(value: int, parts: list[Any], ctx: Context) -> Happened | None:
    """Whether the ledger knows the effect."""
    known = ledger.read(folder())[ctx.run_id]
    happened = any(line.kind == "effect" and line.key == ctx.idempotency_key for line in known)
    return Happened(value + total(parts)) if happened else None


@action(name="chaos.probed", effects="once", in_doubt=looked_up)
def probed(value: int, parts: list[Any], ctx: Context) -> int:
    """The same; where nobody knows, the ledger is asked."""
    return _announced(value, parts, ctx)


@action(name="chaos.booked")
def booked(value: int, parts: list[Any], ctx: Context) -> int:
    """A row in our database, which commits with the step."""
    told(ctx, "begin")
    with ctx.transaction() as connection:
        connection.execute("INSERT INTO chaos_book (run_id, step) VALUES (%s, %s)", [ctx.run_id, ctx.step])
    leave(ctx)
    told(ctx, "end")
    return value + total(parts)
