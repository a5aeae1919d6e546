"""`trellis doctor`: is everything there that a durable run needs?

The law: each check is one line, ok or a problem with what to do; a check never raises and never waits
long; a check that cannot be made because another one failed is left out, so that every line is a cause.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from typing import Any
from urllib.parse import urlsplit

import redis
from celery import Celery
from kombu.exceptions import KombuError
from rich.console import Console
from rich.text import Text

from . import schema
from .app import app
from .database import Connection, connect
from .errors import CommunicationError, ConfigurationError, SchemaMismatch
from .processes import is_held
from .settings import STACK_FILE, SYSTEM_QUEUE, Settings, misspelt
from .stack import STACK_LOCK

GROUP = "trellis.checks"  # what the floors above check: functions of the settings that give checks
POSTGRES_MINIMUM = 14
REDIS_MINIMUM = (6, 2)
ANSWER_SECONDS = 1.5
CONNECT_SECONDS = 3
REDIS_PATIENCE: dict[str, Any] = {
    "socket_connect_timeout": CONNECT_SECONDS,
    "socket_timeout": CONNECT_SECONDS,
    "retry": None,
}
LATE_TICKS = 10  # a beat or a worker that restarts may miss a few
OWN_TASKS = ("trellis.", "celery.")


@dataclass(frozen=True, slots=True)
class Check:
    """One line."""

    name: str
    ok: bool
    found: str
    todo: str = ""


def examine(settings: Settings) -> list[Check]:
    """All checks, in the order in which a person would repair."""
    checks = [*_settings(settings)]
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        checks += entry.load()(settings)
    if settings.database_url is not None:
        checks += _postgres(settings.database_url, settings)
    if settings.broker_url is not None:
        found = list(_redis(settings.broker_url))
        checks += found
        if found[0].ok:
            checks += _workers(app, settings)
    return checks


def show(checks: Sequence[Check], console: Console) -> None:
    """Print the checks for a person."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        word, style = ("ok", "green") if check.ok else ("problem", "bold red")
        line = Text.assemble((f"{word:<8}", style), f"{check.name:<{width}}  {check.found}")
        if check.todo:
            line.append(f" → {check.todo}", "bold" if not check.ok else "dim")
        console.print(line, soft_wrap=True)
    problems = sum(not check.ok for check in checks)
    summary = "all is well" if not problems else f"{problems} problem{'s' if problems > 1 else ''}"
    console.print(Text(summary, "bold green" if not problems else "bold red"))


def as_json(checks: Sequence[Check]) -> str:
    """The checks for a program."""
    return json.dumps(
        {"ok": all(check.ok for check in checks), "checks": [asdict(check) for check in checks]}, indent=2
    )


def _settings(settings: Settings) -> Iterator[Check]:
    for need in (settings.need_database, settings.need_broker):
        try:
            need()
        except ConfigurationError as error:
            found, _, todo = str(error).partition(": ")
            yield Check("settings", False, found, todo)
            return
    stack = settings.home / STACK_FILE
    if stack.exists() and not is_held(settings.home / STACK_LOCK):
        yield Check("stack", False, f"{stack} is of a stack that was killed", "run `trellis up` again")
    for name, close in misspelt().items():
        meant = f"did you mean {close}?" if close else "docs/reference/settings.md lists them"
        yield Check("settings", False, f"{name} is no setting of this version and has no effect", meant)
    imports = f"imports {', '.join(settings.imports)}" if settings.imports else "no TRELLIS_IMPORTS here"
    yield Check("settings", True, f"home {settings.home.absolute()}, {imports}")


# --- Postgres


def _postgres(url: str, settings: Settings) -> Iterator[Check]:
    try:
        connection = connect(url, connect_timeout=CONNECT_SECONDS)
    except CommunicationError as error:
        reason = " ".join(str(error).removeprefix("cannot reach Postgres: ").split())
        yield Check(
            "postgres",
            False,
            f"{_place(url)}: {reason}",
            "start it (`trellis up`), or correct TRELLIS_DATABASE_URL",
        )
        return
    with closing(connection):
        version = connection.info.server_version
        name = f"Postgres {version // 10000}.{version % 10000} at {_place(url)}"
        enough = version >= POSTGRES_MINIMUM * 10000
        yield Check(
            "postgres",
            enough,
            name,
            "" if enough else f"Trellis needs {POSTGRES_MINIMUM} or newer: upgrade it",
        )
        yield _vector(connection)
        tables = _tables(connection)
        yield tables
        if tables.ok:
            yield _ticking(connection, settings)


