"""What has to become of a random program, worked out by hand.

The law: `expected` knows nothing of leases, messages or time. It reads the program from the front to the back and says
of each step how it ends, what it gives and how many effects it leaves. It shares no line with the engine, and none with
the in-process journal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from random_programs import Program, Step

MODULUS = 1009
_NEVER_OVER = {"fatal", "open", "never"}


class End(NamedTuple):
    """How a step ends where nothing ends the run before.

    succeeded, failed (with its default as value), lost (failed, and skips what is behind it), skipped, fatal (fails the
    run), open (waits for ever), never (behind one of those).
    """

    state: str
    value: Any = None
    effects: int = 0
    apart: bool = False  # a step of a child run, whose rows are not the run's


Ends = dict[str, End]


def expected(program: Program) -> Ends:
    """How each step of a run ends: also items of maps, turns of loops, what steps append, and steps of child runs."""
    return _all_ends(program.steps, program.n)


def _all_ends(steps: Iterable[Step], n: int, carry: int = 0) -> Ends:
    """`carry`: what appended steps get of the step that appends them."""
    ends: Ends = {}
    for step in steps:
        ends.update(_ends(step, n, ends, carry))
    return ends


def _ends(step: Step, n: int, ends: Ends, carry: int) -> Ends:
    front = {end.state for name in step.parents for end in _with_appended(name, ends)}
    if front & _NEVER_OVER:
        return {step.name: End("never")}
    front = {ends[name].state for name in step.parents}  # a skip inside of what was appended stays there
    if front & {"skipped", "lost"} and (not step.join or front <= {"skipped", "lost"}):
        return {step.name: End("skipped")}
    got = sum(_number(ends[name].value) for name in step.data)
    if step.kind == "signal":
        return {step.name: End("succeeded", step.own) if step.told else End("open")}
    if step.kind == "nap":
        return {step.name: End("succeeded")}
    if step.kind == "list":
        return {step.name: End("succeeded", [{"own": place, "fails": 0} for place in range(got % 5)])}
    if step.kind == "child":
        return _child_ends(step)
    return _worked(step, n, ends, got + carry)


def _with_appended(name: str, ends: Ends) -> list[End]:
    """A step and all that it has appended: what is behind the one is behind the others."""
    return [end for each, end in ends.items() if each == name or each.startswith(f"{name}.")]


def _worked(step: Step, n: int, ends: Ends, got: int) -> Ends:
    """A step with a body: it runs, or its condition says no."""
    if step.kind == "map":
        items = step.items
        if step.over is not None:
            items = tuple((each["own"], each["fails"]) for each in ends[step.over].value)
        return _map_ends(step, items, got)
    if step.kind == "loop":
        return _loop_ends(step, got)
    if step.kind == "append":
        return _append_ends(step, n, got)
    if step.when is not None:
        name, bound = step.when
        if not (ends[name].value % bound == 0 if name else n > bound):
            return {step.name: End("skipped")}
    return {step.name: _body(step, step.own, step.fails, got)}


def _body(step: Step, own: int, fails: int, got: int) -> End:
    if fails < step.attempts:
        return End("succeeded", (own + got) % MODULUS, fails + 1)
    return _failed(step)._replace(effects=step.attempts)


def _failed(step: Step) -> End:
    if step.policy is None:
        return End("fatal")
    return End("lost") if step.policy == "skip" else End("failed", step.policy)


def _map_ends(step: Step, items: tuple[tuple[int, int], ...], got: int) -> Ends:
    each = {f"{step.name}[{place}]": _body(step, own, fails, got) for place, (own, fails) in enumerate(items)}
    if step.lost != "fail":
        return {**_kept(step, each), **{name: _spared(end) for name, end in each.items()}}
    states = {end.state for end in each.values()}
    whole = End("succeeded", [end.value for end in each.values()])
    if "fatal" in states:
        whole = End("never")
    elif "lost" in states:
        whole = End("skipped")
    return {**each, step.name: whole}


def _kept(step: Step, each: Ends) -> Ends:
    """The list of a map whose items may fail: without them, or with their errors."""
    error = {"error": {"type": "ValueError", "message": f"attempt {step.attempts}"}}
    values = [error if end.state == "fatal" else end.value for end in each.values()]
    if step.lost == "skip":
        values = [end.value for end in each.values() if end.state != "fatal"]
    return {step.name: End("succeeded", values)}


def _spared(end: End) -> End:
    """An item that may fail."""
    return End("failed", None, end.effects) if end.state == "fatal" else end


def _child_ends(step: Step) -> Ends:
    ends = {name: end._replace(apart=True) for name, end in _all_ends(step.inner, 0).items()}
    if any(end.state == "fatal" for end in ends.values()):
        cut = {name: End("never", None, end.effects, apart=True) for name, end in ends.items()}
        return {**cut, step.name: _failed(step)}
    return {**ends, step.name: End("succeeded", ends[f"{step.name}end"].value)}


def _append_ends(step: Step, n: int, got: int) -> Ends:
    """An attempt that fails has appended nothing."""
    own = _body(step, step.own, step.fails, got)
    if own.state != "succeeded":
        return {step.name: own}
    inner = _all_ends(step.inner, n, carry=own.value)
    return {step.name: own, **{f"{step.name}.{name}": end for name, end in inner.items()}}


def _loop_ends(step: Step, got: int) -> Ends:
    """Turns, each with the row behind it that looks at what came of it."""
    ends: Ends = {}
    value = step.own
    for index, fails in enumerate(step.turns):
        turn = _body(step, value + step.own, fails, got)
        look = f"{step.name}[?{index}]"
        ends[f"{step.name}[{index}]"] = turn
        if turn.state == "fatal":
            return {**ends, look: End("never"), step.name: End("never")}
        if turn.state == "lost":
            return {**ends, look: End("skipped"), step.name: End("skipped")}
        value = turn.value
        if turn.state == "failed" or _is_over(step, index, value):
            return {**ends, look: End("succeeded"), step.name: End("succeeded", value)}
        ends[look] = End("succeeded")
    if step.on_limit == "stop":
        return {**ends, step.name: End("succeeded", value)}
    ends[look] = _failed(step)
    after = {"fatal": End("never"), "lost": End("skipped"), "failed": End("succeeded", step.policy)}
    return {**ends, step.name: after[ends[look].state]}


def _is_over(step: Step, index: int, value: int) -> bool:
    what, bound = step.until
    return index + 1 >= bound if what == "index" else value % bound == 0


def _number(value: Any) -> int:
    """What a result counts in a sum; `steps.summed` has the same."""
    if isinstance(value, list):
        return sum(map(_number, value))
    return value if isinstance(value, int) else 1
