"""Keeps the children of a stack alive, shows their logs as one, and stops them in order.

The law: one thread, one loop. Children write their own log files, which are followed from here: a
terminal that stands still (Ctrl-S, a slow pipe) never blocks a server, and a kill loses no line.
Signals only raise flags; the loop acts on them.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from .child import Child
from .processes import failed, make_folder
from .restarts import Restarts

PULSE_SECONDS = 0.1
KEPT_LOGS = 3
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
NAME_WIDTH = 8
OURS = "trellis"
COLOURS = {
    OURS: "bold",
    "postgres": "blue",
    "redis": "red",
    "worker": "green",
    "beat": "yellow",
    "flower": "magenta",
}


class Stopped(Exception):
    """A person asked the stack to stop while it was starting."""


class Follower:
    """Reads what is added to a file, whole lines only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""

    def lines(self) -> list[str]:
        """The lines added since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                added = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(added)
        *whole, self._rest = (self._rest + added).split(b"\n")
        return [line.decode(errors="replace").rstrip("\r") for line in whole]


def rotate(path: Path) -> None:
    """Begin a new log; the last few stay as name.log.1, name.log.2, …"""
    for number in range(KEPT_LOGS, 0, -1):
        older = path if number == 1 else path.with_name(f"{path.name}.{number - 1}")
        if older.exists():
            older.replace(path.with_name(f"{path.name}.{number}"))


@dataclass
class _Watch:
    """A child and what the supervisor knows about it."""

    child: Child
    essential: bool
    follower: Follower
    restarts: Restarts = field(default_factory=Restarts)
    started: float = 0.0
    due: float | None = None  # when it starts again; None while it runs
    ready: bool = False
    given_up: bool = False


class Supervisor:
    """Starts children, restarts those that die, stops all."""

    def __init__(self, console: Console, logs: Path) -> None:
        self._console = console
        self._watches: list[_Watch] = []
        # Written by the signal handler. Not a threading.Event: its lock is held for moments by the very thread
        # that the handler interrupts, and setting it then waits for ever.
        self._wake, self._wakener = os.pipe()
        os.set_blocking(self._wakener, False)
        self._asked = 0  # how often a person asked to stop
        self._ending = False
        self._deaf = False
        make_folder(logs, 0o700)
        rotate(logs / f"{OURS}.log")
        self._own_log = (logs / f"{OURS}.log").open("a")

    # --- what a person sees

    def say(self, text: str, style: str = "") -> None:
        """One line of our own in the merged log."""
        self._own_log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n")
        self._own_log.flush()
        self._show(OURS, text, style)

    def _show(self, name: str, line: str, style: str = "") -> None:
        prefix = Text(f"{name:<{NAME_WIDTH}} │ ", style=COLOURS.get(name, "cyan"))
        # Read as ANSI: colours stay, and no other escape sequence in a log reaches the terminal.
        text = Text.from_ansi(line, style=style)
        self.print(Text.assemble(prefix, text))

    def print(self, what: RenderableType) -> None:
        """Show something; a terminal that was closed under us is no reason to stop less orderly."""
        if self._deaf:
            return
        try:
            self._console.print(what, soft_wrap=not isinstance(what, Table), highlight=False)
        except OSError:
            self._deaf = True

    def _show_logs(self) -> None:
        for watch in self._watches:
            lines = watch.follower.lines()
            if watch.child.reticent and (self._ending or not watch.ready):
                continue
            for line in lines:
                self._show(watch.child.name, line)

    # --- signals

    def __enter__(self) -> Supervisor:
        """SIGINT, SIGTERM and SIGHUP ask to stop; asked again, to hurry."""
        self._handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._wake)
        os.close(self._wakener)
        self._own_log.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked += 1
        with suppress(BlockingIOError):
            os.write(self._wakener, b"!")

    @property
    def stopping(self) -> bool:
        """Whether a person asked to stop."""
        return self._asked > 0

    def check_stop(self) -> None:
        """Raise Stopped when a person asked to stop."""
        if self.stopping:
            raise Stopped

    def _pause(self, seconds: float) -> None:
        """Wait, with the logs going on; a signal ends it."""
        if select.select([self._wake], [], [], seconds)[0]:
            os.read(self._wake, 64)
        self._show_logs()

    # --- start

    def launch(self, child: Child, *, essential: bool = True) -> None:
        """Start a child without waiting; what an earlier stack left of it is stopped first."""
        rotate(child.log)
        watch = _Watch(child, essential, Follower(child.log))
        self._watches.append(watch)
        if child.clean():
            self.say(f"stopped a {child.name} that an earlier stack had left behind")
        self._start(watch)

    def settle(self) -> None:
        """Wait until every child is ready. Raises StackError with the end of a log, or Stopped."""
        for watch in self._watches:
            child = watch.child
            while not (watch.ready or child.ready()):
                self.check_stop()
                if not child.alive:
                    self._show_logs()
                    raise failed(child.name, child.log, f"did not start ({child.status()})")
                if time.monotonic() - watch.started > child.ready_seconds:
                    raise failed(child.name, child.log, f"was not ready after {child.ready_seconds:g} s")
                self._pause(PULSE_SECONDS / 4)
            watch.ready = True
        self._show_logs()

    def _start(self, watch: _Watch) -> None:
        watch.child.start(wait=False)
        watch.started = time.monotonic()
        watch.due = None
        watch.ready = False

    # --- run

    def run(self) -> None:
        """Keep all children alive until a person asks to stop. Raises StackError when one cannot be kept."""
        while not self.stopping:
            self._pause(PULSE_SECONDS)
            for watch in self._watches:
                self._look_after(watch)

    def _look_after(self, watch: _Watch) -> None:
        child, now = watch.child, time.monotonic()
        if watch.given_up:
            return
        if watch.due is not None:
            if now >= watch.due:
                self._start(watch)
        elif not child.alive:
            self._bury(watch, now)
        elif not watch.ready:
            if child.ready():
                watch.ready = True
                self.say(
                    f"{child.name} is back (pid {child.pid}, after {now - watch.started:.1f} s)", "green"
                )
            elif now - watch.started > child.ready_seconds:
                self.say(f"{child.name} is not ready after {child.ready_seconds:g} s, it is killed", "red")
                child.kill()

    def _bury(self, watch: _Watch, now: float) -> None:
        """Report a death; arrange the next start, or give up."""
        child = watch.child
        self._show_logs()
        delay = watch.restarts.died(now - watch.started)
        if delay is not None:
            watch.due = now + delay
            self.say(
                f"{child.name} died (pid {child.pid}, {child.status()}): it starts again in {delay:g} s",
                "red",
            )
            return
        problem = f"died {watch.restarts.quick} times soon after its start ({child.status()})"
        if watch.essential:
            raise failed(child.name, child.log, problem)
        watch.given_up = True
        self.say(f"{child.name} {problem}: it stays off; see its log {child.log}", "red")

    # --- stop

    def stop(self, order: Sequence[str]) -> None:
        """Stop all children, in the order of their names."""
        if any(watch.child.alive for watch in self._watches):
            self.say("stopping", "bold")
        self._ending = True
        rank = {name: place for place, name in enumerate(order)}
        for watch in sorted(self._watches, key=lambda watch: rank.get(watch.child.name, len(rank))):
            self._stop(watch.child)
        self._show_logs()

    def _stop(self, child: Child) -> None:
        began, ran = time.monotonic(), child.alive
        for number, seconds in (*child.stop_steps, (signal.SIGKILL, 5.0)):
            if not child.alive:
                break
            child.send(number)
            self._await_end(child, seconds)
        child.stop()
        if ran:
            self.say(f"{child.name} stopped ({child.status()}, {time.monotonic() - began:.1f} s)")

    def _await_end(self, child: Child, seconds: float) -> None:
        """Wait for the end of a child; a person who asks again ends the patience."""
        began, asked, told = time.monotonic(), self._asked, False
        while child.alive and self._asked == asked and time.monotonic() < began + seconds:
            self._pause(PULSE_SECONDS / 4)
            if not told and time.monotonic() > began + 1.0:
                told = True
                self.say(f"waiting for {child.name}, at most {seconds:g} s (Ctrl-C: no longer)", "yellow")