def _vector(connection: Connection) -> Check:
    row = connection.execute(
        "SELECT installed_version, default_version FROM pg_available_extensions WHERE name = 'vector'"
    ).fetchone()
    if row is None:
        return Check(
            "vector",
            False,
            "the server does not offer pgvector",
            "install it on the server, e.g. postgresql-18-pgvector",
        )
    if row[0] is None:
        return Check(
            "vector",
            False,
            f"pgvector {row[1]} is there, not yet installed in this database",
            "run `trellis migrate`",
        )
    return Check("vector", True, f"pgvector {row[0]}")


def _tables(connection: Connection) -> Check:
    try:
        schema.check(connection)
    except SchemaMismatch as error:
        found, _, todo = str(error).partition(": ")
        return Check("migrations", False, found, todo)
    return Check("migrations", True, f"tables at {schema.head()}")


def _ticking(connection: Connection, settings: Settings) -> Check:
    row = connection.execute(
        "SELECT extract(epoch FROM clock_timestamp() - at)::float FROM heartbeat WHERE name = 'tick'"
    ).fetchone()
    todo = f"is `trellis beat` running, and a worker that consumes the queue {SYSTEM_QUEUE}?"
    if row is None:
        return Check("beat", False, "no tick has ever arrived", todo)
    age = float(row[0])
    ok = age <= LATE_TICKS * settings.tick_seconds
    return Check("beat", ok, f"the last tick was {age:.1f} s ago", "" if ok else todo)


# --- Redis


def _redis(url: str) -> Iterator[Check]:
    todo = "start it (`trellis up`), or correct TRELLIS_BROKER_URL"
    address = url.replace("redis+socket://", "unix://", 1)  # what Celery calls it
    try:
        with closing(redis.Redis.from_url(address, **REDIS_PATIENCE)) as client:
            info: dict[str, Any] = client.info()
    except (redis.RedisError, OSError, ValueError) as error:
        yield Check("redis", False, f"{_place(url)}: {error}", todo)
        return
    version = str(info["redis_version"])
    enough = tuple(int(part) for part in version.split(".")[:2]) >= REDIS_MINIMUM
    todo = "" if enough else "Trellis needs 6.2 or newer: upgrade it"
    yield Check("redis", enough, f"Redis {version} at {_place(url)}", todo)
    yield _eviction(info)
    yield _persistence(info)


def _eviction(info: dict[str, Any]) -> Check:
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        return Check("eviction", True, f"maxmemory-policy {policy}")
    todo = "when memory is short it drops messages: CONFIG SET maxmemory-policy noeviction"
    return Check("eviction", False, f"maxmemory-policy {policy}", todo)


def _persistence(info: dict[str, Any]) -> Check:
    if not info.get("aof_enabled"):
        return Check(
            "persistence",
            False,
            "appendonly no: a restart of Redis loses its messages",
            "CONFIG SET appendonly yes",
        )
    status = str(info.get("aof_last_write_status", "ok"))
    if status != "ok":
        return Check(
            "persistence", False, f"appendonly yes, last write: {status}", "is the disk of Redis full?"
        )
    return Check("persistence", True, "appendonly yes")


# --- workers


def _workers(celery: Celery, settings: Settings) -> Iterator[Check]:
    todo = "start one: `trellis worker`"
    try:
        inspect = celery.control.inspect(timeout=ANSWER_SECONDS)
        names = sorted(inspect.ping() or {})
        if not names:
            yield Check("workers", False, f"none answered within {ANSWER_SECONDS:g} s", todo)
            return
        # Asked by name and number, the answers are complete as soon as the last one is there.
        inspect = celery.control.inspect(destination=names, timeout=ANSWER_SECONDS, limit=len(names))
        queues, tasks = inspect.active_queues() or {}, inspect.registered() or {}
    except (KombuError, redis.RedisError, OSError) as error:
        yield Check("workers", False, f"the broker does not pass questions on: {error}", todo)
        return
    consumed: set[str] = set()
    for name in names:
        listens = sorted(queue["name"] for queue in queues.get(name, []))
        consumed.update(listens)
        actions = sorted(task for task in tasks.get(name, []) if not task.startswith(OWN_TASKS))
        known = f"actions {', '.join(actions)}" if actions else "no actions"
        hint = "" if actions else "give it modules: --import MODULE or TRELLIS_IMPORTS"
        yield Check("worker", True, f"{name}: queues {', '.join(listens)}; {known}", hint)
    needed = [settings.default_queue, SYSTEM_QUEUE]
    if settings.embedder_where == "queue":
        needed.append(settings.embed_queue)
    missing = [queue for queue in needed if queue not in consumed]
    if missing:
        yield Check(
            "queues",
            False,
            f"no worker listens to {', '.join(missing)}",
            f"start one: `trellis worker --queues {','.join(missing)}`",
        )


def _place(url: str) -> str:
    """An address without user and password."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.hostname or 'localhost'}{port}{parts.path}"
