"""Watching a run until it is over.

The law: watching changes nothing and costs little. Each look counts the steps and reads a screenful, and
looks are the rarer the dearer they are, so a run of 100,000 steps is watched as lightly as one of ten. A
database that does not answer for a while ends no watching: the run goes on without it as well.
"""

from __future__ import annotations

import threading
import time

import psycopg
from rich.text import Text
from sqlalchemy.exc import InterfaceError, OperationalError

from ..tasks.app import app
from ..tasks.errors import CommunicationError
from . import rollcall, words
from .client import Client
from .records import Run
from .summaries import Incident, Summaries
from .views import Look, View

_LOOK = 0.25  # seconds between looks at least
_LOOK_MAX = 5.0
_LOOK_SHARE = 20  # a look is followed by a pause of twenty times its cost
_RUNNING = 8  # running steps on a screen
_INCIDENTS = 50
_STALLED = 3.0  # seconds in which nothing moves before the workers are asked
_STALLED_AGAIN = 30.0
_SILENT = 10.0  # seconds without a tick; one that is merely late comes sooner

AWAY = (OperationalError, InterfaceError, psycopg.OperationalError, psycopg.InterfaceError)


class Watch:
    """Watches one run; may be broken off and taken up again."""

    def __init__(self, client: Client, run: Run) -> None:
        self._client = client
        self._run = run.id
        self._summaries = Summaries(client.database)
        self._doubt = _Doubt(self._summaries, run.id)
        self._told: set[int] = set()
        self._away = False

    def follow(self, view: View) -> Run:
        """Show the run until it is over; answers with it as it ended."""
        woken = threading.Event()
        with self._client.ended(self._run, woken.set), view:
            while True:
                woken.clear()
                began = time.monotonic()
                found = self._look(view)
                if found is not None and found.finished:
                    return found
                woken.wait(min(_LOOK_MAX, max(_LOOK, (time.monotonic() - began) * _LOOK_SHARE)))

    def _look(self, view: View) -> Run | None:
        """One look; None where the database does not answer."""
        try:
            look, incidents = self._read()
            advice = None if look.run.finished else self._doubt.advice(look)
        except (CommunicationError, *AWAY) as error:
            if not self._away:
                reason = words.one_line(str(error), 120)
                view.tell(Text(f"Postgres does not answer: {reason}; trying again", "yellow"))
            self._away = True
            return None
        if self._away:
            self._away = False
            view.tell(Text("Postgres answers again", "green"))
        for incident in incidents:
            if incident.id not in self._told and incident.step is not None:
                self._told.add(incident.id)
                view.tell(words.incident_line(incident))
        if advice is not None:
            view.tell(Text(f"nothing moves: {advice}", "yellow"))
        if not look.run.finished:
            view.show(look)
        return look.run

    def _read(self) -> tuple[Look, list[Incident]]:
        summaries = self._summaries
        run = self._client.get(self._run)  # before the rest, so that nothing is missing once it is over
        incidents = summaries.incidents(self._run, _INCIDENTS)
        age, progress = summaries.age(self._run), summaries.progress(self._run)
        return Look(run, age, progress, summaries.running(self._run, _RUNNING)), incidents


class _Doubt:
    """Finds out why nothing moves."""

    def __init__(self, summaries: Summaries, run_id: str) -> None:
        self._summaries = summaries
        self._run = run_id
        self._done = -1
        self._moved = time.monotonic()
        self._asked = float("-inf")
        self._question: _Question | None = None

    def advice(self, look: Look) -> str | None:
        """What a person should know, once it is found out."""
        if look.running or look.progress.done != self._done:
            self._done, self._moved, self._question = look.progress.done, look.at, None
        elif self._question is not None:
            if not self._question.is_alive():
                found, self._question = self._question.found, None
                return found
        elif look.at - self._moved >= _STALLED and look.at - self._asked >= _STALLED_AGAIN:
            self._asked = look.at
            needs = self._summaries.needs(self._run, _INCIDENTS)
            if needs:
                self._question = _Question(needs, self._summaries.silence())
                self._question.start()
        return None


class _Question(threading.Thread):
    """Asks the workers, beside the watching: to be sure that nobody answers takes a second."""

    def __init__(self, needs: set[rollcall.Need], silence: float | None) -> None:
        super().__init__(name="trellis-question", daemon=True)
        self._needs = needs
        self._silence = silence
        self.found: str | None = None

    def run(self) -> None:
        """Ask."""
        self.found = rollcall.missing(app, self._needs)
        if self.found is None and (self._silence is None or self._silence > _SILENT):
            last = "ever" if self._silence is None else f"for {words.duration(self._silence)}"
            self.found = f"no tick has arrived {last}, and retries wait for one: start `trellis beat`"
