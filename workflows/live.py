"""Watching a run until it is over, on a terminal or as plain lines.

The law: watching changes nothing and costs little. Each look counts the steps and reads a screenful, and
looks are the rarer the dearer they are, so a run of 100,000 steps is watched as lightly as one of ten. A
database that does not answer for a while ends no watching: the run goes on without it as well.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

import psycopg
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import InterfaceError, OperationalError

from ..tasks.app import app
from ..tasks.errors import CommunicationError
from . import rollcall, show, words
from .client import Client
from .records import Progress, Run
from .states import StepState
from .summaries import Running, Summaries

_LOOK = 0.25  # seconds between looks at least
_LOOKS_SHARE = 20  # a look that takes a second is followed by one after 20
_LOOK_MAX = 5.0
_STALLED = 3.0  # seconds in which nothing runs before the workers are asked
_STALLED_AGAIN = 30.0
_SILENT = 10.0  # seconds without a tick; one that is late comes sooner
_SHOWN = 8  # running steps on the screen
_INCIDENTS = 50
_LINE_EVERY = 2.0  # seconds between plain lines
_LINE_MAX = 60.0
_BAR = 40

AWAY = (OperationalError, InterfaceError, psycopg.OperationalError, psycopg.InterfaceError)


@dataclass(frozen=True, slots=True)
class Look:
    """A run at one moment."""

    run: Run
    seconds: float  # since it began, by the clock of Postgres
    progress: Progress
    running: Sequence[Running]
    at: float = field(default_factory=time.monotonic)


class View(Protocol):
    """Where looks are shown."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, look: Look) -> None:
        """Show how far the run is."""

    def tell(self, line: Text) -> None:
        """Show a line that stays."""


def view_on(console: Console) -> View:
    """The view that fits a console."""
    return Screen(console) if console.is_terminal else Lines(console)


class Watch:
    """Watches one run; may be broken off and taken up again."""

    def __init__(self, client: Client, run: Run) -> None:
        self._client = client
        self._run_id = run.id
        self._summaries = Summaries(client.database)
        self._told: set[int] = set()
        self._away = False
        self._moved = time.monotonic()  # when something was last seen to run or to be done
        self._done = -1
        self._asked = 0.0
        self._question: threading.Thread | None = None
        self._advice: str | None = None

    def follow(self, view: View) -> Run:
        """Show the run until it is over; answers with it as it ended."""
        woken = threading.Event()
        with self._client.ended(self._run_id, woken.set), view:
            while True:
                woken.clear()
                began = time.monotonic()
                found = self._look(view)
                if found is not None and found.finished:
                    return found
                woken.wait(min(_LOOK_MAX, max(_LOOK, (time.monotonic() - began) * _LOOKS_SHARE)))

    def _look(self, view: View) -> Run | None:
        """One look; None where the database does not answer."""
        try:
            run = self._client.get(self._run_id)
            look = Look(
                run,
                self._summaries.age(self._run_id),
                self._summaries.progress(self._run_id),
                self._summaries.running(self._run_id, _SHOWN),
            )
            incidents = self._summaries.incidents(self._run_id, _INCIDENTS)
        except (CommunicationError, *AWAY) as error:
            if not self._away:
                view.tell(
                    Text(
                        f"Postgres does not answer ({words.one_line(str(error), 120)}): trying again",
                        "yellow",
                    )
                )
            self._away = True
            return None
        if self._away:
            view.tell(Text("Postgres answers again", "green"))
        self._away = False
        for incident in incidents:
            if incident.id not in self._told and incident.step is not None:
                self._told.add(incident.id)
                view.tell(words.incident_line(incident))
        if not run.finished:
            view.show(look)
            self._care(look, view)
        return run

    def _care(self, look: Look, view: View) -> None:
        """Where nothing moves, ask the workers why, in the background."""
        if look.running or look.progress.done != self._done:
            self._done = look.progress.done
            self._moved = look.at
            return
        if self._question is not None and not self._question.is_alive():
            self._question = None
            if self._advice is not None:
                view.tell(Text(f"nothing runs: {self._advice}", "yellow"))
        stalled = look.at - self._moved >= _STALLED
        if stalled and self._question is None and look.at - self._asked >= _STALLED_AGAIN:
            self._asked = look.at
            needs = self._summaries.needs(self._run_id, _INCIDENTS)
            if needs:
                silence = self._summaries.silence()
                self._question = threading.Thread(target=self._ask, args=(needs, silence), daemon=True)
                self._question.start()

    def _ask(self, needs: set[rollcall.Need], silence: float | None) -> None:
        self._advice = rollcall.missing(app, needs)
        if self._advice is None and (silence is None or silence > _SILENT):
            last = "ever" if silence is None else f"for {words.duration(silence)}"
            self._advice = f"no tick has arrived {last}, and retries wait for it: start `trellis beat`"


class Screen:
    """A terminal: a bar, the counts, the running steps; incidents scroll by above them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._look: Look | None = None
        self._live = Live(
            console=console,
            get_renderable=self._render,
            refresh_per_second=8,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, look: Look) -> None:
        """Show how far the run is."""
        self._look = look

    def tell(self, line: Text) -> None:
        """Print a line above what moves."""
        self._console.print(line, no_wrap=True, overflow="ellipsis")

    def _render(self) -> RenderableType:
        look = self._look
        if look is None:
            return Text("")
        passed = time.monotonic() - look.at  # the clocks on the screen go on between two looks
        width = self._console.width
        parts: list[RenderableType] = [
            show.headline(look.run, look.seconds + passed),
            _bar(look.progress, min(_BAR, max(10, width - 20))),
            words.counted(look.progress.by_state),
        ]
        if look.running:
            parts.append(_running(look, passed, width))
        return Group(*parts)


def _bar(progress: Progress, width: int) -> Text:
    """How far, in the colours of what became of the steps."""
    bar, filled = Text(), 0
    for state in ("succeeded", "failed", "skipped", "cancelled"):
        share = width * progress.by_state.get(StepState(state), 0) // max(1, progress.total)
        bar.append("━" * share, words.STYLES[state])
        filled += share
    bar.append("━" * max(0, width - filled), "bright_black")
    percent = 100 * progress.done // max(1, progress.total)
    return bar.append(f" {progress.done:,}/{progress.total:,}  {percent} %", "default")


def _running(look: Look, passed: float, width: int) -> RenderableType:
    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("running", "time", "attempt", "progress"):
        found.add_column(name, no_wrap=True, overflow="ellipsis")
    found.columns[1].justify = found.columns[2].justify = "right"
    for step in look.running:
        told = "" if step.progress is None else words.one_line(words.compact(step.progress), width)
        attempt = Text(str(step.attempt), "yellow" if step.attempt > 1 else "")
        found.add_row(step.name, words.duration(step.seconds + passed), attempt, told)
    more = look.progress.by_state.get(StepState.RUNNING, 0) - len(look.running)
    return Group(found, Text(f"… and {more:,} more", "dim")) if more > 0 else found


class Lines:
    """Anything but a terminal: a line now and then, the rarer the longer it takes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ""
        self._next = 0.0
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, look: Look) -> None:
        """Show how far the run is, where that changed."""
        progress = look.progress
        line = f"{progress.done:,}/{progress.total:,} steps: {words.counted(progress.by_state).plain}"
        if line != self._last and look.at >= self._next:
            self._last = line
            self._next = look.at + min(_LINE_MAX, max(_LINE_EVERY, (look.at - self._began) / 20))
            self.tell(Text(line))

    def tell(self, line: Text) -> None:
        """Print a line."""
        self._console.print(line, soft_wrap=True, highlight=False)
