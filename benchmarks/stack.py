"""Servers and workers of a benchmark: `servers()`, and `Group`, a worker with its beat.

The law: everything a benchmark starts is its own and goes with it: an embedded Postgres and Redis in a
folder below `benchmarks/out` (a real disk, so that a commit costs what it costs), a queue and a Redis
database for each group. A group that is not being measured idles: its worker waits for messages (a BRPOP and
half a heartbeat a second) and its beat is stopped by SIGSTOP. `Meter` says what that costs.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from trellis.tasks import embedded, schema
from trellis.tasks.services import Beat, Worker
from trellis.tasks.settings import PREFIX, Settings, load

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"
ACTIONS = "actions"  # the module that workers import


def leave_on_sigterm() -> None:
    """Let SIGTERM end a script like Ctrl-C, so that folders and processes are cleaned up."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


@contextmanager
def folder() -> Iterator[Path]:
    """A new folder, removed at the end."""
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OUT, prefix="stack-") as made:
        yield Path(made)


@contextmanager
def servers() -> Iterator[tuple[embedded.Servers, Path]]:
    """Postgres and Redis in a new folder."""
    with folder() as home, embedded.servers(home / "servers") as running:
        yield running, home


@contextmanager
def postgres() -> Iterator[tuple[embedded.Postgres, Path]]:
    """Postgres alone in a new folder, with the memory that an index of a million vectors is built in."""
    with folder() as home:
        server = embedded.Postgres(home / "servers", {"shared_buffers": "2GB", "max_wal_size": "8GB"})
        with embedded.server_lock(home / "servers"):
            server.start()
            try:
                yield server, home
            finally:
                server.stop()


def new_database(running: embedded.Servers | embedded.Postgres, name: str) -> str:
    """A migrated database of its own; answers with its address."""
    server = running if isinstance(running, embedded.Postgres) else running.postgres
    with psycopg.connect(server.url("postgres"), autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    url = server.url(name)
    schema.migrate(url)
    return url


def settings_of(home: Path, database_url: str, broker_url: str, **more: Any) -> Settings:
    """The settings of a group: those of the environment, but for its addresses and its queue."""
    return load(
        home=home,
        database_url=database_url,
        broker_url=broker_url,
        imports=(ACTIONS,),
        log_level="warning",
        log_format="json",
        **{"default_queue": "bench", **more},
    )


class Group:
    """A worker on settings of its own, and the beat that ticks for it."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        *,
        concurrency: int,
        pool: str = "prefork",
        beat: bool = True,
        celery: Sequence[str] = (),
    ) -> None:
        """celery: settings of Celery as its command line takes them, `task_track_started=0`."""
        database_url, broker_url = settings.need_database(), settings.need_broker()
        self.name = name
        self.settings = settings
        self.worker = _Worker(
            settings,
            database_url=database_url,
            broker_url=broker_url,
            node=f"bench-{name}-{os.getpid()}",
            concurrency=concurrency,
            pool=pool,
            celery=celery,
        )
        self.beat = _Beat(settings, database_url=database_url, broker_url=broker_url) if beat else None

    @contextmanager
    def running(self) -> Iterator[Group]:
        """Its processes, idle until `awake`."""
        with ExitStack() as started:
            started.callback(self.worker.stop)
            self.worker.start(wait=False)
            if self.beat is not None:
                started.callback(self._stop_beat)
                self.beat.start()
                self.beat.send(signal.SIGSTOP)
            self.worker.wait_ready()
            yield self

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Its beat ticks."""
        if self.beat is not None:
            self.beat.send(signal.SIGCONT)
        try:
            yield
        finally:
            if self.beat is not None:
                self.beat.send(signal.SIGSTOP)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Its worker takes nothing: what is published stays in the queue."""
        pid = self.worker.pid
        assert pid is not None
        os.killpg(pid, signal.SIGSTOP)  # every child has a session of its own
        try:
            yield
        finally:
            os.killpg(pid, signal.SIGCONT)

    def _stop_beat(self) -> None:
        assert self.beat is not None
        self.beat.send(signal.SIGCONT)
        self.beat.stop()


class _Worker(Worker):
    def __init__(self, settings: Settings, *, celery: Sequence[str], **more: Any) -> None:
        super().__init__(settings, **more)
        self._variables = _variables(settings)
        self._celery = ["--", *celery] if celery else []

    def command(self) -> list[str]:
        return [*super().command(), *self._celery]

    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), **self._variables}


class _Beat(Beat):
    death_signal = signal.SIGKILL  # the one that also ends a stopped process

    def __init__(self, settings: Settings, **more: Any) -> None:
        super().__init__(settings, **more)
        self._variables = _variables(settings)

    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), **self._variables}


def _variables(settings: Settings) -> dict[str, str]:
    """What a group's processes need beside what every local stack gives them."""
    found = {
        f"{PREFIX}BUNDLE_MS": str(settings.bundle_ms),
        f"{PREFIX}DEFAULT_QUEUE": settings.default_queue,
        f"{PREFIX}POOL_MAX_SIZE": str(settings.pool_max_size),
        f"{PREFIX}LOG_LEVEL": settings.log_level,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH")))),
    }
    if settings.result_backend_url is not None:
        found[f"{PREFIX}RESULT_BACKEND_URL"] = settings.result_backend_url
    return found


class Meter:
    """CPU seconds of processes with all their descendants, by part of the system (Linux; else nothing)."""

    def __init__(self, **parts: int | None) -> None:
        """Each part is named after what it is, and given by the pid at its top; `None` is left out."""
        self._parts = {name: pid for name, pid in parts.items() if pid is not None}

    def read(self) -> dict[str, float]:
        """CPU seconds so far. The worker is told apart: its `parent`, and its pool's `children`."""
        if not sys.platform.startswith("linux"):
            return {}
        ticks = os.sysconf("SC_CLK_TCK")
        stats = dict(_stats())
        below: dict[int, list[int]] = {}
        for pid, (parent, _, _) in stats.items():
            below.setdefault(parent, []).append(pid)
        found = {}
        for name, top in self._parts.items():
            if top not in stats:
                continue
            own, reaped = stats[top][1:]
            inside = sum(sum(stats[pid][1:]) for pid in _tree(below, top))
            if name == "worker":
                found |= {"parent": own / ticks, "children": (inside + reaped) / ticks}
            else:
                # This very process is "client"; what it has started are other parts.
                found[name] = (own if name == "client" else own + reaped + inside) / ticks
        return found

    @contextmanager
    def measuring(self) -> Iterator[dict[str, float]]:
        """Fills the yielded mapping, when the block ends, with the seconds spent in it."""
        spent: dict[str, float] = {}
        before = self.read()
        yield spent
        spent.update({name: value - before.get(name, 0.0) for name, value in self.read().items()})


def _stats() -> Iterator[tuple[int, tuple[int, int, int]]]:
    """Each process: its parent, its own clock ticks, those of its children that have ended."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        yield (
            int(folder.name),
            (int(fields[1]), int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])),
        )


def _tree(below: Mapping[int, list[int]], top: int) -> list[int]:
    found = list(below.get(top, ()))
    for pid in found:  # grows while it is read
        found.extend(below.get(pid, ()))
    return found
