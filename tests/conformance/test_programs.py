"""Random programs come to what a model says, on the engine with its workers and in-process.

`pytest tests/conformance/test_programs.py` runs 100 programs; with PROGRAMS=1000 SEED=7 before it, others. A
failure names its seed and shows the smallest program found that fails as well.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from pprint import pformat
from random import Random
from typing import Any

import pytest
from random_programs import End, Program, draw, expected, workflow
from sides import Side

from trellis.tasks.errors import StateError
from trellis.workflows import Run, RunState

ENOUGH = 100  # to have something of everything (see below)
PROGRAMS = int(os.environ.get("PROGRAMS", ENOUGH))
SEED = int(os.environ.get("SEED", "1"))
STATES = {"lost": "failed", "fatal": "failed", "open": "cancelled", "never": "cancelled"}
TRIES = 60  # runs that may be spent on making a failing program smaller


class Trial:
    """One run of a program on one side."""

    def __init__(self, side: Side, program: Program, folder: Path) -> None:
        self.side = side
        self.program = program
        self.ledger = folder / f"{program.name}-{id(self)}"
        self.model = expected(program)
        params = {"n": program.n, "ledger": str(self.ledger)}
        self.run = side.client.start(workflow(program), params)

    def tell(self) -> None:
        """Send the signals that the program is told."""
        for step in self.program.steps:
            if step.kind == "signal" and step.told:
                with suppress(StateError):  # it may have failed by now
                    self.side.client.signal(self.run, step.name, step.own)

    def end(self) -> Run:
        """The run, once it is over; cancelled where it waits for ever, when all else of it is done."""
        client = self.side.client
        if self.program.stuck:
            done = {name for name, end in self.model.items() if end.state in ("open", "never")}
            if any(end.state == "open" for end in self.model.values()) and not self._fatal():
                self.side.eventually(lambda: self._quiet(done))
                client.cancel(self.run)
        return client.wait(self.run, timeout=60)

    def _fatal(self) -> set[str]:
        return {name for name, end in self.model.items() if end.state == "fatal"}

    def _quiet(self, still: set[str]) -> bool:
        open_steps = {
            step.name.removesuffix("[]")
            for step in self.side.client.steps(self.run)
            if step.state in ("waiting", "ready", "running", "parked")
        }
        return open_steps <= still

    def problems(self) -> list[str]:
        """What is not as the model says."""
        return list(self._problems(self.end()))

    def _problems(self, run: Run) -> Iterator[str]:
        fatal = self._fatal()
        waits = any(end.state == "open" for end in self.model.values())
        wanted = RunState.FAILED if fatal else RunState.CANCELLED if waits else RunState.SUCCEEDED
        if run.state is not wanted:
            yield f"the run is {run.state}, not {wanted}: {run.error}"
            return
        if fatal and (run.error or {}).get("step") not in fatal:
            yield f"the run failed with {(run.error or {}).get('step')}, not with one of {sorted(fatal)}"
        lines = self.ledger.read_text().splitlines() if self.ledger.exists() else []
        effects = Counter(line.split()[1] for line in lines)
        states, results = self.side.states(run), self.side.results(run)
        for name, end in self.model.items():
            state = states.get(f"{name}[]", states.get(name))
            if state is None:
                yield from self._of_a_child(name, end, effects[name], cut=bool(fatal))
                continue
            value = results.get(f"{name}[]", results.get(name))
            yield from self._of_a_step(name, end, state, effects[name], value, cut=bool(fatal))
        strange = effects.keys() - self.model.keys()
        if strange:
            yield f"effects of steps that should not run: {sorted(strange)}"

    def _of_a_step(
        self, name: str, end: End, state: str, effects: int, value: Any, *, cut: bool
    ) -> Iterator[str]:
        """A run that failed may have ended before a step did; then it has less, and never more."""
        wanted = {"lost": "failed", "fatal": "failed", "open": "cancelled", "never": "cancelled"}.get(
            end.state, end.state
        )
        if state == "cancelled" and cut:
            if effects > end.effects:
                yield f"{name}: {effects} effects, where {end.effects} are all that it may leave"
            return
        if state != wanted:
            yield f"{name} is {state}, not {wanted}"
        elif effects != end.effects:
            yield f"{name}: {effects} effects, not {end.effects}"
        elif end.state in ("succeeded", "failed") and end.value is not None:
            value = value[f"{name}end"] if isinstance(value, dict) and f"{name}end" in value else value
            if value != end.value:
                yield f"{name} gave {value}, not {end.value}"

    def _of_a_child(self, name: str, end: End, effects: int, *, cut: bool) -> Iterator[str]:
        """A step of a child run, or an item of a map that was not reached: its effects are what it can be held to."""
        exact = end.state in ("succeeded", "failed", "lost", "skipped") and not cut
        if effects > end.effects or (exact and effects != end.effects):
            yield f"{name}: {effects} effects, not {end.effects}"


def test_random_programs_end_as_the_model_says(side: Side, tmp_path: Path) -> None:
    """All at once, with signals before and after anybody waits for them."""
    programs = [draw(seed) for seed in range(SEED, SEED + PROGRAMS)]
    trials = [Trial(side, program, tmp_path) for program in programs]
    for trial in Random(SEED).sample(trials, len(trials)):
        trial.tell()
    failing = {trial.program.name: problems for trial in trials if (problems := trial.problems())}
    if failing:
        name = next(iter(failing))
        small, problems = smallest(side, next(p for p in programs if p.name == name), failing[name], tmp_path)
        head = (
            f"{len(failing)} of {len(programs)} programs fail: {', '.join(failing)}. The first, made smaller:"
        )
        again = f"SEED={name.rpartition('-')[2]} PROGRAMS=1 runs it as it was drawn"
        pytest.fail("\n".join([head, pformat(small, width=110), *problems, again]))


def smallest(side: Side, program: Program, problems: list[str], folder: Path) -> tuple[Program, list[str]]:
    """A smaller program that fails as well, as far as one is found."""
    tries = TRIES
    shrinking = True
    while shrinking:
        shrinking = False
        for each in program.smaller():
            if tries == 0:
                return program, problems
            tries -= 1
            trial = Trial(side, each, folder)
            trial.tell()
            found = trial.problems()
            if found:
                program, problems, shrinking = each, found, True
                break
    return program, problems


def test_the_programs_have_something_of_everything() -> None:
    """Else the test above would prove less than it says."""
    programs = [draw(seed) for seed in range(1, ENOUGH + 1)]
    kinds = Counter(step.kind for program in programs for step in program.steps)
    assert all(kinds[kind] >= 10 for kind in ("play", "map", "list", "signal", "nap", "child"))
    ends = Counter(end.state for program in programs for end in expected(program).values())
    assert all(
        ends[state] >= 3 for state in ("succeeded", "failed", "lost", "skipped", "fatal", "open", "never")
    )
    failed = sum(any(end.state == "fatal" for end in expected(program).values()) for program in programs)
    assert 10 <= failed <= 50
