"""Random programs: a seed becomes a workflow, and what has to become of it, worked out by hand.

The law: `expected` knows nothing of attempts, leases, messages or time. It reads the program from the front to the
back and says of each step how it ends, what it gives and how many effects it leaves. It shares no line with the
engine, and none with the in-process journal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any, NamedTuple

import steps

from trellis.workflows import Default, Retry, Workflow

KINDS = {"play": 8, "map": 3, "signal": 2, "nap": 1, "child": 2}
MODULUS = 1009


@dataclass(frozen=True)
class Step:
    """One step of a program. Its value is the sum of what it gets and its own number."""

    name: str
    kind: str = "play"
    own: int = 0
    data: tuple[str, ...] = ()  # steps whose results it gets
    after: tuple[str, ...] = ()  # steps that it only waits for
    fails: int = 0  # attempts that fail
    attempts: int = 1
    policy: Any = None  # None (the run fails with it), "skip", or a number as default
    when: tuple[str, int] | None = (
        None  # a step and a divisor of its result, or "" and a bound of the parameter
    )
    items: tuple[tuple[int, int], ...] = ()  # of a map: own number and failing attempts
    over: str | None = None  # or: the step that gives the list
    lanes: int | None = None
    lost: str = "fail"  # of a map: what an item without another attempt does
    join: bool = False  # it runs although something in front of it was skipped, unless all was
    told: bool = True  # of a signal: whether anybody sends it
    inner: tuple[Step, ...] = ()  # of a child run

    @property
    def parents(self) -> set[str]:
        """All steps in front of it."""
        asked = {self.when[0]} if self.when is not None and self.when[0] else set()
        return {*self.data, *self.after, *asked, *([self.over] if self.over else [])}


@dataclass(frozen=True)
class Program:
    """Steps, each after its parents, and the parameter of the run."""

    name: str
    steps: tuple[Step, ...]
    n: int = 0

    @property
    def stuck(self) -> bool:
        """Whether it may wait for a signal that nobody sends."""
        return any(step.kind == "signal" and not step.told for step in self.steps)

    def smaller(self) -> list[Program]:
        """Programs of one step less, or with less in one of them."""
        found = [replace(self, steps=_without(self.steps, step.name)) for step in reversed(self.steps)]
        for place, step in enumerate(self.steps):
            simple = Step(step.name, own=step.own, data=step.data, after=step.after)
            if step not in (simple, replace(simple, kind=step.kind)) and step.kind == "play":
                found.append(replace(self, steps=(*self.steps[:place], simple, *self.steps[place + 1 :])))
        return [each for each in found if each.steps]


def _without(all_steps: tuple[Step, ...], name: str) -> tuple[Step, ...]:
    gone = {name}
    left: list[Step] = []
    for step in all_steps:
        if step.name in gone or step.over in gone:
            gone.add(step.name)
            continue
        when = None if step.when is not None and step.when[0] in gone else step.when
        data = tuple(each for each in step.data if each not in gone)
        after = tuple(each for each in step.after if each not in gone)
        left.append(replace(step, data=data, after=after, when=when))
    return tuple(left)


# --- drawing one


def draw(seed: int) -> Program:
    """The program of a seed."""
    rng = Random(seed)
    made: list[Step] = []
    for place in range(rng.randint(2, 9)):
        _draw_step(rng, f"s{place}", made)
    return Program(f"program-{seed}", tuple(made), rng.randint(0, 9))


def _draw_step(rng: Random, name: str, made: list[Step]) -> None:
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    names = [step.name for step in made if step.kind != "list"]
    numbers = [step.name for step in made if step.kind == "play"]
    front = tuple(rng.sample(names, min(len(names), rng.choice((0, 1, 1, 2, 3)))))
    cut = rng.randint(0, len(front))
    step = Step(name, kind, rng.randrange(100), front[:cut], front[cut:])
    if kind == "signal":
        step = replace(step, data=(), after=front, told=rng.random() > 0.12)
    elif kind == "nap":
        step = replace(step, data=(), after=front)
    elif kind == "child":
        inner = [
            _troubled(rng, Step(f"{name}c{place}", own=place), (None, 3))
            for place in range(rng.randint(1, 3))
        ]
        last = Step(f"{name}end", own=1, data=tuple(each.name for each in inner))
        step = replace(step, data=(), after=front, inner=(*inner, last), policy=rng.choice((None, 7, "skip")))
    elif kind == "map" and numbers and rng.random() < 0.4:
        made.append(Step(f"{name}list", "list", data=(rng.choice(numbers),)))
        step = replace(step, over=f"{name}list", lanes=rng.choice((None, 2)))
    elif kind == "map":
        step = _troubled(rng, step, (None, "skip", "skip", 3))
        troubles = (0, 0, 0, 0, step.fails, 0 if step.policy is None else 9)
        items = [(rng.randrange(50), rng.choice(troubles)) for _ in range(rng.randint(0, 6))]
        step = replace(step, items=tuple(items), lanes=rng.choice((None, None, 1, 2)))
        if step.policy is None:
            lost = rng.choice(("fail", "skip", "collect"))
            step = replace(step, lost=lost, items=(*step.items, (5, 9)) if lost != "fail" else step.items)
    else:
        step = _troubled(rng, step, (None, "skip", 3, 4))
        if rng.random() < 0.25:
            step = replace(step, when=(rng.choice(numbers), 2) if numbers else ("", 5))
        elif rng.random() < 0.3:
            step = replace(step, data=front, after=(), join=bool(front))
    made.append(step)


def _troubled(rng: Random, step: Step, policies: tuple[Any, ...]) -> Step:
    fails = rng.choice((0, 0, 0, 0, 1, 1, 2)) if rng.random() < 0.93 else 9
    return replace(step, attempts=rng.choice((1, 2, 3)), fails=fails, policy=rng.choice(policies))


# --- as a workflow


def workflow(program: Program) -> Workflow:
    """The program as Trellis runs it."""
    wf = Workflow(program.name, params={"n": int, "ledger": str}, register=False)
    made: dict[str, Any] = {}  # the steps themselves
    given: dict[str, Any] = {}  # what others get of them
    for step in program.steps:
        made[step.name] = given[step.name] = _add(wf, step, made, given)
        if step.kind == "child":
            given[step.name] = made[step.name][f"{step.name}end"]
    return wf


def _add(wf: Workflow, step: Step, made: dict[str, Any], given: dict[str, Any]) -> Any:
    data, after = [given[name] for name in step.data], [made[name] for name in step.after]
    if step.kind == "signal":
        return wf.wait_for(step.name, step.name, after=after)
    if step.kind == "nap":
        return wf.sleep(step.name, 0.05, after=after)
    if step.kind == "list":
        return wf.step(step.name, steps.listed, n=data[0])
    default = step.policy if step.kind != "child" else {f"{step.name}end": step.policy}
    policy = Default(default) if isinstance(step.policy, int) else step.policy
    options: dict[str, Any] = {"after": after, "on_failure": policy}
    if step.kind == "child":
        inner = workflow(Program(f"{wf.name}-{step.name}", step.inner))
        return wf.child(step.name, inner, params={"n": 0, "ledger": wf.params.ledger}, **options)
    options |= {"retry": Retry(step.attempts, base=0.01, jitter=0), "parts": data, "ledger": wf.params.ledger}
    if step.kind == "map":
        over = made[step.over] if step.over else [{"own": own, "fails": fails} for own, fails in step.items]
        options |= {"own": wf.item["own"], "fails": wf.item["fails"], "concurrency": step.lanes}
        if step.lost != "fail":
            options["on_item_failure"] = step.lost
        return wf.map(step.name, steps.play, over=over, **options)
    if step.when is not None:
        name, bound = step.when
        options["when"] = f"steps.{name} % {bound} == 0" if name else f"params.n > {bound}"
    if step.join:
        options["join"] = "any"
    return wf.step(step.name, steps.play, own=step.own, fails=step.fails, **options)


# --- what has to become of it


class End(NamedTuple):
    """How a step ends where nothing ends the run before.

    succeeded, failed (with its default as value), lost (failed, and skips what is behind it), skipped, fatal (fails the
    run), open (waits for ever), never (behind one of those).
    """

    state: str
    value: Any = None
    effects: int = 0


def expected(program: Program) -> dict[str, End]:
    """How each step of a run ends: of a map also its items; of a child also its steps."""
    ends: dict[str, End] = {}
    for step in program.steps:
        ends.update(_ends(step, program, ends))
    return ends


def _ends(step: Step, program: Program, ends: dict[str, End]) -> dict[str, End]:
    front = {ends[name].state for name in step.parents}
    if front & {"fatal", "open", "never"}:
        return {step.name: End("never")}
    if front & {"skipped", "lost"} and (not step.join or front <= {"skipped", "lost"}):
        return {step.name: End("skipped")}
    got = sum(_number(ends[name].value) for name in step.data)
    if step.kind == "signal":
        return {step.name: End("succeeded", step.own) if step.told else End("open")}
    if step.kind == "nap":
        return {step.name: End("succeeded")}
    if step.kind == "list":
        return {step.name: End("succeeded", [{"own": place, "fails": 0} for place in range(got % 5)])}
    if step.kind == "map":
        items = step.items
        if step.over is not None:
            items = tuple((each["own"], each["fails"]) for each in ends[step.over].value)
        return _map_ends(step, items, got)
    if step.kind == "child":
        return _child_ends(step)
    if step.when is not None:
        name, bound = step.when
        if not (ends[name].value % bound == 0 if name else program.n > bound):
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


def _map_ends(step: Step, items: tuple[tuple[int, int], ...], got: int) -> dict[str, End]:
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


def _kept(step: Step, each: dict[str, End]) -> dict[str, End]:
    """The list of a map whose items may fail: without them, or with their errors."""
    error = {"error": {"type": "ValueError", "message": f"attempt {step.attempts}"}}
    values = [error if end.state == "fatal" else end.value for end in each.values()]
    if step.lost == "skip":
        values = [end.value for end in each.values() if end.state != "fatal"]
    return {step.name: End("succeeded", values)}


def _spared(end: End) -> End:
    """An item that may fail."""
    return End("failed", None, end.effects) if end.state == "fatal" else end


def _child_ends(step: Step) -> dict[str, End]:
    ends = expected(Program(step.name, step.inner))
    if any(end.state == "fatal" for end in ends.values()):
        return {
            **{name: End("never", None, end.effects) for name, end in ends.items()},
            step.name: _failed(step),
        }
    return {**ends, step.name: End("succeeded", ends[f"{step.name}end"].value)}


def _number(value: Any) -> int:
    """What a result counts in a sum; `steps.play` has the same."""
    if isinstance(value, list):
        return sum(map(_number, value))
    return value if isinstance(value, int) else 1
