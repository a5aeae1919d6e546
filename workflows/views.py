"""Where a watched run is shown: on a terminal, or as plain lines.

The law: a view only draws what it is given. On a terminal the clocks go on between two looks; elsewhere there
is not one control code, and lines are the rarer the longer it takes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from . import show, words
from .records import Progress, Run
from .states import StepState
from .summaries import Running

_LINE_EVERY = 2.0  # seconds between plain lines
_LINE_MAX = 60.0
_BAR = 40


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
    return Screen(console) if console.is_terminal and not console.is_dumb_terminal else Lines(console)


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
