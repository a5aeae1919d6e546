"""A stack for one test: its own database and Redis database, engines in this process, real workers beside it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
from forks import Forked

from trellis.tasks.app import sender
from trellis.tasks.embedded import Servers
from trellis.tasks.settings import Settings
from trellis.workflows import Client
from trellis.workflows.engine import Engine

SUPPORT = Path(__file__).parent

# Everything that a person would wait for is short here; the ratios between the times are those of the defaults.
QUICK = {
    "lease_seconds": 2.0,
    "heartbeat_seconds": 0.2,
    "tick_seconds": 0.25,
    "redelivery_seconds": 1.0,
    "timeout_grace": 1.0,
    "pool_timeout": 5.0,
}


def eventually(condition: Callable[[], Any], seconds: float = 30.0, what: str = "") -> Any:
    """What a condition gives once it is true; looks again and again until then."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what or condition}"
        time.sleep(0.02)


class Process:
    """A child of the test, in a process group of its own."""

    def __init__(self, popen: subprocess.Popen[bytes] | Forked, log: Path) -> None:
        self.popen = popen
        self.log = log
        self._asked = False

    @property
    def pid(self) -> int:
        return self.popen.pid

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def send(self, number: int) -> None:
        """Send a signal to the whole group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.popen.wait()

    def ask(self) -> None:
        """Ask it to end, once: a worker takes a second time for haste."""
        if not self._asked and self.popen.poll() is None:
            self._asked = True
            self.popen.terminate()

    def stop(self) -> None:
        if self.popen.poll() is None:
            self.ask()
            try:
                self.popen.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        self.send(signal.SIGKILL)


def alone(command: list[str], env: dict[str, str], log: Path) -> Process:
    """A process that shares nothing with any other, not even imports."""
    with log.open("ab") as out:
        popen = subprocess.Popen(
            command, env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True,
            cwd=log.parent,
        )  # fmt: skip
    return Process(popen, log)


class Stack:
    """What a test drives."""

    def __init__(self, servers: Servers, database_url: str, redis_db: int, folder: Path) -> None:
        self.servers = servers
        self.folder = folder
        self.database_url = database_url
        self.broker_url = servers.redis.url(redis_db)
        self.settings = self.with_settings()
        self.ledger = str(folder / "ledger.txt")
        self.processes: list[Process] = []
        self._client: Client | None = None
        self._engine: Engine | None = None

    def with_settings(self, **options: Any) -> Settings:
        return Settings(
            database_url=self.database_url,
            broker_url=self.broker_url,
            home=self.folder / "home",
            **{**QUICK, **options},
        )

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client(self.settings)
        return self._client

    @property
    def engine(self) -> Engine:
        """An engine in this process: its steps run where the test stands."""
        if self._engine is None:
            self._engine = Engine(self.settings, sender(self.broker_url))
        return self._engine

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.database_url, autocommit=True)

    def rows(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        with self.connect() as connection:
            cursor = connection.execute(statement, arguments)
            return cursor.fetchall() if cursor.description else []

    def drain(self, run: str, rounds: int = 10_000) -> None:
        """Run everything that is ready, here and now, until nothing is."""
        for _ in range(rounds):
            ready = self.rows(
                "SELECT action, idx FROM step WHERE run_id = %s AND state = 'ready' "
                "AND (sent OR due_at <= now()) ORDER BY idx",
                run,
            )
            if not ready:
                waiting = self.rows("SELECT 1 FROM step WHERE run_id = %s AND state = 'ready' LIMIT 1", run)
                if not waiting:
                    return
                time.sleep(0.01)
                continue
            for action in dict.fromkeys(action for action, _ in ready):
                self.engine.run_bundle(action, run, [idx for each, idx in ready if each == action])
        raise AssertionError("the run does not end")

    # --- processes

    def environment(self, **more: str) -> dict[str, str]:
        quick = {f"TRELLIS_{name.upper()}": str(value) for name, value in QUICK.items()}
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("TRELLIS_")},
            **quick,
            "TRELLIS_DATABASE_URL": self.database_url,
            "TRELLIS_BROKER_URL": self.broker_url,
            "TRELLIS_HOME": str(self.folder / "home"),
            "TRELLIS_IMPORTS": "steps",
            "PYTHONPATH": str(SUPPORT),
            **more,
        }

    def spawn(self, name: str, *arguments: str, **env: str) -> Process:
        """A process of the `celery` command."""
        log = self.folder / f"{name}.log"
        command = ["celery", "-A", "trellis.tasks", *arguments]
        process = Process(Forked(command, self.environment(**env), log), log)
        self.processes.append(process)
        return process

    def worker(
        self, name: str = "worker", *, concurrency: int = 2, pool: str = "prefork", **env: str
    ) -> Process:
        """A worker, ready to work."""
        process = self.spawn(
            name, "worker", "-n", f"{name}@test", "-c", str(concurrency), "-P", pool, "-l", "info",
            "--without-gossip", "--without-mingle", **env,
        )  # fmt: skip
        eventually(lambda: " ready" in process.text() or process.popen.poll() is not None, 30, "worker ready")
        assert process.popen.poll() is None, process.text()
        return process

    def foreign_worker(self, module: str, *arguments: str, **env: str) -> Process:
        """A worker of another Celery application, a module of this folder that has nothing of ours in it."""
        command = [sys.executable, "-m", "celery", "-A", module, "worker", "-n", f"{module}@test", "-l", "info",
                   "--without-gossip", "--without-mingle", *arguments]  # fmt: skip
        ours = {name: value for name, value in os.environ.items() if not name.startswith("TRELLIS_")}
        began = sum(1 for process in self.processes if process.log.name.startswith(module))
        log = self.folder / f"{module}{began}.log"
        process = alone(command, {**ours, "PYTHONPATH": str(SUPPORT), **env}, log)
        self.processes.append(process)
        eventually(lambda: " ready" in process.text() or process.popen.poll() is not None, 30, "worker ready")
        assert process.popen.poll() is None, process.text()
        return process

    def beat(self) -> Process:
        return self.spawn("beat", "beat", "-s", str(self.folder / "schedule"), "-l", "info")

    def effects(self) -> Counter[str]:
        """How often each step has left its line."""
        path = Path(self.ledger)
        lines = path.read_text().splitlines() if path.exists() else []
        return Counter(line.split()[1] for line in lines if not line.endswith("begun"))

    def lines(self) -> list[list[str]]:
        path = Path(self.ledger)
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def close(self) -> None:
        for process in self.processes:
            process.ask()  # so that they end at the same time
        for process in self.processes:
            process.stop()
        if self._client is not None:
            self._client.close()
        if self._engine is not None:
            self._engine.database.close()


def stack_of(servers: Servers, template: str, name: str, redis_db: int, folder: Path) -> Iterator[Stack]:
    """A stack on a clone of the migrated template, dropped at the end."""
    with psycopg.connect(servers.postgres.url("postgres"), autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    stack = Stack(servers, servers.postgres.url(name), redis_db, folder)
    try:
        yield stack
    finally:
        stack.close()
        with psycopg.connect(servers.postgres.url("postgres"), autocommit=True) as admin:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
