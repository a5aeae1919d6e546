"""The programs of a stage, each started again whenever it is found dead.

The law: a program is a session of its own, and no signal goes to anything else. What Trellis runs is forked by the
zygote; the application that knows nothing of Trellis is a process from its first line.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from trellis.tasks.processes import spawn

TESTS = Path(__file__).resolve().parents[1]
BOOT = Path(__file__).resolve().parent / "boot"
PATH = os.pathsep.join((str(BOOT), str(TESTS)))


class Zygote:
    """Forks Celery programs that are imported already."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        command = [sys.executable, "-m", "chaos.zygote", str(theirs.fileno())]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TRELLIS_")}
        with theirs:
            self._popen = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                env={**environment, "PYTHONPATH": PATH, "CHAOS_CLOCK": ""},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def ask(self, **request: Any) -> Any:
        """Send a request and wait for its answer."""
        with self._lock:
            self._control.send(json.dumps(request).encode())
            answer = self._control.recv(1 << 10)
        assert answer, "the zygote has died: see what it said above"
        return json.loads(answer)

    def close(self) -> None:
        """End it, and what it has started."""
        self._control.close()
        self._popen.wait()


class Program(ABC):
    """A Celery program."""

    def __init__(self, name: str, arguments: tuple[str, ...], env: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._arguments = arguments
        self._env = dict(env)
        self.pid: int | None = None

    def start(self) -> bool:
        """Start it, if it does not run; whether that was needed."""
        if self.pid is not None and not self._ended():
            return False
        self.pid = self._start()
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

    def text(self) -> str:
        """What it has logged."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @abstractmethod
    def _start(self) -> int:
        """Start it; its pid, which is that of its session."""

    @abstractmethod
    def _ended(self) -> bool:
        """Whether what was started has ended."""


class Forked(Program):
    """One of Trellis' own."""

    def __init__(
        self, zygote: Zygote, name: str, arguments: tuple[str, ...], env: Mapping[str, str], folder: Path
    ) -> None:
        super().__init__(name, ("-A", "trellis.tasks", *arguments), env, folder)
        self._zygote = zygote

    def _start(self) -> int:
        return int(self._zygote.ask(log=str(self.log), arguments=self._arguments, environment=self._env))

    def _ended(self) -> bool:
        return bool(self._zygote.ask(poll=self.pid))


class Stranger(Program):
    """One that has nothing of Trellis in it."""

    _popen: subprocess.Popen[bytes]

    def _start(self) -> int:
        command = [sys.executable, "-m", "celery", *self._arguments]
        self._popen = spawn(command, log=self.log, env=self._env, death_signal=signal.SIGKILL)
        return self._popen.pid

    def _ended(self) -> bool:
        return self._popen.poll() is not None

    def end(self) -> None:
        super().end()
        self._popen.wait()
