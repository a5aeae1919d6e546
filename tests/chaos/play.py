"""How cases are played: those of a wave at once, on a stage that is there already.

The law: nothing is tried again to make it pass, and a point that was never reached is a failure. What belongs to no
single case (the time is over, a client was told an error) is held against each case of its wave.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from random import Random
from typing import NamedTuple

from . import extras, laws, ledger, programs
from .cases import NEEDS, Case, Wave
from .extras import TICKS, Ticking
from .harm import set_clock
from .helper import Helper
from .ledger import Line
from .people import People, patiently
from .stage import CLOCKS, Stage
from .trigger import ARMED, Arm, publish

RUNS = 2  # of one program in a case
PATIENCE = 180.0  # seconds for all runs of a wave, on a machine as busy as it may be
_CALM = 1.0  # seconds after the last fault, until a lost worker is surely gone
_OPEN = ("pending", "running", "paused")


class Result(NamedTuple):
    """What became of a case."""

    case: Case
    wave: Wave  # what it was played with, itself among them
    problems: list[str]
    seconds: float  # until its runs were over
    again: Callable[[Mapping[str, list[Line]]], Iterator[str]]  # look once more, on the same stage


def season(stage: Stage, waiting: Iterable[Wave]) -> Iterator[Result]:
    """Play waves on a stage one after the other, until a case fails, since that may have left the stage broken.

    At last a second look at each: what a late worker has done to a run after its case was over counts as well.
    """
    found: list[Result] = []
    for wave in waiting:
        played = play(stage, wave)
        found += played
        yield from played
        if any(result.problems for result in played):
            break
    lines = ledger.read(stage.folder)
    for result in found:
        if not result.problems and (late := list(result.again(lines))):
            yield result._replace(problems=[f"later: {problem}" for problem in late])


def play(stage: Stage, wave: Wave) -> list[Result]:
    """Play the cases of a wave at once and say what is wrong with each."""
    scene = _Scene(stage, wave)
    scene.play()
    return [
        Result(each.case, wave, [*each.problems(), *scene.problems], each.seconds, each.wrong)
        for each in scene.plays
    ]


def passages(point: str, program: programs.Program, rng: Random) -> int:
    """At which passage of a point the fault happens: one that every play of the program reaches."""
    if point == "inside tick":
        return 1
    if point == "inside a schedule's tick":
        return rng.randint(1, TICKS)
    if point in ("before the effect", "after the effect") and program.fatal is None:
        expected = programs.model(program, 0).values()
        return rng.randint(1, RUNS * sum(row.effects for row in expected))
    if point.endswith("completion commit"):
        return rng.randint(1, 2 * RUNS)
    if point == "after a joint commit":
        # Each run commits once, and another case's fault may take one of the answers.
        return rng.randint(1, RUNS - 1)
    return rng.randint(1, RUNS)


class _Scene:
    """A wave on a stage."""

    def __init__(self, stage: Stage, wave: Wave) -> None:
        self.stage = stage
        # A probe that looks while the old worker is stopped right before its effect can only be wrong.
        stops = any(case.fault == "stop past the lease" for case in wave)
        self.pauses: list[laws.Pause] = []
        self.people = People(stage, self._value, ledger.size(stage.folder))
        self.plays = [_Play(self, case, without="probed" if stops else "") for case in wave]
        self.problems: list[str] = []
        self._began = time.monotonic()

    def play(self) -> None:
        """Until all runs are over, or the time is."""
        publish(self.stage.folder / ARMED, json.dumps([each.arm for each in self.plays]))
        try:
            for each in self.plays:
                each.start()
            self.stage.until(self._done, PATIENCE, "all runs over")
            self.stage.until(self._tidy, PATIENCE / 4, "places given back, failed runs undone")
        except TimeoutError as late:
            self.problems.append(str(late))
        finally:
            (self.stage.folder / ARMED).unlink()
            for each in self.plays:
                each.helper.end()
            for worker in CLOCKS:
                set_clock(self.stage.clock(worker), 0.0)
            self.people.end()
        self.pauses = [each.helper.paused for each in self.plays if each.helper.paused is not None]
        self.problems += self.people.problems()

    def _value(self, run: str, step: str) -> object:
        """The result that a step must have. Raises LookupError."""
        for each in self.plays:
            if run in each.runs:
                return programs.model(each.program, each.runs[run])[step].value
        raise LookupError(run)

    def _done(self) -> bool:
        helped = [each.helper.look() for each in self.plays]
        calm = all(each.helper.settled(_CALM) for each in self.plays)
        return self.people.look(calm=calm) and all(helped) and self._over() and self._ticked()

    def _ticked(self) -> bool:
        return all(each.ticking is None or each.ticking.over() for each in self.plays)

    def _over(self) -> bool:
        statement = "SELECT id::text FROM run WHERE id = ANY(%s::uuid[]) AND state = ANY(%s)"
        runs = [run for each in self.plays for run in each.every]
        still = {run for (run,) in self.stage.rows(statement, runs, list(_OPEN))}
        for each in self.plays:
            if not each.seconds and not still & each.every.keys():
                each.seconds = time.monotonic() - self._began
        return not still

    def _tidy(self) -> bool:
        """Whether places in limits were given back, and failed runs undone: what a killed worker left, ticks find."""
        statement = "SELECT count(*) FROM permit WHERE run_id = ANY(%s::uuid[])"
        if self.stage.rows(statement, [run for each in self.plays for run in each.every]) != [(0,)]:
            return False
        return all(each.undone() for each in self.plays)


class _Play:
    """One case in a scene."""

    def __init__(self, scene: _Scene, case: Case, without: str) -> None:
        self.scene = scene
        self.stage = scene.stage
        self.case = case
        self.rng = Random(case.seed)
        self.program = programs.draw(case.seed, *NEEDS.get(case.point, ()), without=without)
        passage = passages(case.point, self.program, self.rng)
        self.arm = Arm(case.name, case.point, passage, case.fault, self.rng.randrange(1000))
        self.helper = Helper(scene.stage, self.arm)
        self.runs: dict[str, int] = {}  # id to the parameter
        self.doomed: dict[str, int] = {}  # one that somebody cancels
        scheduled = case.point == "inside a schedule's tick" or case.fault == "kill beat"
        scheduled = scheduled or self.rng.random() < 0.1
        self.ticking = Ticking(scene.stage, scene.people, case.name) if scheduled else None
        self.seconds = 0.0

    @property
    def every(self) -> dict[str, int]:
        """All its runs, by id, with their parameter."""
        return {**self.runs, **self.doomed}

    def start(self) -> None:
        """Start its runs, and let people know of them."""
        if self.ticking is not None:
            self.ticking.start()
        people, client, rng = self.scene.people, self.stage.client, self.rng
        for number in range(RUNS):
            run = self._run(str(number), self.runs)
            for node in self.program.nodes:
                if node.kind == "signal":
                    self._signal(run, node)
        if rng.random() < 0.2:
            extras.pause(
                people, self.stage, rng.choice(list(self.runs)), rng.uniform(0, 0.8), rng.uniform(0, 0.8)
            )
        if rng.random() < 0.2:
            doomed = self._run("doomed", self.doomed)
            people.later(rng.uniform(0, 1.5), partial(client.cancel, doomed))

    def _run(self, name: str, runs: dict[str, int]) -> str:
        base = self.rng.randrange(1000)
        # The tick announces what was started without a broker.
        quiet = self.case.point == "inside tick" or self.rng.random() < 0.25
        client = self.stage.without_broker if quiet else self.stage.client
        tag = f"{self.case.name}-{name}"
        workflow = programs.workflow(self.program)
        run = patiently(partial(client.start, workflow, {"base": base, "tag": tag}, key=tag))
        assert run is not None
        runs[run.id] = base
        return run.id

    def undone(self) -> bool:
        """Whether all of its runs that have failed are undone, as far as there is something to undo."""
        statement = """SELECT count(*) FROM run r WHERE r.id = ANY(%s::uuid[]) AND r.state = 'failed'
                        AND EXISTS (SELECT 1 FROM step s WHERE s.run_id = r.id AND s.name = ANY(%s)
                                       AND s.state = 'succeeded')
                        AND NOT EXISTS (SELECT 1 FROM run u WHERE u.origin = r.id AND u.state = 'succeeded')"""
        return self.stage.rows(statement, list(self.every), list(self.program.undone)) == [(0,)]

    def _signal(self, run: str, node: programs.Node) -> None:
        """Send a signal twice: under one id it counts once."""

        def tell() -> None:
            for _ in range(2):
                self.stage.client.signal(run, programs.signal_of(node), node.value, id="once")

        self.scene.people.later(self.rng.choice((0.0, 0.3, 1.0)), tell)

    def problems(self) -> Iterator[str]:
        """Everything that is wrong, now that it is over."""
        if not self.helper.happened:
            yield f"{self.case.point} was passed fewer than {self.arm.passage} times"
        if self.scene.problems:
            yield from self._open()
        yield from self.wrong(ledger.read(self.stage.folder))

    def wrong(self, lines: Mapping[str, list[Line]]) -> Iterator[str]:
        """What the laws find, now."""
        connection, program, pauses = self.stage.connect(), self.program, self.scene.pauses
        for run, base in self.every.items():
            check = laws.check_cancelled if run in self.doomed else laws.check
            for problem in check(connection, run, program, base, lines, pauses):
                yield f"run {run}: {problem}"
        if self.ticking is not None:
            yield from self.ticking.problems(lines, pauses)

    def _open(self) -> Iterator[str]:
        statement = """SELECT s.run_id, s.name, s.state, s.attempt, s.missing, s.worker, s.due_at - now(),
                              s.lease_until - now(), s.sent
                         FROM step s JOIN run r ON r.id = s.run_id
                        WHERE r.id = ANY(%s::uuid[]) AND r.state = ANY(%s)
                          AND s.state IN ('ready', 'running', 'parked', 'waiting')"""
        for run, name, state, attempt, missing, worker, due, lease, sent in self.stage.rows(
            statement, list(self.every), list(_OPEN)
        ):
            yield (
                f"run {run}: {name} is {state} (attempt {attempt}, {missing} missing, {worker}, due in {due}, "
                f"lease for {lease}, sent {sent})"
            )
