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
_LOOK_MAX = 3.0
_LOOK_SHARE = 8  # a look is followed by a pause of eight times its cost
_RUNNING = 8  # running steps on a screen
_INCIDENTS = 50
_TOLD = 3  # of those that came with one look; the others are counted
_STORM = 2.0  # seconds without a word after that
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
        self._next_storm = 0.0
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
        self._tell(view, incidents, look)
        if advice is not None:
            view.tell(Text(f"nothing moves: {advice}", "yellow"))
        if not look.run.finished:
            view.show(look)
        return look.run

    def _tell(self, view: View, incidents: list[Incident], look: Look) -> None:
        """Say what went wrong since the last look; of a storm, only that it blows."""
        fresh = [each for each in incidents if each.id not in self._told and each.step is not None]
        if not fresh or (look.at < self._next_storm and not look.run.finished):
            return
        self._told.update(each.id for each in fresh)
        for incident in fresh[:_TOLD]:
            view.tell(words.incident_line(incident))
        if len(fresh) > _TOLD:
            least = "at least " if len(incidents) == _INCIDENTS else ""
            view.tell(Text(f"… and {least}{words.plural(len(fresh) - _TOLD, 'more failed attempt')}", "dim"))
            self._next_storm = look.at + _STORM

    def _read(self) -> tuple[Look, list[Incident]]:
        summaries = self._summaries
        age = summaries.age(self._run)  # fails at once where Postgres is away; the client would wait for it
        run = self._client.get(self._run)  # before the rest, so that nothing is missing once it is over
        incidents = summaries.incidents(self._run, _INCIDENTS)
        look = Look(run, age, self._client.progress(self._run), summaries.running(self._run, _RUNNING))
        return look, incidents


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
