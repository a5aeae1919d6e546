"""`trellis up`: Postgres, Redis, migrations, a worker, beat and Flower from one command.

The law: the table is printed when everything in it really works; `stack.json` says where it is for as
long as it runs; what was started is stopped, in the order in which work drains: the worker first, the
database last. Where an address is set, that server is used and none is started in its place.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from . import schema
from .accounts import check_owner
from .child import Child
from .embedded import Postgres, Redis, server_lock
from .imports import check_imports
from .places import HOST
from .processes import make_folder, only_one, write_private
from .services import Beat, Flower, Worker, check_broker, free_port, has_flower, port_is_free
from .settings import STACK_FILE, Settings, load
from .supervisor import Stopped, Supervisor

STACK_LOCK = Path("run") / "stack.lock"
STOP_ORDER = ("worker", "beat", "flower", "redis", "postgres")


@dataclass(frozen=True, slots=True)
class Options:
    """What a person asks of `trellis up`."""

    flower: bool = True
    concurrency: int | None = None
    pool: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table."""

    service: str
    address: str
    child: Child | None = None
    note: str = ""


def up(settings: Settings, options: Options, console: Console) -> None:
    """Run the stack of `settings.home` until a person stops it.

    Raises StateError when it runs already, StackError when a part does not start or keeps dying,
    MissingExtra, ConfigurationError.
    """
    home = settings.home.absolute()
    check_owner(home)
    check_imports(settings.imports)
    make_folder(home / "run", 0o700)
    make_folder(home / "logs", 0o700)
    with only_one(home / STACK_LOCK, "a stack"):
        (home / STACK_FILE).unlink(missing_ok=True)  # of a stack that was killed
        settings = load(home=home, **settings.model_dump(include={"imports", "log_format"}))
        with ExitStack() as held, Supervisor(console, home / "logs") as supervisor:
            if settings.database_url is None or settings.broker_url is None:
                held.enter_context(server_lock(home))
            _Stack(settings, options, supervisor).live()


class _Stack:
    """One life of a stack."""

    def __init__(self, settings: Settings, options: Options, supervisor: Supervisor) -> None:
        self._settings = settings
        self._options = options
        self._supervisor = supervisor
        self._began = time.monotonic()

    def live(self) -> None:
        supervisor = self._supervisor
        try:
            servers = self._servers()
            database_url, broker_url = self._addresses(servers)
            check_broker(broker_url)
            revision = schema.migrate(database_url)
            supervisor.check_stop()
            with _announced(self._settings, database_url, broker_url):
                rows = [*servers, *self._programs(database_url, broker_url)]
                supervisor.print(self._table(rows, revision))
                supervisor.print(self._hint())
                supervisor.run()
        except Stopped:
            pass
        finally:
            supervisor.stop(STOP_ORDER)

    def _servers(self) -> list[Row]:
        """Start the servers that no address is set for."""
        settings, rows = self._settings, []
        # Both boot at the same time.
        if settings.database_url is None:
            postgres = Postgres(settings.home)
            self._supervisor.launch(postgres)
            rows.append(Row("postgres", postgres.address(), postgres))
        else:
            rows.append(Row("postgres", _place(settings.database_url), note="TRELLIS_DATABASE_URL"))
        if settings.broker_url is None:
            redis = Redis(settings.home)
            self._supervisor.launch(redis)
            rows.append(Row("redis", redis.address(), redis))
        else:
            rows.append(Row("redis", _place(settings.broker_url), note="TRELLIS_BROKER_URL"))
        self._supervisor.settle()
        return rows

    def _addresses(self, servers: list[Row]) -> tuple[str, str]:
        """The addresses of Postgres and Redis, ours or those that are set."""
        postgres, redis = (row.child for row in servers)
        return (
            postgres.url() if isinstance(postgres, Postgres) else self._settings.need_database(),
            redis.url() if isinstance(redis, Redis) else self._settings.need_broker(),
        )

    def _programs(self, database_url: str, broker_url: str) -> list[Row]:
        """Start worker, beat and Flower."""
        settings, options = self._settings, self._options
        # On a broker of our own the plain name is free; a shared one may know another `trellis up`.
        node = "trellis" if settings.broker_url is None else f"trellis-{os.getpid()}"
        worker = Worker(
            settings,
            database_url=database_url,
            broker_url=broker_url,
            node=node,
            concurrency=options.concurrency,
            pool=options.pool,
        )
        beat = Beat(settings, database_url=database_url, broker_url=broker_url)
        self._supervisor.launch(worker)
        self._supervisor.launch(beat)
        self._supervisor.settle()
        slots = options.concurrency or os.cpu_count() or 1
        knows = f", imports {', '.join(settings.imports)}" if settings.imports else ""
        return [
            Row(
                "worker", worker.address(), worker, f"{slots} slots, pool {options.pool or 'prefork'}{knows}"
            ),
            Row("beat", beat.address(), beat),
            self._flower(database_url, broker_url),  # it asks the workers once, when it starts
        ]

    def _flower(self, database_url: str, broker_url: str) -> Row:
        if not self._options.flower:
            return Row("flower", "-", note="off (--no-flower)")
        if not has_flower():
            return Row("flower", "-", note="not installed: pip install 'celery-trellis[flower]'")
        wanted = self._settings.flower_port
        port = wanted if port_is_free(wanted) else free_port()
        flower = Flower(self._settings, database_url=database_url, broker_url=broker_url, port=port)
        self._supervisor.launch(flower, essential=False)
        self._supervisor.settle()
        return Row("flower", flower.address(), flower, "" if port == wanted else f"port {wanted} is taken")

    def _table(self, rows: list[Row], revision: str) -> Table:
        table = Table(
            title=f"Trellis runs (ready after {time.monotonic() - self._began:.1f} s)", title_justify="left"
        )
        for column in ("service", "address", "pid", "notes"):
            table.add_column(column, overflow="fold")
        for row in rows:
            notes = [
                note
                for note in (f"tables at {revision}" if row.service == "postgres" else "", row.note)
                if note
            ]
            table.add_row(
                row.service, row.address, str(row.child.pid) if row.child else "-", ", ".join(notes)
            )
        return table

    def _hint(self) -> str:
        home = self._settings.home.absolute()
        usual = home == Path.cwd() / Settings.model_fields["home"].default
        doctor = "in this folder: trellis doctor" if usual else f"TRELLIS_HOME={home} trellis doctor"
        return f"Logs: {_short(home / 'logs')}. Ctrl-C stops all. In another terminal, {doctor}"


@contextmanager
def _announced(settings: Settings, database_url: str, broker_url: str) -> Iterator[None]:
    """Say in `stack.json` where the stack is and what its worker imports: a second terminal needs no variables."""
    file = settings.home / STACK_FILE
    facts = {
        "database_url": database_url,
        "broker_url": broker_url,
        "imports": list(settings.imports),
        "pid": os.getpid(),
    }
    write_private(file, json.dumps(facts, indent=2) + "\n")
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _place(url: str) -> str:
    """An address without its user and password."""
    parts = urlsplit(url)
    port = parts.port or (6379 if parts.scheme.startswith("redis") else 5432)
    return f"{parts.hostname or HOST}:{port}{parts.path}"


def _short(path: Path) -> str:
    """A path as seen from here, where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
