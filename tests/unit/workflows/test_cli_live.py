"""Watching a run: what is shown, on a terminal and elsewhere, and what is asked."""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Self, cast

import psycopg
import pytest
import typer
from rich.console import Console
from rich.text import Text

from trellis.workflows import live, rollcall, terminal, views
from trellis.workflows.client import Client
from trellis.workflows.records import Progress, Run
from trellis.workflows.states import RunState, StepState
from trellis.workflows.summaries import Incident, Running

NOON = datetime(2013, 1, 1, 12, tzinfo=UTC)
ID = "01a1f837-a172-7aab-a423-780f50f9aad4"
RUN = Run(ID, "flights", RunState.RUNNING, None, {}, ID, "0", 3, None, NOON, NOON, None)
OVER = replace(RUN, state=RunState.SUCCEEDED, finished_at=NOON)


def progress(**states: int) -> Progress:
    counts = {StepState(name): count for name, count in states.items()}
    done = counts.get(StepState.SUCCEEDED, 0) + counts.get(StepState.FAILED, 0)
    return Progress(sum(counts.values()), done, counts)


def look(moving: list[Running] | None = None, at: float = 0.0, **states: int) -> views.Look:
    return views.Look(RUN, 3.0, progress(**states), moving or [], at)


def incident(number: int) -> Incident:
    return Incident(number, NOON, "step.retry", f"s{number}", 1, {"type": "E", "message": "no", "delay": 1})


class Fake:
    """A client and its summaries: each look takes the next of these runs."""

    def __init__(self, *runs: Run | Exception) -> None:
        self.runs = list(runs)
        self.database: Any = None
        self.happened: list[Incident] = []
        self.counts = progress(ready=2)
        self.moving: list[Running] = []
        self.needed = {("act", "celery")}
        self.tick: float | None = 0.5
        self.cancelled = False

    @contextmanager
    def ended(self, run: str, callback: Callable[[], None]) -> Iterator[None]:
        yield

    def get(self, run: str) -> Run:
        if self.cancelled:
            return replace(RUN, state=RunState.CANCELLED, finished_at=NOON)
        found = self.runs.pop(0) if len(self.runs) > 1 else self.runs[0]
        if isinstance(found, Exception):
            raise found
        return found

    def cancel(self, run: Run) -> bool:
        self.cancelled = True
        return True

    def age(self, run: str) -> float:
        return 3.0

    def progress(self, run: str) -> Progress:
        return self.counts

    def running(self, run: str, limit: int) -> list[Running]:
        return self.moving

    def incidents(self, run: str, limit: int) -> list[Incident]:
        return self.happened[-limit:]

    def needs(self, run: str, limit: int) -> set[tuple[str, str]]:
        return self.needed

    def silence(self) -> float | None:
        return self.tick


class Recorded:
    """A view that remembers."""

    def __init__(self) -> None:
        self.looks: list[views.Look] = []
        self.lines: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, look: views.Look) -> None:
        self.looks.append(look)

    def tell(self, line: Text) -> None:
        self.lines.append(line.plain)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks follow each other at once, and summaries come from the fake client."""
    monkeypatch.setattr(live, "_LOOK", 0.0)
    monkeypatch.setattr(live, "_LOOK_MAX", 0.0)
    monkeypatch.setattr(live, "_STALLED", 0.0)
    monkeypatch.setattr(live, "Client", Fake)


def watch(monkeypatch: pytest.MonkeyPatch, fake: Fake) -> live.Watch:
    monkeypatch.setattr(live, "Summaries", lambda database: fake)
    return live.Watch(cast(Client, fake), RUN)


# --- watching


def test_it_ends_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last look shows nothing: the final table follows."""
    view = Recorded()
    assert watch(monkeypatch, Fake(RUN, RUN, OVER)).follow(view) == OVER
    assert len(view.looks) == 2


