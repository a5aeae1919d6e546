"""Actions for the tests; workers import this module by name."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trellis.workflows import Artifact, Context, Happened, Retry, action

FAST = Retry(attempts=5, base=0.05, jitter=0)


def record(ledger: str, ctx: Context, note: str = "") -> None:
    """One effect in the outside world: a line in a file, appended by one write."""
    line = f"{ctx.run_id} {ctx.step} {ctx.attempt} {os.getpid()} {note}\n"
    descriptor = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


@action(name="noop")
def noop() -> None:
    """Nothing."""


@action(name="add")
def add(a: int, b: int = 1) -> int:
    """A sum."""
    return a + b


@action(name="total")
def total(values: list[int]) -> int:
    """The sum of a list."""
    return sum(values)


@action(name="numbers")
def numbers(n: int) -> list[int]:
    """0 … n - 1."""
    return list(range(n))


@action(name="combine")
def combine(parts: list[Any], number: int) -> int:
    """A number plus all parts; a list counts as its sum."""
    return number + sum(sum(part) if isinstance(part, list) else part for part in parts)


@action(name="combine_and_fail")
def combine_and_fail(parts: list[Any], number: int) -> int:
    """Looks at its inputs and fails."""
    raise RuntimeError(f"{len(parts)} parts and {number}")


@action(name="combine_flaky", retries=Retry(attempts=2, base=0, jitter=0))
def combine_flaky(parts: list[Any], number: int, ledger: str, ctx: Context) -> int:
    """Fails on its first attempt."""
    record(ledger, ctx)
    if ctx.attempt == 1:
        raise ConnectionError("the first attempt")
    return combine.contract.function(parts, number)


@action(name="effect")
def effect(ledger: str, ctx: Context, value: Any = None) -> Any:
    """Leaves a line in the ledger."""
    record(ledger, ctx)
    return value


@action(name="effect_once", effects="once")
def effect_once(ledger: str, ctx: Context) -> None:
    """Leaves a line in the ledger, recorded alone."""
    record(ledger, ctx)


def look_until(holds: Callable[[], bool], between: Callable[[], None]) -> None:
    """Look again and again, and do something between two looks."""
    while not holds():
        between()
        time.sleep(0.01)


@action(name="wait_for")
def wait_for(ledger: str, file: str, ctx: Context) -> str:
    """Leaves a line, then waits until a file exists."""
    record(ledger, ctx, "begun")
    look_until(Path(file).exists, lambda: ctx.heartbeat({"waiting": file}))
    record(ledger, ctx, "done")
    return file


@action(name="listens")
def listens(ledger: str, ctx: Context, tidy: str | None = None) -> None:
    """Leaves line after line until it hears that it is cancelled; then tidies up, until a file exists."""
    record(ledger, ctx, "begun")
    look_until(lambda: ctx.cancelled, lambda: record(ledger, ctx, "at-work"))
    record(ledger, ctx, "heard")
    look_until(Path(tidy or ledger).exists, lambda: None)
    record(ledger, ctx, "done")


@action(name="inside")
def inside(ledger: str, ctx: Context) -> None:
    """Leaves a line when it begins, and one when it ends a moment later."""
    record(ledger, ctx, "begun")
    time.sleep(0.02)
    record(ledger, ctx, "done")


@action(name="stamps")
def stamps(ledger: str, ctx: Context) -> None:
    """Leaves a line with the time."""
    record(ledger, ctx, f"{time.time():.6f}")


@action(name="fails")
def fails(message: str = "no") -> int:
    """Always fails."""
    raise RuntimeError(message)


@action(name="fails_until", retries=FAST)
def fails_until(ledger: str, attempt: int, ctx: Context) -> int:
    """Fails before the given attempt."""
    record(ledger, ctx)
    if ctx.attempt < attempt:
        raise ConnectionError(f"attempt {ctx.attempt}")
    return ctx.attempt


@action(name="dies")
def dies(ledger: str, times: int, ctx: Context) -> int:
    """Kills its own process on the first attempts."""
    record(ledger, ctx)
    if ctx.attempt <= times:
        vanish()
    return ctx.attempt


@action(name="sleeps", timeout=1.0)
def sleeps(ledger: str, ctx: Context) -> None:
    """Sleeps much longer than it may."""
    record(ledger, ctx)
    time.sleep(600)


@action(name="naps", timeout=0.5)
def naps(ledger: str, ctx: Context) -> None:
    """Many short sleeps, longer in all than it may."""
    record(ledger, ctx)
    for _ in range(6000):
        last(0.01)


@action(name="spins", timeout=1.0)
def spins(ledger: str, ctx: Context) -> None:
    """A busy loop that swallows every exception."""
    record(ledger, ctx)
    end = time.monotonic() + 600
    while time.monotonic() < end:
        try:
            while time.monotonic() < end:
                pass
        except Exception:
            continue


@action(name="stuck_in_c", timeout=1.0)
def stuck_in_c(ledger: str, ctx: Context) -> None:
    """A C call that holds the interpreter and never looks at a signal."""
    record(ledger, ctx)
    pow(3, 3**18, 10**9_000_000)


@action(name="async_add")
async def async_add(a: int, b: int) -> int:
    """A sum, from a coroutine."""
    return a + b


@action(name="writes")
def writes(text: str, ctx: Context) -> Artifact:
    """Writes an artifact."""
    return ctx.artifact("parts/text.txt").write_text(text)


@action(name="reads")
def reads(file: Artifact) -> str:
    """Reads one."""
    return file.read_text()


@action(name="returns")
def returns(value: Any) -> Any:
    """The value itself."""
    return value


@action(name="odd")
def odd(kind: str) -> Any:
    """A value that JSON cannot hold."""
    return {"nan": float("nan"), "nul": "a\x00b", "surrogate": "\ud800"}[kind]


@action(name="huge")
def huge(digits: int) -> int:
    """A number of this many digits."""
    return 10 ** (digits - 1)


@action(name="exits")
def exits(code: int) -> None:
    """Calls sys.exit."""
    sys.exit(code)


class Unspeakable(Exception):
    """An exception that cannot be told."""

    def __str__(self) -> str:
        raise ValueError("no words")


@action(name="speechless")
def speechless() -> None:
    """Raises one."""
    raise Unspeakable


@action(name="beats")
def beats(progress: Any, ctx: Context) -> None:
    """One heartbeat."""
    ctx.heartbeat(progress)


@action(name="big")
def big(size: int) -> str:
    """A text of this many characters."""
    return "x" * size


@action(name="logs")
def logs(secret: str, ctx: Context) -> None:
    """Writes a log line."""
    ctx.log.info("step.speaks", api_key=secret, address=f"postgresql://u:{secret}@host/db")


@action(name="where")
def where(ctx: Context) -> dict[str, Any]:
    """What the context says."""
    return {
        "run_id": ctx.run_id, "step": ctx.step, "attempt": ctx.attempt, "key": ctx.idempotency_key,
        "correlation_id": ctx.correlation_id,
    }  # fmt: skip


@action(name="works_if")
def works_if(file: str, ctx: Context, ledger: str = "", value: Any = None) -> Any:
    """Works when a file exists, and fails when it does not."""
    if ledger:
        record(ledger, ctx)
    if not Path(file).exists():
        raise FileNotFoundError(f"no {Path(file).name} yet")
    return value


@action(name="kind")
def kind(value: Any) -> str:
    """The type that a value has inside a body."""
    return type(value).__name__


@action(name="fails_on")
def fails_on(value: Any, bad: Any) -> Any:
    """Fails for one value and returns the others."""
    if value == bad:
        raise ValueError(str(value))
    return value


@action(name="parses")
def parses(text: str) -> Any:
    """The value of a JSON text, as Python reads it."""
    return json.loads(text)


def summed(own: int, parts: list[Any]) -> int:
    """A sum of numbers, lists of them, and 1 for all else."""

    def number(value: Any) -> int:
        if isinstance(value, list):
            return sum(map(number, value))
        return value if isinstance(value, int) else 1

    return (own + number(parts)) % 1009


@action(name="play")
def play(ledger: str, ctx: Context, own: int, parts: list[Any], fails: int = 0) -> int:
    """A sum; its first attempts fail."""
    record(ledger, ctx)
    if ctx.attempt <= fails:
        raise ValueError(f"attempt {ctx.attempt}")
    return summed(own, parts)


@action(name="listed")
def listed(n: Any) -> list[dict[str, int]]:
    """As many items as the number divided by 5 leaves."""
    return [{"own": place, "fails": 0} for place in range(n % 5)]


@action(name="works")
def works(ledger: str, seconds: float, ctx: Context, value: Any = None) -> Any:
    """Leaves a line when it begins and one when it is done, and takes its time between them."""
    record(ledger, ctx, "begun")
    time.sleep(seconds)
    record(ledger, ctx, "done")
    return value


def vanish() -> None:
    """The end of this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def last(seconds: float) -> None:
    """Take so long."""
    time.sleep(seconds)


