"""Cases: what each seed stands for, and how one is played.

The law: a case is its seed. The order of kill points and faults is such that any number of cases in a row covers both
evenly; nothing is tried again to make it pass, and a point that was never reached is a failure.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from random import Random
from typing import Any, NamedTuple

from trellis.tasks.errors import StateError

from . import laws, ledger, programs
from .disk import FLAG
from .harm import set_clock
from .ledger import Line
from .stage import WORKERS, Stage
from .trigger import ARMED, Arm, publish

POINTS = (
    "before claim",
    "after claim",
    "before the effect",
    "after the effect",
    "before completion commit",
    "after completion commit",
    "inside tick",
    "inside map expansion",
    "inside append",
    "before the intent",
    "after the intent",
    "before parking",
    "after parking",
)
FAULTS = (
    "kill child",
    "kill worker",
    "stop past the lease",
    "postgres restart",
    "backends terminated",
    "commit unheard",
    "redis flushall",
    "redis restart",
    "duplicate delivery",
    "clock ahead",
    "clock behind",
    "disk full",
)
NEEDS = {  # so that each run passes the point
    "before the intent": ("once", "booked"),
    "after the intent": ("once", "booked"),
    "inside append": ("append",),
    "before parking": ("sleep", "child", "foreign"),
    "after parking": ("foreign", "child", "sleep"),
}
RUNS = 3  # of one program in a case
PATIENCE = 60.0  # seconds for all of them


class Case(NamedTuple):
    """One experiment."""

    seed: int
    point: str
    fault: str

    @property
    def name(self) -> str:
        """What `ONLY=` takes."""
        return f"{self.seed}:{self.point}:{self.fault}".replace(" ", "-")


class Signal(NamedTuple):
    """What the harness tells a run."""

    at: float  # when (time.monotonic())
    run: str
    name: str
    value: int


class Result(NamedTuple):
    """What became of a case."""

    case: Case
    problems: list[str]
    seconds: float
    again: Callable[[Mapping[str, list[Line]]], Iterator[str]]  # look once more, on the same stage


def season(stage: Stage, waiting: Iterable[Case]) -> Iterator[Result]:
    """Play cases on a stage one after the other, until one fails, since that may have left the stage broken.

    At last a second look at each: what a late worker has done to a run after its case was over counts as well.
    """
    found: list[Result] = []
    for case in waiting:
        found.append(play(stage, case))
        yield found[-1]
        if found[-1].problems:
            break
    lines = ledger.read(stage.folder)
    for result in found:
        if not result.problems and (late := list(result.again(lines))):
            yield result._replace(problems=[f"later: {problem}" for problem in late])


def cases(count: int, seed: int) -> Iterator[Case]:
    """The first so many cases of a seed: diagonals of the table, so that each prefix is spread over it."""
    rng = Random(seed)
    points, faults = list(POINTS), list(FAULTS)
    rng.shuffle(points)
    rng.shuffle(faults)
    for number in range(count):
        lap, place = divmod(number, len(faults))
        yield Case(seed * 1_000_000 + number, points[(place + lap) % len(points)], faults[place])


def named(text: str) -> Case:
    """The case of a name. Raises ValueError."""
    seed, point, fault = text.split(":")
    known = {each.replace(" ", "-"): each for each in (*POINTS, *FAULTS)}
    return Case(int(seed), known[point], known[fault])


def passages(point: str, program: programs.Program, rng: Random) -> int:
    """At which passage of a point the fault happens: one that every play of the program reaches."""
    if point == "inside tick":
        return 1
    if point in ("before the effect", "after the effect") and program.fatal is None:
        expected = programs.model(program, 0).values()
        return rng.randint(1, RUNS * sum(row.effects for row in expected))
    if point.endswith("completion commit"):
        return rng.randint(1, 2 * RUNS)
    return rng.randint(1, RUNS)


def play(stage: Stage, case: Case) -> Result:
    """Play a case and say what is wrong."""
    began = time.monotonic()
    played = _Play(stage, case)
    return Result(case, list(played.problems()), time.monotonic() - began, played.wrong)


class _Play:
    """One case on a stage."""

    def __init__(self, stage: Stage, case: Case) -> None:
        self.stage = stage
        self.case = case
        self.rng = Random(case.seed)
        # A probe that looks while the old worker is stopped right before its effect can only be wrong.
        without = "probed" if case.fault == "stop past the lease" else ""
        self.program = programs.draw(case.seed, *NEEDS.get(case.point, ()), without=without)
        self.signals: list[Signal] = []
        self.looked = 0.0
        self.paused: laws.Pause | None = None
        self.id = case.name
        self.runs: dict[str, int] = {}  # id to the parameter
        self.start = ledger.size(stage.folder)

    def problems(self) -> Iterator[str]:
        """Play it; everything that is wrong."""
        stage, case = self.stage, self.case
        passage = passages(case.point, self.program, self.rng)
        arm = Arm(self.id, case.point, passage, case.fault, self.rng.randrange(1000))
        publish(stage.folder / ARMED, json.dumps(arm))
        helper = _Helper(stage, arm)
        try:
            self._start()
            stage.until(
                lambda: self._told() and helper.look() and self._resolved(helper) and self._over(),
                PATIENCE,
                "all runs over",
            )
        except TimeoutError as late:
            yield str(late)
            yield from self._open()
        finally:
            (stage.folder / ARMED).unlink()
            helper.end()
            self.paused = helper.paused
        if not helper.fired:
            yield f"{case.point} was passed fewer than {passage} times"
        yield from self._places()
        yield from self.wrong(ledger.read(stage.folder, self.start))

    def _places(self) -> Iterator[str]:
        """Places in limits that nobody gives back: a killed worker's are found by the next ticks."""
        statement = "SELECT count(*) FROM permit WHERE run_id = ANY(%s::uuid[])"
        try:
            self.stage.until(
                lambda: self.stage.rows(statement, list(self.runs)) == [(0,)], 15.0, "places given back"
            )
        except TimeoutError as late:
            yield str(late)

    def wrong(self, lines: Mapping[str, list[Line]]) -> Iterator[str]:
        """What the laws find, now."""
        for run, base in self.runs.items():
            for problem in laws.check(self.stage.connect(), run, self.program, base, lines, self.paused):
                yield f"run {run}: {problem}"

    def _start(self) -> None:
        workflow = programs.workflow(self.program)
        for number in range(RUNS):
            base = self.rng.randrange(1000)
            # The tick announces what was started without a broker.
            quiet = self.case.point == "inside tick" or self.rng.random() < 0.25
            client = self.stage.without_broker if quiet else self.stage.client
            tag = f"{self.id}-{number}"
            run = client.start(workflow, {"base": base, "tag": tag}, key=tag)
            self.runs[run.id] = base
            for node in self.program.nodes:
                if node.kind == "signal":
                    at = time.monotonic() + self.rng.choice((0.0, 0.3, 1.0))
                    self.signals.append(Signal(at, run.id, programs.signal_of(node), node.value))

    def _told(self) -> bool:
        """Send the signals that are due, each twice: under one id they count once."""
        for signal_ in [each for each in self.signals if each.at <= time.monotonic()]:
            with suppress(StateError):  # a run that was made to fail may be over
                for _ in range(2):
                    self.stage.client.signal(signal_.run, signal_.name, signal_.value, id="once")
            self.signals.remove(signal_)
        return not self.signals

    def _resolved(self, helper: _Helper) -> bool:
        """Say what became of effects in doubt, as a person does who waits until the lost worker is gone, and looks."""
        if time.monotonic() < self.looked + 0.2 or (helper.fired and helper.over < 1.0):
            return True
        self.looked = time.monotonic()
        lines = ledger.read(self.stage.folder, self.start)
        for doubt in self.stage.client.doubts():
            if doubt.run in self.runs and not doubt.probing:
                happened = any(
                    line.kind == "effect" and line.step == doubt.step for line in lines.get(doubt.run, ())
                )
                value = programs.model(self.program, self.runs[doubt.run])[doubt.step].value
                said: dict[str, Any] = {"done": value} if happened else {"retry": True}
                with suppress(StateError):
                    self.stage.client.resolve(doubt.run, doubt.step, **said, by="the harness")
        return True

    def _over(self) -> bool:
        statement = "SELECT count(*) FROM run WHERE id = ANY(%s::uuid[]) AND state IN ('pending', 'running', 'paused')"
        return self.stage.rows(statement, list(self.runs)) == [(0,)]

    def _open(self) -> Iterator[str]:
        statement = """SELECT s.run_id, s.name, s.state, s.attempt, s.missing, s.worker, s.due_at - now(),
                              s.lease_until - now(), s.sent
                         FROM step s JOIN run r ON r.id = s.run_id
                        WHERE r.id = ANY(%s::uuid[]) AND r.state IN ('pending', 'running', 'paused')
                          AND s.state IN ('ready', 'running', 'parked', 'waiting')"""
        for run, name, state, attempt, missing, worker, due, lease, sent in self.stage.rows(
            statement, list(self.runs)
        ):
            yield (
                f"run {run}: {name} is {state} (attempt {attempt}, {missing} missing, {worker}, due in {due}, "
                f"lease for {lease}, sent {sent})"
            )


