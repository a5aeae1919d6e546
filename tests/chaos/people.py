"""What people do while cases are played: they signal, approve, pause, cancel, and say what became of effects in doubt.

The law: the stage never waits for them. Each acts in a thread, as a client may have to wait for a row that a stopped
worker holds, and says the same again until Postgres has heard it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import psycopg

from trellis.tasks.errors import CommunicationError, StateError
from trellis.tasks.processes import birth
from trellis.workflows import Doubt

from . import ledger
from .programs import VOTERS
from .stage import Stage

T = TypeVar("T")
AWAY = (CommunicationError, psycopg.OperationalError, psycopg.InterfaceError)
_PATIENCE = 60.0  # seconds for which somebody tries to be heard
_OFTEN = 0.15  # seconds between two looks at what waits for an answer


class Planned(NamedTuple):
    """What somebody is going to do."""

    at: float  # time.monotonic()
    deed: Callable[[], object]


class People:
    """Everybody around a stage."""

    def __init__(self, stage: Stage, value_of: Callable[[str, str], Any], start: int) -> None:
        """value_of: the result that a step of a run must have; LookupError for runs that are not ours."""
        self._stage = stage
        self._value_of = value_of
        self._start = start  # in the ledger
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="chaos-people")
        self._planned: list[Planned] = []
        self._at_work: list[Future[object]] = []
        self._looking: Future[object] | None = None
        self._looked = 0.0
        self._errors: list[str] = []

    def later(self, seconds: float, deed: Callable[[], object]) -> None:
        """Let somebody do something, so many seconds from now."""
        self._planned.append(Planned(time.monotonic() + seconds, deed))

    def look(self, *, calm: bool) -> bool:
        """Let them do what is due; whether nothing is left of what was planned.

        calm: whether all faults are over for some time, so that who is asked about a lost worker may answer.
        """
        now = time.monotonic()
        due = [each for each in self._planned if each.at <= now]
        self._planned = [each for each in self._planned if each.at > now]
        self._at_work += [self._threads.submit(patiently, each.deed) for each in due]
        self._at_work = [each for each in self._at_work if not self._heard(each)]
        if now >= self._looked + _OFTEN and (self._looking is None or self._heard(self._looking)):
            self._looked = now
            self._looking = self._threads.submit(self._answer, calm)
        return not self._planned and not self._at_work

    def _heard(self, work: Future[object]) -> bool:
        if work.done() and (error := work.exception()) is not None:
            self._errors.append(f"a client was told {type(error).__name__}: {error}")
        return work.done()

    def problems(self) -> Iterator[str]:
        """What clients were told that they should not have been."""
        yield from self._errors

    def end(self) -> None:
        """Nobody does anything more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _answer(self, calm: bool) -> None:
        """Vote on what is shown, and say what became of effects in doubt."""
        client = self._stage.client
        for asked in patiently(client.approvals) or ():
            if self._ours(asked.run, asked.step):
                for who in VOTERS:
                    patiently(lambda who=who, asked=asked: client.approve(asked.run, asked.step, who))  # type: ignore[misc]
        doubts = [doubt for doubt in patiently(client.doubts) or () if not doubt.probing]
        if doubts and calm:
            lines = ledger.read(self._stage.folder, self._start)
            for doubt in doubts:
                if self._ours(doubt.run, doubt.step):
                    self._resolve(doubt, lines.get(doubt.run, []))

    def _ours(self, run: str, step: str) -> bool:
        try:
            self._value_of(run, step)
        except LookupError:
            return False
        return True

    def _resolve(self, doubt: Doubt, lines: list[ledger.Line]) -> None:
        """As a person does who waits until the lost worker is gone, and looks."""
        mine = [line for line in lines if line.step == doubt.step]
        left = {line.pid for line in mine if line.kind == "out"}
        if any(line.kind == "begin" and line.pid not in left and _lives(line) for line in mine):
            return  # somebody may still be at it
        said: dict[str, Any] = {"retry": True}
        if any(line.kind == "effect" for line in mine):
            said = {"done": self._value_of(doubt.run, doubt.step)}
        patiently(lambda: self._stage.client.resolve(doubt.run, doubt.step, **said, by="the harness"))


def _lives(line: ledger.Line) -> bool:
    """Whether the process that wrote a line is still there."""
    try:
        return birth(line.pid) is not None and os.getpgid(line.pid) == line.group
    except ProcessLookupError:
        return False


def patiently(deed: Callable[[], T]) -> T | None:
    """Do something again until Postgres is there; None where the run is over or the step waits no more."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return deed()
        except StateError:
            return None
        except AWAY:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