def _crash(ledger: str, where: str, at: str) -> None:
    """Kill this process at a named point, the first time that it gets there."""
    mark = Path(f"{ledger}.{at}")
    if where == at and not mark.exists():
        mark.touch()
        vanish()


def _effect_of(ledger: str, where: str, ctx: Context) -> str:
    """An effect in the outside world, under the step's key, with a crash where it is asked for."""
    _crash(ledger, where, "before")
    record(ledger, ctx, ctx.idempotency_key)
    _crash(ledger, where, "after")
    if where == "hang":
        last(600)
    if where == "raise":
        raise RuntimeError("the service said no")
    return f"done by attempt {ctx.attempt}"


def looks(ledger: str, where: str, ctx: Context) -> Happened | None:
    """Whether the step's key stands in the ledger."""
    _crash(ledger, where, "probe")
    record(f"{ledger}.probes", ctx)
    path = Path(ledger)
    found = path.exists() and any(
        line.split()[4:] == [ctx.idempotency_key] for line in path.read_text().splitlines()
    )
    return Happened("found by the probe") if found else None


@action(name="charge_ask", effects="once")
def charge_ask(ledger: str, where: str, ctx: Context) -> str:
    """In doubt, a person is asked."""
    return _effect_of(ledger, where, ctx)


@action(name="charge_retry", effects="once", in_doubt="retry")
def charge_retry(ledger: str, where: str, ctx: Context) -> str:
    """In doubt, it runs again."""
    return _effect_of(ledger, where, ctx)


