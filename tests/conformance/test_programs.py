"""Random programs come to what a model says, on the engine with its workers and in-process.

`pytest tests/conformance/test_programs.py` runs 100 programs; with PROGRAMS=1000 SEED=7 before it, others. A
failure names its seed and shows the smallest program found that fails as well.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from pprint import pformat
from random import Random
from typing import Any
from uuid import uuid4

import pytest
from program_model import End, expected
from random_programs import KINDS, Program, cancelled_at, draw, workflow
from sides import Side

from trellis.tasks.errors import StateError
from trellis.workflows import Run, RunState
from trellis.workflows.states import RUN_ENDS

ENOUGH = 100  # to have something of everything (see below)
PROGRAMS = int(os.environ.get("PROGRAMS", ENOUGH))
SEED = int(os.environ.get("SEED", "1"))
STATES = {"lost": "failed", "fatal": "failed", "open": "cancelled", "never": "cancelled"}
OPEN = ("waiting", "ready", "running", "parked")
GROWERS = {"succeeded", "failed", "lost", "skipped", "never"}  # how steps that append may end
LOOPS = {"succeeded", "skipped", "never"}  # and loops
LOOKS = {"succeeded", "failed", "lost", "skipped", "fatal", "never"}  # and the rows that look at their turns
EACH = 4  # of so many programs one has a second run, which is cancelled in the midst
TRIES = 60  # runs that may be spent on making a failing program smaller


class Trial:
    """One run of a program on one side."""

    def __init__(self, side: Side, program: Program, folder: Path, *, cancelled: bool = False) -> None:
        """With `cancelled` somebody cancels it in the midst."""
        self.side = side
        self.program = program
        self.ledger = folder / f"{program.name}-{uuid4()}"
        self.model = expected(program)
        self.fatal = {name for name, end in self.model.items() if end.state == "fatal"}
        self.waits = any(end.state == "open" for end in self.model.values())
        self.asked = cancelled
        self.moment = moment(program, self.model) if cancelled else None
        self.cancelled = False  # it was, before it was over
        self.before: dict[str, Any] = {}  # what was finished by then
        self.left: list[str] = []  # what was open right after it
        params = {"n": program.n, "ledger": str(self.ledger)}
        self.run = side.client.start(workflow(program), params)

    def tell(self) -> None:
        """Send the signals that the program is told."""
        for step in self.program.steps:
            if step.kind == "signal" and step.told:
                with suppress(StateError):  # it may have failed by now
                    self.side.client.signal(self.run, step.name, step.own)

    def lines(self) -> list[str]:
        """What its bodies have left."""
        return self.ledger.read_text().splitlines() if self.ledger.exists() else []

    def look(self) -> bool:
        """Cancel it once it has had so many effects; whether that is done, or comes too late."""
        if self.moment is None:
            return True
        if len(self.lines()) >= self.moment:
            self.before = self._finished()
            self.cancelled = self._cancel()
            self.moment = None
        elif self.fatal and self.side.state(self.run) in RUN_ENDS:
            self.moment = None
        return self.moment is None

    def _cancel(self) -> bool:
        cancelled = self.side.client.cancel(self.run)
        self.left = self._open()  # at once: a child run that was forgotten would end by itself
        return cancelled

    def _open(self) -> list[str]:
        """What is open of it, its child runs among them."""
        client = self.side.client
        children = self.side.children(self.run)
        every = [step for run in (self.run.id, *children) for step in client.steps(run)]
        return [step.name for step in every if step.state in OPEN] + [
            child for child in children if client.get(child).state not in RUN_ENDS
        ]

    def _finished(self) -> dict[str, Any]:
        states = self.side.states(self.run)
        results = self.side.results(self.run)  # after the states: what is finished by then has its result
        return {name: (state, results.get(name)) for name, state in states.items() if state not in OPEN}

    def end(self) -> Run:
        """The run, once it is over; cancelled where it waits for ever, when all else of it is done."""
        client = self.side.client
        if self.waits and not self.fatal and not self.cancelled:
            done = {name for name, end in self.model.items() if end.state in ("open", "never")}
            self.side.eventually(lambda: self._quiet(done))
            self._cancel()
        return client.wait(self.run, timeout=60)

    def _quiet(self, still: set[str]) -> bool:
        open_steps = {
            step.name.removesuffix("[]") for step in self.side.client.steps(self.run) if step.state in OPEN
        }
        return open_steps <= still

    def problems(self) -> list[str]:
        """What is not as the model says."""
        return list(self._problems(self.end()))

    def _problems(self, run: Run) -> Iterator[str]:
        cancelled = self.cancelled or (self.waits and not self.fatal)
        wanted = RunState.CANCELLED if cancelled else RunState.FAILED if self.fatal else RunState.SUCCEEDED
        if run.state is not wanted:
            yield f"the run is {run.state}, not {wanted}: {run.error}"
            return
        if wanted is RunState.FAILED and (run.error or {}).get("step") not in self.fatal:
            yield f"the run failed with {(run.error or {}).get('step')}, not with one of {sorted(self.fatal)}"
        effects = Counter(line.split()[1] for line in self.lines())
        states, results = self.side.states(run), self.side.results(run)
        cut = bool(self.fatal) or self.cancelled
        for name, end in self.model.items():
            state = states.get(f"{name}[]", states.get(name))
            if state is None:
                yield from self._without_row(name, end, effects[name], cut=cut)
                continue
            value = results.get(f"{name}[]", results.get(name))
            yield from self._of_a_step(name, end, state, effects[name], value, cut=cut)
        strange = effects.keys() - self.model.keys()
        if strange:
            yield f"effects of steps that should not run: {sorted(strange)}"
        yield from self._of_rows(states)
        yield from self._after_the_end()

    def _of_a_step(
        self, name: str, end: End, state: str, effects: int, value: Any, *, cut: bool
    ) -> Iterator[str]:
        """A run that was ended may have ended before a step did; then it has less, and never more."""
        if state == "cancelled" and cut:
            if effects > end.effects:
                yield f"{name}: {effects} effects, where {end.effects} are all that it may leave"
            return
        if state != STATES.get(end.state, end.state):
            yield f"{name} is {state}, not {STATES.get(end.state, end.state)}"
        elif self.cancelled and end.state == "fatal":
            yield f"{name} failed, and the run did not fail with it"
        elif effects != end.effects:
            yield f"{name}: {effects} effects, not {end.effects}"
        elif end.state in ("succeeded", "failed") and end.value is not None:
            value = value[f"{name}end"] if isinstance(value, dict) and f"{name}end" in value else value
            if value != end.value:
                yield f"{name} gave {value}, not {end.value}"

    def _without_row(self, name: str, end: End, effects: int, *, cut: bool) -> Iterator[str]:
        """A step of a child run: its effects are what it can be held to. Any other one was never reached."""
        if not end.apart:
            if effects or not cut:
                yield f"{name} is not there, and has {effects} effects"
            return
        exact = end.state in ("succeeded", "failed", "lost", "skipped") and not cut
        if effects > end.effects or (exact and effects != end.effects):
            yield f"{name}: {effects} effects, not {end.effects}"

    def _of_rows(self, states: dict[str, str]) -> Iterator[str]:
        """No step too many; and what a step grew is there only if that step is finished."""
        known = {*self.model, *(f"{name}[]" for name in self.model)}
        if states.keys() - known:
            yield f"steps that should not be there: {sorted(states.keys() - known)}"
        for name in states:
            for grower in growers(name, states):
                if states.get(grower) != "succeeded":
                    yield f"{name} is there, and {grower}, which grew it, is {states.get(grower)}"

    def _after_the_end(self) -> Iterator[str]:
        """Nothing is open, in its child runs neither, and what was finished has stayed as it was."""
        after = self._finished()
        for name, found in self.before.items():
            if after.get(name) != found:
                yield f"{name} was {found} before the run was cancelled, and is {after.get(name)}"
        if open_ := self.left or self._open():
            yield f"the run is over, and these are open: {sorted(open_)}"


def moment(program: Program, model: Mapping[str, End]) -> int:
    """After how many effects it is cancelled; a child run that fails may have fewer than the model allows."""
    sure = sum(end.effects for end in model.values() if not (end.apart and end.state == "never"))
    return int(cancelled_at(program) * sure)


def growers(name: str, states: Mapping[str, str]) -> Iterator[str]:
    """The steps without whose end a row cannot be: of what was appended, of items, of turns and looks at them."""
    if "." in name:
        yield name.rpartition(".")[0]
    base, _, place = name.removesuffix("]").rpartition("[")
    number = place.removeprefix("?")
    if base and number:
        yield base
    if number not in ("", "0") and f"{base}[?{number}]" in states:
        yield f"{base}[?{int(number) - 1}]"


def test_random_programs_end_as_the_model_says(side: Side, tmp_path: Path) -> None:
    """All at once, with signals before and after anybody waits for them; some a second time, cancelled in the midst."""
    programs = [draw(seed) for seed in range(SEED, SEED + PROGRAMS)]
    trials = [Trial(side, program, tmp_path) for program in programs]
    with side.half_way():
        cut_short = [Trial(side, each, tmp_path, cancelled=True) for each in programs[::EACH]]
        trials += cut_short
        for trial in Random(SEED).sample(trials, len(trials)):
            trial.tell()
        waiting = list(cut_short)
        while waiting:
            side.on_the_way(partial(look_at, waiting))
    failing = [(trial, problems) for trial in trials if (problems := trial.problems())]
    if PROGRAMS >= ENOUGH:
        assert any(trial.cancelled and trial.before for trial in cut_short)
    if failing:
        trial, problems = failing[0]
        small, problems = smallest(side, trial, problems, tmp_path)
        names = ", ".join(each.program.name for each, _ in failing)
        how = "cancelled in the midst" if trial.asked else "left alone"
        head = f"{len(failing)} of {len(trials)} runs fail: {names}. The first, {how}, made smaller:"
        again = f"SEED={trial.program.name.rpartition('-')[2]} PROGRAMS=1 runs it as it was drawn"
        pytest.fail("\n".join([head, pformat(small, width=110), *problems, again]))


def look_at(waiting: list[Trial]) -> bool:
    """Look at those whose moment is still to come, which are left in the list; whether it came for any of them."""
    before = len(waiting)
    waiting[:] = [trial for trial in waiting if not trial.look()]
    return len(waiting) < before


def smallest(side: Side, failed: Trial, problems: list[str], folder: Path) -> tuple[Program, list[str]]:
    """A smaller program that fails as well, as far as one is found."""
    program, cancelled = failed.program, failed.asked
    tries = TRIES
    shrinking = True
    while shrinking:
        shrinking = False
        for each in program.smaller():
            if tries == 0:
                return program, problems
            tries -= 1
            found = once(side, each, folder, cancelled=cancelled)
            if found:
                program, problems, shrinking = each, found, True
                break
    return program, problems


def once(side: Side, program: Program, folder: Path, *, cancelled: bool) -> list[str]:
    """What is wrong with one run of a program."""
    with side.half_way():
        trial = Trial(side, program, folder, cancelled=cancelled)
        trial.tell()
        side.on_the_way(trial.look)
    return trial.problems()


def test_the_programs_have_something_of_everything() -> None:
    """Else the test above would prove less than it says."""
    programs = [draw(seed) for seed in range(1, ENOUGH + 1)]
    models = [expected(program) for program in programs]
    kinds = Counter(step.kind for program in programs for step in program.steps)
    assert all(kinds[kind] >= 10 for kind in (*KINDS, "list"))
    ends = Counter(end.state for model in models for end in model.values())
    assert all(
        ends[state] >= 3 for state in ("succeeded", "failed", "lost", "skipped", "fatal", "open", "never")
    )
    failed = sum(any(end.state == "fatal" for end in model.values()) for model in models)
    assert 10 <= failed <= 50
    grown = Counter(name.count(".") for model in models for name in model)
    assert grown[1] >= 30
    assert grown[2] >= 5
    for kind, ways in (("append", GROWERS), ("loop", LOOPS)):
        found = Counter(
            model[step.name].state
            for program, model in zip(programs, models, strict=True)
            for step in program.steps
            if step.kind == kind
        )
        assert found.keys() >= ways, (kind, found)
    looks = [(name, end.state) for model in models for name, end in model.items() if "[?" in name]
    assert Counter(state for _, state in looks).keys() >= LOOKS
    assert sum(name.endswith("[?2]") for name, _ in looks) >= 5
    moments = [moment(program, model) for program, model in zip(programs, models, strict=True)][::EACH]
    assert sum(each > 0 for each in moments) >= 10