def test_each_incident_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even over an interruption."""
    fake = Fake(RUN, RUN, OVER)
    fake.happened = [incident(1), incident(2)]
    watched, view = watch(monkeypatch, fake), Recorded()
    watched.follow(view)
    watched.follow(view)
    assert [line.split()[1] for line in view.lines if "attempt" in line] == ["s1", "s2"]


def test_a_storm_of_incidents_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(OVER)
    fake.happened = [incident(number) for number in range(20)]
    view = Recorded()
    watch(monkeypatch, fake).follow(view)
    assert len(view.lines) == 4
    assert view.lines[-1] == "… and 17 more failed attempts"
    fake.happened = [incident(number) for number in range(1000)]
    view = Recorded()
    watch(monkeypatch, fake).follow(view)
    assert view.lines[-1] == "… and at least 47 more failed attempts"


def test_a_database_that_is_away_ends_no_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = psycopg.OperationalError("the server closed the connection")
    view = Recorded()
    assert watch(monkeypatch, Fake(RUN, gone, gone, RUN, OVER)).follow(view) == OVER
    told = [line for line in view.lines if line.startswith("Postgres")]
    assert told == [
        "Postgres does not answer: the server closed the connection; trying again",
        "Postgres answers again",
    ]


def stalled(monkeypatch: pytest.MonkeyPatch, fake: Fake, answer: str | None) -> list[str]:
    """What is told of a run that never moves."""
    asked = threading.Event()

    def missing(celery: object, needs: object) -> str | None:
        asked.set()
        return answer

    monkeypatch.setattr(rollcall, "missing", missing)
    doubt = live._Doubt(cast(Any, fake), ID)
    told = []
    for moment in itertools.count():
        advice = doubt.advice(look(at=float(moment), ready=2))
        if advice is not None:
            told.append(advice)
        if moment > 3 and (doubt._question is None or moment > 1000):
            break
        if doubt._question is not None:
            doubt._question.join()
    assert asked.is_set() == bool(fake.needed)
    return told


def test_where_nothing_moves_the_workers_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stalled(monkeypatch, Fake(RUN), "no worker answers") == ["no worker answers"]


def test_ticks_that_do_not_come_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(RUN)
    fake.tick = 75.0
    assert stalled(monkeypatch, fake, None)[0].startswith("no tick has arrived for 1 min 15 s")
    fake.tick = None
    assert stalled(monkeypatch, fake, None)[0].startswith("no tick has arrived ever")


def test_a_run_that_waits_for_its_turn_is_nothing_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stalled(monkeypatch, Fake(RUN), None) == []
    fake = Fake(RUN)
    fake.needed = set()  # a retry that is not due
    assert stalled(monkeypatch, fake, "never asked") == []


# --- views


def on_console(terminal_: bool, width: int = 60) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal_, width=width, color_system=None, highlight=False), file


def test_elsewhere_there_are_plain_lines_where_something_changed() -> None:
    console, file = on_console(False)
    view = views.view_on(console)
    with view:
        view.show(look(at=0.0, ready=2, succeeded=1))
        view.show(look(at=9.0, ready=2, succeeded=1))  # nothing new
        view.show(look(at=9.1, ready=1, succeeded=2))
        view.show(look(at=9.2, succeeded=3))  # too soon
        view.tell(Text("a long line " * 10))
    assert file.getvalue().splitlines() == [
        "1/3 steps: 1 succeeded, 2 ready",
        "2/3 steps: 2 succeeded, 1 ready",
        "a long line " * 10,
    ]
    assert "\x1b" not in file.getvalue()


def test_lines_are_the_rarer_the_longer_it_takes() -> None:
    console, file = on_console(False)
    view = views.Lines(console)
    view._began = 0.0
    for second in range(7200):
        view.show(look(at=float(second), succeeded=second, ready=1))
    assert 150 < len(file.getvalue().splitlines()) < 350


def test_a_terminal_shows_the_bar_the_counts_and_what_runs() -> None:
    console, _ = on_console(True, 80)
    screen = views.Screen(console)
    screen.show(
        look(
            [Running("load", 2, 1.5, {"rows": 100}, "w"), Running("check", 1, 61.0, None, "w")],
            at=1e12,
            succeeded=1,
            running=3,
            waiting=4,
        )
    )
    plain, file = on_console(False, 80)
    plain.print(screen._render())
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert lines[0].startswith(f"flights  {ID}  running for")
    assert lines[1] == "━" * 40 + " 1/8  12 %"
    assert lines[2] == "1 succeeded, 3 running, 4 waiting"
    assert lines[3].split() == ["running", "time", "attempt", "progress"]
    assert lines[4].split()[0] == "load"
    assert lines[4].endswith('{"rows": 100}')
    assert lines[6] == "… and 1 more"


def test_a_terminal_that_understands_nothing_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    console, _ = on_console(True)
    assert isinstance(views.view_on(console), views.Lines)
    monkeypatch.setenv("TERM", "xterm")
    console, _ = on_console(True)
    assert isinstance(views.view_on(console), views.Screen)


# --- Ctrl-C


class Interrupted(live.Watch):
    """A watch that a person breaks off twice."""

    times = 2

    def follow(self, view: views.View) -> Run:
        if self.times:
            self.times -= 1
            raise KeyboardInterrupt
        return super().follow(Recorded())


def interrupted(monkeypatch: pytest.MonkeyPatch, fake: Fake, *answers: str) -> Run:
    monkeypatch.setattr(live, "Summaries", lambda database: fake)
    monkeypatch.setattr(live, "Watch", Interrupted)
    left = list(answers)
    monkeypatch.setattr(terminal, "_ask", lambda where: left.pop(0))
    return terminal.watch(cast(Client, fake), RUN, as_json=False)


def test_who_stops_watching_may_let_it_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = Fake(RUN)
    with pytest.raises(typer.Exit) as left:
        interrupted(monkeypatch, fake, "w", "d")
    assert left.value.exit_code == 130
    assert not fake.cancelled
    said = capsys.readouterr().err
    assert f"trellis show {ID} --watch" in said
    assert f"trellis cancel {ID}" in said


def test_who_stops_watching_may_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert interrupted(monkeypatch, Fake(RUN), "c", "c").state is RunState.CANCELLED


def test_where_nobody_can_be_asked_the_run_goes_on() -> None:
    console, _ = on_console(False)
    assert terminal._ask(console) == "d"


@pytest.mark.parametrize(
    ("typed", "choice"),
    [(["c"], "c"), (["x", "", "Watch"], "w"), ([KeyboardInterrupt], "d"), ([EOFError], "d")],
)
def test_the_answer_is_one_letter(
    monkeypatch: pytest.MonkeyPatch, typed: list[str | type[BaseException]], choice: str
) -> None:
    console, _ = on_console(True)
    left = list(typed)

    def answer(prompt: Text) -> str:
        given = left.pop(0)
        if isinstance(given, str):
            return given
        raise given

    monkeypatch.setattr(console, "input", answer)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert terminal._ask(console) == choice
    assert left == []
