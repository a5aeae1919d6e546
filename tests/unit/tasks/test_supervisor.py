"""The supervisor: one log, restarts, an orderly end. Its children here are small Python programs."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from trellis.tasks.child import Child
from trellis.tasks.errors import StackError
from trellis.tasks.restarts import LIMIT
from trellis.tasks.supervisor import KEPT_LOGS, Follower, Stopped, Supervisor, rotate

WAITS = "import threading; print('at work', flush=True); threading.Event().wait()"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAITS}"
FAILS = "print('no such thing'); raise SystemExit(7)"


class Program(Child):
    """A Python program; ready when it says so in its log."""

    mark = "python"

    def __init__(self, home: Path, name: str, script: str, patience: float = 10.0) -> None:
        self.name = name
        self.stop_steps = ((signal.SIGTERM, patience), (signal.SIGINT, 0.0))
        super().__init__(home)
        self._script = script

    def command(self) -> list[str]:
        return [sys.executable, "-c", self._script, "python"]

    def address(self) -> str:
        return "nowhere"

    def ready(self) -> bool:
        return self.alive and self.log.read_text().endswith("at work\n")

    def start(self, *, wait: bool = True) -> None:
        if self.log.exists():
            self.log.write_text("")
        super().start(wait=wait)


class Screen:
    """What a person sees."""

    def __init__(self) -> None:
        self._out = io.StringIO()
        self.console = Console(file=self._out, width=200, force_terminal=False)

    @property
    def text(self) -> str:
        return self._out.getvalue()


@contextmanager
def supervised(home: Path, screen: Screen) -> Iterator[Supervisor]:
    with Supervisor(screen.console, home / "logs") as supervisor:
        try:
            yield supervisor
        finally:
            supervisor.stop(("first", "second"))


@contextmanager
def meanwhile(*actions: Callable[[], object]) -> Iterator[None]:
    """Run actions one after another in a thread, then ask this process to stop, as Ctrl-C does."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            for action in actions:
                action()
        except BaseException as error:
            failures.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()
    if failures:
        raise failures[0]


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        pause.wait(0.02)


def test_children_start_and_stop_in_order_with_one_log(tmp_path: Path) -> None:
    screen = Screen()
    second, first = Program(tmp_path, "second", WAITS), Program(tmp_path, "first", WAITS)
    with supervised(tmp_path, screen) as supervisor:
        supervisor.launch(second)
        supervisor.launch(first)
        supervisor.settle()
        assert first.alive
        assert second.alive
        with meanwhile(lambda: None):
            supervisor.run()
    assert not first.alive
    assert not second.alive
    assert "first    │ at work" in screen.text
    assert screen.text.index("first stopped") < screen.text.index("second stopped")
    assert "first stopped" in (tmp_path / "logs" / "trellis.log").read_text()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_child_that_dies_is_reported_and_restarted(tmp_path: Path) -> None:
    screen = Screen()
    child = Program(tmp_path, "first", WAITS)
    with supervised(tmp_path, screen) as supervisor:
        supervisor.launch(child)
        supervisor.settle()
        before = child.pid
        assert before is not None
        with meanwhile(
            lambda: os.kill(before, signal.SIGKILL), lambda: until(lambda: "is back" in screen.text)
        ):
            supervisor.run()
        assert child.pid != before
    assert f"first died (pid {before}, killed by SIGKILL): it starts again in 0.2 s" in screen.text


def test_a_child_that_does_not_start_ends_the_start_with_its_log(tmp_path: Path) -> None:
    with supervised(tmp_path, Screen()) as supervisor:
        supervisor.launch(Program(tmp_path, "first", FAILS))
        with pytest.raises(StackError, match=r"first did not start \(exit status 7\).*\nno such thing"):
            supervisor.settle()


def _breaks_after_its_start(tmp_path: Path) -> Program:
    """Ready at its first start; later ones fail."""
    flag = tmp_path / "started"
    first = f"import pathlib; flag = pathlib.Path({str(flag)!r}); first = not flag.exists(); flag.touch()"
    return Program(tmp_path, "first", f"{first}\nif not first: {FAILS}\n{WAITS}")


def test_a_child_that_keeps_dying_is_given_up_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trellis.tasks.restarts.FIRST_DELAY", 0.01)
    child = _breaks_after_its_start(tmp_path)
    with supervised(tmp_path, Screen()) as supervisor:
        supervisor.launch(child)
        supervisor.settle()
        child.kill()
        with pytest.raises(
            StackError, match=rf"first died {LIMIT + 1} times soon after its start.*\nno such"
        ):
            supervisor.run()


