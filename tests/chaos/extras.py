"""What some cases have beside their runs: a schedule that fires meanwhile, a run that is cancelled, one that is paused.

The law: none of it changes what the runs of the case must come to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial

from . import laws
from .ledger import Line
from .people import People
from .programs import TICKED, ticked
from .stage import Stage

TICKS = 2  # of a schedule at least
EVERY = 1.0  # seconds between them


def pause(people: People, stage: Stage, run: str, after: float, length: float) -> None:
    """Let somebody pause a run, and let it go on later."""

    def hold() -> None:
        stage.client.pause(run)
        people.later(length, partial(stage.client.resume, run))

    people.later(after, hold)


class Ticking:
    """A schedule that fires every second: each tick once, and none left out."""

    def __init__(self, stage: Stage, people: People, name: str) -> None:
        self._stage = stage
        self._people = people
        self._name = f"ticking-{name}".replace(":", ".")
        self._began = self._paused = False

    def start(self) -> None:
        """Let somebody make it."""
        self._people.later(0.0, self._create)

    def _create(self) -> None:
        self._stage.client.schedules.create(
            self._name,
            ticked(self._name),
            every=EVERY,
            params={"base": 0, "tag": self._name},
            overlap="allow",
            catch_up=3600,
            tick_param="tick",
            replace=True,
        )
        self._began = True

    def over(self) -> bool:
        """Whether it has fired often enough, was paused, and its runs are over."""
        if not self._began or len(self._runs()) < TICKS:
            return False
        if not self._paused:
            self._paused = True
            self._people.later(0.0, partial(self._stage.client.schedules.pause, self._name))
            return False
        return all(state == "succeeded" for _, state, _ in self._runs())

    def _runs(self) -> list[tuple[str, str, str]]:
        statement = """SELECT id::text, state, params ->> 'tick' FROM run
                        WHERE workflow = %s ORDER BY params ->> 'tick', id"""
        return [(run, state, tick) for run, state, tick in self._stage.rows(statement, self._name)]

    def problems(self, lines: Mapping[str, Sequence[Line]], pauses: Sequence[laws.Pause]) -> Iterator[str]:
        """What is wrong with it, now that it is paused."""
        runs = self._runs()
        ticks = [datetime.fromisoformat(tick) for _, _, tick in runs]
        wanted = [ticks[0] + timedelta(seconds=EVERY * place) for place in range(len(ticks))] if ticks else []
        if ticks != wanted:
            yield f"the ticks of {self._name} are {[str(tick) for tick in ticks]}, and should be {EVERY:g} s apart"
        statement = "SELECT anchor, started FROM schedule WHERE name = %s"
        for anchor, started in self._stage.rows(statement, self._name):
            if started != len(runs):
                yield f"{self._name} counts {started} runs and has {len(runs)}"
            if ticks and not timedelta(0) <= ticks[0] - anchor <= timedelta(seconds=EVERY):
                yield f"{self._name} was made at {anchor}, and fired first at {ticks[0]}"
        for run, _, _ in runs:
            for problem in laws.check(self._stage.connect(), run, TICKED, 0, lines, pauses):
                yield f"run {run} of {self._name}: {problem}"