@action(name="charge_probe", effects="once", in_doubt=looks)
def charge_probe(ledger: str, where: str, ctx: Context) -> str:
    """In doubt, the ledger is looked at."""
    return _effect_of(ledger, where, ctx)


@action(name="books")
def books(ledger: str, where: str, ctx: Context) -> str:
    """Writes a row in the step's transaction."""
    with ctx.transaction() as sql:
        sql.execute("INSERT INTO booking (key, attempt) VALUES (%s, %s)", (ctx.idempotency_key, ctx.attempt))
    _crash(ledger, where, "before")
    if where == "hang":
        time.sleep(600)
    if where == "raise":
        raise RuntimeError("after the insert")
    return "booked"


@action(name="charge_repeatable")
def charge_repeatable(ledger: str, where: str, ctx: Context) -> str:
    """May be repeated."""
    return _effect_of(ledger, where, ctx)


@action(name="hears")
def hears(outcome: Any, ledger: str) -> Any:
    """Leaves a line with what it is told, and says it again."""
    with Path(ledger).open("a") as file:
        file.write(json.dumps(outcome) + "\n")
    return outcome


@action(name="counts")
def counts(ledger: str, n: int, ctx: Context) -> list[int]:
    """0 … n - 1, with a line in the ledger."""
    record(ledger, ctx)
    return list(range(n))
