"""The programs of a stage, each started again whenever it is found dead.

The law: a program is a session of its own, and no signal goes to anything else. What Trellis runs is forked by the
zygote; the application that knows nothing of Trellis is a process from its first line.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import forks
from forks import Zygote

from trellis.tasks.processes import spawn

TESTS = Path(__file__).resolve().parents[1]
BOOT = Path(__file__).resolve().parent / "boot"
CELERY = BOOT / "celery_program.py"
PATH = os.pathsep.join((str(BOOT), str(TESTS)))


def maker() -> Zygote:
    """Forks what Trellis runs; whoever reads the time there finds a clock that each of them may set."""
    others = {key: value for key, value in os.environ.items() if not key.startswith("TRELLIS_")}
    return Zygote({**others, "PYTHONPATH": PATH, "CHAOS_CLOCK": ""})


class Program(ABC):
    """A Celery program."""

    def __init__(self, name: str, arguments: tuple[str, ...], env: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._arguments = arguments
        self._env = dict(env)
        self._process: forks.Forked | subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that was started last."""
        return None if self._process is None else self._process.pid

    def start(self) -> bool:
        """Start it, if it does not run; whether that was needed."""
        if self._process is not None and self._process.poll() is None:
            return False
        self._process = self._start()
        return True

    def send(self, number: int) -> None:
        """Send a signal to it and all its children."""
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def end(self) -> None:
        """Kill it; cases are over."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def text(self) -> str:
        """What it has logged."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @abstractmethod
    def _start(self) -> forks.Forked | subprocess.Popen[bytes]:
        """Start it, in a session of its own."""


class Forked(Program):
    """One of Trellis' own."""

    def __init__(
        self, zygote: Zygote, name: str, arguments: tuple[str, ...], env: Mapping[str, str], folder: Path
    ) -> None:
        super().__init__(name, ("-A", "trellis.tasks", *arguments), env, folder)
        self._zygote = zygote

    def _start(self) -> forks.Forked:
        return forks.Forked(["python", str(CELERY), *self._arguments], self._env, self.log, self._zygote)


class Stranger(Program):
    """One that has nothing of Trellis in it."""

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "celery", *self._arguments]
        return spawn(command, log=self.log, env=self._env, death_signal=signal.SIGKILL)
