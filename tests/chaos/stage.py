"""Where cases are played: servers of their own, two real workers and a beat, and who starts them again when they die.

The law: whatever a fault takes down comes back as a container would, without a look at what it was doing. Everything
that the stage started ends with it.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
from forks import Zygote

from trellis.tasks import embedded, schema
from trellis.tasks.settings import PREFIX, Settings
from trellis.workflows import Client

from . import laws
from .harm import ELSEWHERE
from .processes import PATH, Forked, Program, Stranger, maker

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
CLOCKS = (*WORKERS, ELSEWHERE)
QUIET = ("--without-gossip", "--without-mingle")
_MIGRATION = threading.Lock()


class Stage:
    """One lane's servers, workers and beat."""

    def __init__(self, servers: embedded.Servers, zygote: Zygote, folder: Path) -> None:
        self.servers = servers
        self._zygote = zygote
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
        self.beat = Forked(zygote, "beat", beat, self._environment("beat"), folder)
        other = f"-A chaos.elsewhere worker -n other@chaos -c 1 -Q {ELSEWHERE} -l info".split()
        env = self._environment("beat", CELERY_BROKER_URL=servers.broker_url, **self._clocked(ELSEWHERE))
        self.elsewhere = Stranger(ELSEWHERE, (*other, *QUIET), env, folder)

    def _worker(self, name: str) -> Program:
        arguments = ("worker", "-n", f"{name}@chaos", "-c", "2", "-P", "prefork", "-l", "info")
        env = self._environment(name, **self._clocked(name))
        return Forked(self._zygote, name, (*arguments, *QUIET), env, self.folder)

    def _clocked(self, name: str) -> dict[str, str]:
        self.clock(name).write_bytes(bytes(8))
        return {"CHAOS_CLOCK": str(self.clock(name)), "CHAOS_WORKER": name}

    def clock(self, worker: str) -> Path:
        """The file that says how wrong a worker's clock is."""
        return self.folder / f"clock-{worker}"

    def _environment(self, name: str, **more: str) -> dict[str, str]:
        given = self.settings.model_dump(exclude_none=True, exclude={"imports"})
        ours = {f"{PREFIX}{field.upper()}": str(value) for field, value in given.items()}
        if name != "beat":
            ours[f"{PREFIX}IMPORTS"] = ",".join(self.settings.imports)
        others = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
        return {**others, **ours, "PYTHONPATH": PATH, "CHAOS_FOLDER": str(self.folder), **more}

    # --- its life

    @property
    def programs(self) -> tuple[Program, ...]:
        """All that run beside the servers."""
        return (*self.workers, self.elsewhere, self.beat)

    def supervise(self) -> None:
        """Start what is dead."""
        for program in self.programs:
            if program.start() and program is self.beat:
                (self.folder / "beat.pid").write_text(str(program.pid))

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
            time.sleep(0.1)

    def close(self) -> None:
        """End every program."""
        for program in self.programs:
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
        zygote = maker()  # imports, while the servers start
        stack.callback(zygote.close)
        servers = stack.enter_context(embedded.servers(folder / "servers", postgres_options=options))
        made = Stage(servers, zygote, folder)
        stack.callback(made.close)
        made.supervise()
        made.ready()
        yield made