def test_a_child_that_is_not_essential_stays_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trellis.tasks.restarts.FIRST_DELAY", 0.01)
    screen = Screen()
    child, other = _breaks_after_its_start(tmp_path), Program(tmp_path, "second", WAITS)
    with supervised(tmp_path, screen) as supervisor:
        supervisor.launch(child, essential=False)
        supervisor.launch(other)
        supervisor.settle()
        child.kill()
        with meanwhile(lambda: until(lambda: "it stays off" in screen.text)):
            supervisor.run()
        assert other.alive


def test_a_person_may_stop_the_stack_while_it_starts(tmp_path: Path) -> None:
    with supervised(tmp_path, Screen()) as supervisor:
        supervisor.launch(Program(tmp_path, "first", "import threading; threading.Event().wait()"))
        with meanwhile(), pytest.raises(Stopped):
            supervisor.settle()


def test_asked_again_the_patience_is_over(tmp_path: Path) -> None:
    screen = Screen()
    child = Program(tmp_path, "first", STUBBORN, patience=600.0)
    with Supervisor(screen.console, tmp_path / "logs") as supervisor:
        supervisor.launch(child)
        supervisor.settle()
        with meanwhile(lambda: until(lambda: "waiting for first" in screen.text)):
            supervisor.stop(())
    assert not child.alive


def test_what_an_earlier_stack_left_behind_is_stopped(tmp_path: Path) -> None:
    screen = Screen()
    left = Program(tmp_path, "first", WAITS)
    left.start()
    with supervised(tmp_path, screen) as supervisor:
        child = Program(tmp_path, "first", WAITS)
        supervisor.launch(child)
        supervisor.settle()
        assert not left.alive
        assert child.alive
    assert "stopped a first that an earlier stack had left behind" in screen.text


def test_the_log_of_a_reticent_child_shows_only_while_it_runs(tmp_path: Path) -> None:
    screen = Screen()
    child = Program(tmp_path, "first", WAITS)
    child.reticent = True
    with supervised(tmp_path, screen) as supervisor:
        supervisor.launch(child)
        supervisor.settle()
        with child.log.open("a") as log:
            log.write("an error that matters\n")
        with meanwhile(lambda: until(lambda: "an error that matters" in screen.text)):
            supervisor.run()
    assert "at work" not in screen.text


def test_escape_sequences_in_a_log_do_not_reach_the_terminal(tmp_path: Path) -> None:
    screen = Screen()
    with supervised(tmp_path, screen) as supervisor:
        child = Program(tmp_path, "first", r"print('\x1b]0;owned\x07\x1b[2Jharmless'); " + WAITS)
        supervisor.launch(child)
        supervisor.settle()
    assert "harmless" in screen.text
    assert "\x1b" not in screen.text


def test_a_terminal_that_is_gone_does_not_end_the_stack(tmp_path: Path) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    with Supervisor(Console(file=Gone()), tmp_path / "logs") as supervisor:
        child = Program(tmp_path, "first", WAITS)
        supervisor.launch(child)
        supervisor.settle()
        supervisor.stop(())
        assert not child.alive


def test_a_follower_gives_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    follower = Follower(path)
    assert follower.lines() == []
    with path.open("ab") as log:
        for written, expected in [
            (b"one\ntw", ["one"]),
            (b"o", []),
            (b"\nbad \xff\n", ["two", "bad \ufffd"]),
        ]:
            log.write(written)
            log.flush()
            assert follower.lines() == expected


def test_the_last_logs_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    for number in range(KEPT_LOGS + 3):
        path.write_text(str(number))
        rotate(path)
    newest = KEPT_LOGS + 2
    kept = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert kept == {f"x.log.{age + 1}": str(newest - age) for age in range(KEPT_LOGS)}


STORM = """
import signal, sys
from pathlib import Path
from rich.console import Console
from trellis.tasks.supervisor import Supervisor

with Supervisor(Console(), Path(sys.argv[1])) as supervisor:
    signal.signal(signal.SIGALRM, supervisor._on_signal)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    for _ in range(3000):
        supervisor._pause(0.0003)
    signal.setitimer(signal.ITIMER_REAL, 0)
"""


def test_a_signal_at_any_moment_is_heard(tmp_path: Path) -> None:
    """A storm of them: whatever the supervisor does just then, none leaves it waiting for itself."""
    ended = subprocess.run([sys.executable, "-c", STORM, str(tmp_path / "logs")], timeout=60)
    assert ended.returncode == 0
