"""Where cases are played: servers of their own, two real workers and a beat, and who starts them again when they die.

The law: whatever a fault takes down comes back as a container would, without a look at what it was doing. Everything
that the stage started ends with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

from trellis.tasks import embedded, schema
from trellis.tasks.processes import spawn
from trellis.tasks.settings import PREFIX, Settings
from trellis.workflows import Client

from . import laws

TESTS = Path(__file__).resolve().parents[1]
BOOT = Path(__file__).resolve().parent / "boot"

# Short, so that a case takes seconds; the ratios between the times are those of the defaults. A busy machine may
# expire a lease of this length on its own, so crashes are not what ends a step here.
QUICK: dict[str, Any] = {
    "lease_seconds": 1.0,
    "heartbeat_seconds": 0.2,
    "tick_seconds": 0.25,
    "redelivery_seconds": 0.5,
    "redelivery_max_seconds": 3.0,
    "timeout_grace": 0.5,
    "step_timeout": 30.0,
    "pool_timeout": 5.0,
    "connect_timeout": 3,
    "shutdown_seconds": 2.0,
    "max_crashes": 25,
}
WORKERS = ("one", "two")
ELSEWHERE = "elsewhere"  # the queue of an application that knows nothing of Trellis
_MIGRATION = threading.Lock()


class Program:
    """A Celery program that is started again whenever it is found dead."""

    def __init__(
        self,
        name: str,
        arguments: tuple[str, ...],
        env: dict[str, str],
        folder: Path,
        application: str = "trellis.tasks",
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._command = [sys.executable, "-m", "celery", "-A", application, *arguments]
        self._env = env
        self.popen: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self) -> None:
        """Start it, if it does not run."""
        if self.popen is None or self.popen.poll() is not None:
            self.popen = spawn(self._command, log=self.log, env=self._env, death_signal=signal.SIGKILL)
            self.starts += 1

    def send(self, number: int) -> None:
        """Send a signal to it and all its children."""
        if self.popen is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.popen.pid, number)

    def end(self) -> None:
        """Kill it; cases are over."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGKILL)
        if self.popen is not None:
            self.popen.wait()

    def text(self) -> str:
        """What it has logged."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Stage:
    """One lane's servers, workers and beat."""

    def __init__(self, servers: embedded.Servers, folder: Path) -> None:
        self.servers = servers
        self.folder = folder
        self.settings = Settings(
            database_url=servers.database_url,
            broker_url=servers.broker_url,
            home=folder / "home",
            artifacts_url=f"chaosdisk://{folder / 'artifacts'}",
            imports=("chaos.actions", "chaos.points"),
            **QUICK,
        )
        with _MIGRATION:  # Alembic's context is the process's, not the thread's
            schema.migrate(servers.database_url)
        with psycopg.connect(servers.database_url, autocommit=True) as connection:
            connection.execute(laws.HISTORY)
        self.client = Client(self.settings)
        self.without_broker = Client(self.settings.model_copy(update={"broker_url": None}))
        self._asked: psycopg.Connection[Any] | None = None
        self.workers = [self._worker(name) for name in WORKERS]
        beat = ("beat", "-s", str(folder / "schedule"), "-l", "warning")
        self.beat = Program("beat", beat, self._environment("beat"), folder)
        other = ("worker", "-n", "other@chaos", "-c", "1", "-Q", ELSEWHERE, "-l", "info")
        env = self._environment("beat", CELERY_BROKER_URL=servers.broker_url)
        self.elsewhere = Program(ELSEWHERE, other, env, folder, "chaos.elsewhere")

    def _worker(self, name: str) -> Program:
        arguments = ("worker", "-n", f"{name}@chaos", "-c", "2", "-P", "prefork", "-l", "info")
        clock = self.clock(name)
        clock.write_bytes(bytes(8))
        env = self._environment(name, CHAOS_CLOCK=str(clock), CHAOS_WORKER=name)
        return Program(name, (*arguments, "--without-gossip", "--without-mingle"), env, self.folder)

    def clock(self, worker: str) -> Path:
        """The file that says how wrong a worker's clock is."""
        return self.folder / f"clock-{worker}"

    def _environment(self, name: str, **more: str) -> dict[str, str]:
        given = self.settings.model_dump(exclude_none=True, exclude={"imports"})
        ours = {f"{PREFIX}{field.upper()}": str(value) for field, value in given.items()}
        if name != "beat":
            ours[f"{PREFIX}IMPORTS"] = ",".join(self.settings.imports)
        path = os.pathsep.join((str(BOOT), str(TESTS)))
        others = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
        return {**others, **ours, "PYTHONPATH": path, "CHAOS_FOLDER": str(self.folder), **more}

    # --- its life

    def supervise(self) -> None:
        """Start what is dead."""
        for program in (*self.workers, self.elsewhere, self.beat):
            program.start()

    def ready(self, seconds: float = 60.0) -> None:
        """Wait until both workers take messages."""
        self.until(
            lambda: all(" ready" in worker.text() for worker in self.workers), seconds, "workers ready"
        )

    def until(self, condition: Callable[[], Any], seconds: float, what: str) -> None:
        """Look after the programs until a condition holds. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {seconds:g} s: {what}")
            self.supervise()
            time.sleep(0.02)

    def close(self) -> None:
        """End every program."""
        for program in (self.beat, self.elsewhere, *self.workers):
            program.end()
        self.client.close()
        self.without_broker.close()
        if self._asked is not None:
            self._asked.close()

    # --- its database, also across restarts

    def connect(self) -> psycopg.Connection[Any]:
        """The harness's own connection, which no fault is aimed at but a restart of the server breaks."""
        if self._asked is None or self._asked.closed or self._asked.broken:
            url = self.servers.database_url
            self._asked = psycopg.connect(url, autocommit=True, application_name="chaos", connect_timeout=5)
        return self._asked

    def rows(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """The rows of a statement; asked again after a restart."""
        deadline = time.monotonic() + 20
        while True:
            try:
                return self.connect().execute(statement, arguments).fetchall()
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


@contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """A stage in a new folder, ready to play."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        # SIGKILL of Postgres' backends is not among the faults, so its shared memory may be small.
        options = {"shared_buffers": "32MB"}
        servers = stack.enter_context(embedded.servers(folder / "servers", postgres_options=options))
        made = Stage(servers, folder)
        stack.callback(made.close)
        made.supervise()
        made.ready()
        yield made
