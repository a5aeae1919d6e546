"""One process of the stack: start it, know when it is ready, stop it.

The law: a child has a record on disk from its first moment, so that whatever outlives us is found and
stopped by the next start; `ready` is one short probe that never raises; waiting has a deadline and
ends early with the child.
"""

from __future__ import annotations

import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import StackError
from .processes import (
    POLL_SECONDS,
    Account,
    Record,
    end,
    failed,
    how_it_ended,
    make_folder,
    spawn,
)

StopSteps = Sequence[tuple[signal.Signals, float]]


class Child(ABC):
    """A process that belongs to the stack in `home`."""

    name: str
    mark: str  # a word of its command, the last proof of identity
    death_signal: signal.Signals = signal.SIGTERM  # sent by the kernel when this process dies
    stop_steps: StopSteps = ((signal.SIGTERM, 10.0),)
    ready_seconds: float = 60.0
    reticent: bool = False  # what it logs while it starts and stops interests nobody unless it fails

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        self.log = self.home / "logs" / f"{self.name}.log"
        self.account: Account | None = None
        self._record = self.home / "run" / f"{self.name}.json"
        self._process: subprocess.Popen[bytes] | None = None

    # --- what a kind of child says about itself

    @abstractmethod
    def command(self) -> list[str]:
        """The program and its arguments."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether it does its work now; one short probe that never raises."""

    @abstractmethod
    def address(self) -> str:
        """Where a person finds it."""

    def environment(self) -> Mapping[str, str] | None:
        """Its environment; None for ours."""
        return None

    def prepare(self) -> None:
        """Make what it needs on disk, once."""
        make_folder(self.log.parent, 0o700)
        make_folder(self._record.parent, 0o700)

    # --- its life

    def start(self, *, wait: bool = True) -> None:
        """Start it, after stopping one that an earlier process left behind.

        Raises StackError when it dies or is not ready in time; with `wait=False` it returns at once.
        """
        if self.alive:
            raise StackError(self.name, f"runs already (pid {self.pid})", "stop it first")
        self.prepare()
        self.clean()
        self._process = spawn(
            self.command(),
            log=self.log,
            env=self.environment(),
            account=self.account,
            death_signal=self.death_signal,
        )
        record = Record.of(self._process.pid, self.mark)
        if record is not None:
            record.write(self._record)
        if wait:
            self.wait_ready()

    def wait_ready(self, seconds: float | None = None) -> None:
        """Wait until it is ready. Raises StackError with the end of its log."""
        limit = self.ready_seconds if seconds is None else seconds
        deadline = time.monotonic() + limit
        while not self.ready():
            status = self.status()
            if status is not None:
                raise failed(self.name, self.log, f"did not start ({status})")
            if time.monotonic() > deadline:
                raise failed(self.name, self.log, f"was not ready after {limit:g} s")
            self.wait(POLL_SECONDS)

    def stop(self, steps: StopSteps | None = None) -> int | None:
        """Stop it by `steps`, SIGKILL at last. Returns its exit status; None when it never ran."""
        if self._process is None:
            return None
        status = end(self._process, steps or self.stop_steps)
        self._record.unlink(missing_ok=True)
        return status

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it with SIGKILL and wait for its end, as a fault would."""
        if self._process is not None and self.alive:
            self._process.kill()
            self._process.wait()

    def clean(self) -> bool:
        """Stop what an earlier process left behind. True when there was something."""
        record = Record.read(self._record)
        if record is None or not record.alive():
            self._record.unlink(missing_ok=True)
            return False
        if not record.end((*self.stop_steps, (signal.SIGKILL, 5.0))):
            raise StackError(
                self.name, f"of an earlier stack cannot be stopped (pid {record.pid})", "stop it by hand"
            )
        self._record.unlink(missing_ok=True)
        return True

    # --- what is known about it

    @property
    def pid(self) -> int | None:
        """Its pid; None when it was never started."""
        return None if self._process is None else self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def returncode(self) -> int | None:
        """Its exit status as subprocess gives it; None while it runs."""
        return None if self._process is None else self._process.poll()

    def wait(self, seconds: float) -> bool:
        """Wait for its end. True when it has ended."""
        if self._process is None:
            return True
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def status(self) -> str | None:
        """How it ended, in words; None while it runs."""
        code = self.returncode()
        return None if code is None else how_it_ended(code)
