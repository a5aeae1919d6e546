"""Random programs: a seed becomes a workflow. What has to become of it stands in `program_model`.

The law: a program is plain data, drawn from its seed alone; what a step appends is a program within it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import growing
import steps
import turning

from trellis.workflows import Default, Retry, Workflow

KINDS = {"play": 8, "map": 3, "signal": 2, "nap": 1, "child": 2, "append": 2, "loop": 2}
APPENDED = {"play": 6, "map": 2, "nap": 1, "append": 1, "loop": 1}  # kinds of steps that a step appends


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
    inner: tuple[Step, ...] = ()  # of a child run, or what the step appends
    turns: tuple[int, ...] = ()  # of a loop: failing attempts of each turn, as many as there may be
    until: tuple[str, int] = ("index", 1)  # of a loop: so many turns, or a divisor of a turn's "result"
    on_limit: str = "fail"

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

    def smaller(self) -> list[Program]:
        """Programs of one step less, or with less in one of them."""
        found = [replace(self, steps=_without(self.steps, step.name)) for step in reversed(self.steps)]
        for place, step in enumerate(self.steps):
            simple = Step(step.name, own=step.own, data=step.data, after=step.after)
            less = [] if step == simple or step.kind not in ("play", "append", "loop") else [simple]
            if step.kind == "append":
                less += [replace(step, inner=_without(step.inner, each.name)) for each in step.inner]
            found += [
                replace(self, steps=(*self.steps[:place], each, *self.steps[place + 1 :])) for each in less
            ]
        return [
            each
            for each in found
            if each.steps and all(step.inner for step in each.steps if step.kind == "append")
        ]


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


def cancelled_at(program: Program) -> float:
    """When somebody cancels a second run of it: after this part of its effects."""
    return Random(f"cancel {program.name}").random()


def draw(seed: int) -> Program:
    """The program of a seed."""
    rng = Random(seed)
    made: list[Step] = []
    for place in range(rng.randint(2, 9)):
        _draw_step(rng, f"s{place}", made)
    return Program(f"program-{seed}", tuple(made), rng.randint(0, 9))


def _draw_step(
    rng: Random, name: str, made: list[Step], kinds: Mapping[str, int] = KINDS, *, appended: int = 0
) -> None:
    """Add a step of any kind; `appended`: so many steps append each other around it."""
    kind = rng.choices(list(kinds), list(kinds.values()))[0]
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
        step = _draw_child(rng, replace(step, data=(), after=front))
    elif kind == "append":
        step = _draw_append(rng, step, appended)
    elif kind == "loop":
        step = _draw_loop(rng, step)
    elif kind == "map" and numbers and rng.random() < 0.4:
        made.append(Step(f"{name}list", "list", data=(rng.choice(numbers),)))
        step = replace(step, over=f"{name}list", lanes=rng.choice((None, 2)))
    elif kind == "map":
        step = _draw_map(rng, step)
    else:
        step = _troubled(rng, step, (None, "skip", 3, 4))
        if rng.random() < 0.25 and (numbers or not appended):  # what is appended knows no parameters
            step = replace(step, when=(rng.choice(numbers), 2) if numbers else ("", 5))
        elif rng.random() < 0.3:
            step = replace(step, data=front, after=(), join=bool(front))
    made.append(step)


def _draw_child(rng: Random, step: Step) -> Step:
    inner = [
        _troubled(rng, Step(f"{step.name}c{place}", own=place), (None, 3))
        for place in range(rng.randint(1, 3))
    ]
    last = Step(f"{step.name}end", own=1, data=tuple(each.name for each in inner))
    return replace(step, inner=(*inner, last), policy=rng.choice((None, 7, "skip")))


def _draw_map(rng: Random, step: Step) -> Step:
    step = _troubled(rng, step, (None, "skip", "skip", 3))
    troubles = (0, 0, 0, 0, step.fails, 0 if step.policy is None else 9)
    items = [(rng.randrange(50), rng.choice(troubles)) for _ in range(rng.randint(0, 6))]
    step = replace(step, items=tuple(items), lanes=rng.choice((None, None, 1, 2)))
    if step.policy is not None:
        return step
    lost = rng.choice(("fail", "skip", "collect"))
    return replace(step, lost=lost, items=(*step.items, (5, 9)) if lost != "fail" else step.items)


def _draw_append(rng: Random, step: Step, appended: int) -> Step:
    kinds = {kind: weight for kind, weight in APPENDED.items() if kind != "append" or appended < 2}
    inner: list[Step] = []
    for place in range(rng.randint(1, 4)):
        _draw_step(rng, f"x{place}", inner, kinds, appended=appended + 1)
    return replace(_troubled(rng, step, (None, "skip", 3)), inner=tuple(inner))


def _draw_loop(rng: Random, step: Step) -> Step:
    step = _troubled(rng, step, (None, "skip", 3))
    troubles = (0, 0, 0, 0, 0, step.fails)
    turns = tuple(rng.choice(troubles) for _ in range(rng.randint(1, 5)))
    until = rng.choice((("index", rng.randint(1, len(turns))), ("result", rng.choice((3, 7, 11)))))
    return replace(step, turns=turns, until=until, on_limit=rng.choice(("fail", "stop")))


def _troubled(rng: Random, step: Step, policies: tuple[Any, ...]) -> Step:
    fails = rng.choice((0, 0, 0, 0, 1, 1, 2)) if rng.random() < 0.93 else 9
    return replace(step, attempts=rng.choice((1, 2, 3)), fails=fails, policy=rng.choice(policies))


# --- as a workflow


def workflow(program: Program) -> Workflow:
    """The program as Trellis runs it."""
    wf = Workflow(program.name, params={"n": int, "ledger": str}, register=False)
    return _filled(wf, program.steps, wf.params.ledger)


def _filled(wf: Workflow, all_steps: tuple[Step, ...], ledger: Any) -> Workflow:
    made: dict[str, Any] = {}  # the steps themselves
    given: dict[str, Any] = {}  # what others get of them
    for step in all_steps:
        made[step.name] = given[step.name] = _add(wf, step, made, given, ledger)
        if step.kind == "child":
            given[step.name] = made[step.name][f"{step.name}end"]
    return wf


def _add(wf: Workflow, step: Step, made: dict[str, Any], given: dict[str, Any], ledger: Any) -> Any:
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
        return wf.child(step.name, inner, params={"n": 0, "ledger": ledger}, **options)
    options |= {"retry": Retry(step.attempts, base=0.01, jitter=0), "parts": data, "ledger": ledger}
    if step.kind == "map":
        return _add_map(wf, step, made, options)
    options["own"] = step.own
    if step.kind == "loop":
        return _add_loop(wf, step, options)
    if step.kind == "append":
        return wf.step(step.name, growing.plays_and_grows, fails=step.fails, more=appended(step), **options)
    if step.when is not None:
        name, bound = step.when
        options["when"] = f"steps.{name} % {bound} == 0" if name else f"params.n > {bound}"
    if step.join:
        options["join"] = "any"
    return wf.step(step.name, steps.play, fails=step.fails, **options)


def _add_map(wf: Workflow, step: Step, made: dict[str, Any], options: dict[str, Any]) -> Any:
    over = made[step.over] if step.over else [{"own": own, "fails": fails} for own, fails in step.items]
    options |= {"own": wf.item["own"], "fails": wf.item["fails"], "concurrency": step.lanes}
    if step.lost != "fail":
        options["on_item_failure"] = step.lost
    return wf.map(step.name, steps.play, over=over, **options)


def _add_loop(wf: Workflow, step: Step, options: dict[str, Any]) -> Any:
    what, bound = step.until
    until = f"index + 1 >= {bound}" if what == "index" else f"result % {bound} == 0"
    options |= {"previous": wf.previous, "index": wf.index, "fails": list(step.turns)}
    return wf.loop(
        step.name,
        turning.plays_a_turn,
        until=until,
        limit=len(step.turns),
        start=step.own,
        on_limit=step.on_limit,
        **options,
    )


def appended(step: Step) -> dict[str, Any]:
    """What a step appends, as data; its body fills in the ledger (`growing.plays_and_grows`)."""
    fragment = _filled(Workflow("appended", register=False), step.inner, "")
    data: dict[str, Any] = json.loads(fragment.spec.canonical())["steps"]
    return data