class _Helper:
    """What the harness does for a fault once a worker's process has said that it happens."""

    def __init__(self, stage: Stage, arm: Arm) -> None:
        self._stage = stage
        self._arm = arm
        self._at = 0.0
        self._done = False
        self._ended = 0.0
        self._thread: threading.Thread | None = None
        self._said: dict[str, int | str] = {}
        self.fired = False
        self.paused: laws.Pause | None = None

    def look(self) -> bool:
        """Do what is due; whether nothing more is to be done."""
        if not self.fired:
            try:
                self._said = json.loads((self._stage.folder / f"fired-{self._arm.case}").read_text())
            except FileNotFoundError:
                return True  # runs that end without it: the caller tells
            self.fired, self._at = True, time.monotonic()
        if not self._done:
            self._done = self._help(time.monotonic() - self._at)
            self._ended = time.monotonic()
        return self._done

    @property
    def over(self) -> float:
        """For how many seconds nothing has been wrong any more."""
        return time.monotonic() - self._ended if self._done else 0.0

    def _help(self, passed: float) -> bool:
        fault, stage, quick = self._arm.fault, self._stage, self._stage.settings
        if fault in ("postgres restart", "redis restart"):
            if self._thread is None:
                self._thread = threading.Thread(target=self._restart)
                self._thread.start()
            return not self._thread.is_alive()
        if fault == "stop past the lease":
            # Two leases, the look of a tick between them, and some time for the others to go ahead.
            if passed < 2 * quick.lease_seconds + 4 * quick.tick_seconds:
                return False
            self.paused = laws.Pause(int(self._said["pid"]), int(self._said["group"]), ledger.now())
            with suppress(ProcessLookupError):
                os.killpg(self.paused.group, signal.SIGCONT)
        if fault == "disk full":
            if passed < 0.2 + self._arm.variant / 1000:
                return False
            (stage.folder / FLAG).unlink(missing_ok=True)
        return True

    def _restart(self) -> None:
        folder, case, variant = self._stage.folder, self._arm.case, self._arm.variant
        servers = self._stage.servers
        if self._arm.fault == "postgres restart":
            servers.postgres.stop(mode="immediate")
        else:
            servers.redis.stop(mode="kill" if variant % 3 else "save")
        publish(folder / f"down-{case}", "")
        time.sleep(variant / 1000 if variant % 5 == 0 else 0.0)
        (servers.postgres if self._arm.fault == "postgres restart" else servers.redis).start()
        publish(folder / f"back-{case}", "")

    def end(self) -> None:
        """Put right what the fault has left: no server stays down, no clock wrong, no disk full."""
        if self._thread is not None:
            self._thread.join()
        (self._stage.folder / FLAG).unlink(missing_ok=True)
        for worker in WORKERS:
            set_clock(self._stage.clock(worker), 0.0)
        if self._arm.fault == "stop past the lease":
            for program in self._stage.workers:
                program.send(signal.SIGCONT)
