"""Postgres with pgvector and Redis in a folder, without a server or root: `servers(home)`.

The law: the data outlive every process, the processes outlive nobody. Both servers are children of
the process that asked for them, listen on 127.0.0.1 only, ask for a password that never leaves the
folder, and keep their ports. Postgres is as safe as a real one (fsync and synchronous_commit on).

The programs come from the wheels of the extra `embedded`, started directly: the wheel's own Python
interface would open every folder above the data to everybody, add a system user when root, serve a
socket only, and leave no child of ours to supervise.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psycopg
import redis
from psycopg import sql

from .accounts import check_owner, server_account
from .child import Child, StopSteps
from .places import HOST, password_of, port_of, postgres_programs, redis_program
from .processes import end, failed, make_folder, only_one, spawn, write_private

USER = "trellis"
DATABASE = "trellis"
POSTGRES_OPTIONS: Mapping[str, str] = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",  # a deep folder makes a socket's path too long
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",  # bursts of small transactions, without a checkpoint every few seconds
    "fsync": "on",
    "synchronous_commit": "on",
    "jit": "off",  # compiling costs more than our short statements
    "log_checkpoints": "off",
    "log_line_prefix": "%m ",
}

StopMode = Literal["smart", "fast", "immediate", "kill"]
_POSTGRES_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class Postgres(Child):
    """An embedded Postgres."""

    name = "postgres"
    mark = "postgres"
    reticent = True
    death_signal = signal.SIGINT  # a fast shutdown
    stop_steps: StopSteps = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0))

    def __init__(self, home: Path, options: Mapping[str, str] | None = None) -> None:
        super().__init__(home)
        self._programs = postgres_programs()
        self._folder = self.home / "postgres"
        self._data = self._folder / "data"
        self._options = {**POSTGRES_OPTIONS, **(options or {})}
        self.port = 0
        self.password = ""

    def url(self, database: str = DATABASE) -> str:
        """The address of one of its databases."""
        return f"postgresql://{USER}:{self.password}@{HOST}:{self.port}/{database}"

    def address(self) -> str:
        return f"{HOST}:{self.port}/{DATABASE}"

    def command(self) -> list[str]:
        options = [f"--{name}={value}" for name, value in self._options.items()]
        return [str(self._programs / "postgres"), "-D", str(self._data), f"--port={self.port}", *options]

    def prepare(self) -> None:
        super().prepare()
        make_folder(self._folder)
        self.port = self.port or port_of(self._folder / "port")
        self.account = server_account(
            self._data,
            (self._programs / "postgres", self._programs.parent / "share" / "postgresql" / "postgres.bki"),
        )
        password = self._folder / "password"
        if not self._data.exists():
            write_private(password, secrets.token_urlsafe(24))
            self._create(password)
        self.password = password_of(password, self._folder)

    def ready(self) -> bool:
        try:
            with psycopg.connect(self.url("postgres"), connect_timeout=5, autocommit=True) as connection:
                found = connection.execute(
                    "SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]
                ).fetchone()
                if found is None:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, steps: StopSteps | None = None, *, mode: StopMode = "fast") -> int | None:
        """Stop it as `pg_ctl stop -m` would; `kill` is SIGKILL, the crash of a server."""
        if mode == "kill":
            self.kill()
        elif steps is None and mode != "fast":
            steps = ((_POSTGRES_SIGNALS[mode], 60.0), *self.stop_steps)
        return super().stop(steps)

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start it on the same port; returns when it is ready."""
        self.stop(mode=mode)
        self.start()

    def _create(self, password: Path) -> None:
        """Make the data folder, whole or not at all."""
        new = self._folder / "data.new"
        shutil.rmtree(new, ignore_errors=True)  # of an initdb that was killed
        make_folder(new, 0o700)
        secret = new.with_name("initdb.password")
        write_private(secret, password.read_text())
        if self.account is not None:
            os.chown(new, self.account.uid, self.account.gid)
            os.chown(secret, self.account.uid, self.account.gid)
        log = self.log.with_name("initdb.log")
        process = spawn(
            [
                str(self._programs / "initdb"),
                f"--pgdata={new}",
                f"--username={USER}",
                f"--pwfile={secret}",
                "--auth=scram-sha-256",
                "--set=scram_iterations=1",  # the password is 192 random bits, stretching adds nothing
                "--encoding=UTF8",
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",  # the same order and case rules on every machine
            ],
            log=log,
            account=self.account,
        )
        try:
            status = process.wait(120)
        except subprocess.TimeoutExpired:
            end(process, ((signal.SIGTERM, 5.0),))
            raise failed(self.name, log, "could not make its data in 120 s") from None
        finally:
            secret.unlink()
        if status != 0:
            raise failed(self.name, log, "could not make its data")
        new.rename(self._data)


class Redis(Child):
    """An embedded Redis."""

    name = "redis"
    mark = "redis-server"
    reticent = True
    death_signal = signal.SIGTERM  # flushes the append-only file and goes
    stop_steps: StopSteps = ((signal.SIGTERM, 15.0),)

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._program = redis_program()
        self._folder = self.home / "redis"
        self.port = 0
        self.password = ""

    def url(self, db: int = 0) -> str:
        """The address of one of its 128 databases."""
        return f"redis://:{self.password}@{HOST}:{self.port}/{db}"

    def address(self) -> str:
        return f"{HOST}:{self.port}/0"

    def command(self) -> list[str]:
        return [self._program, str(self._folder / "redis.conf")]

    def prepare(self) -> None:
        super().prepare()
        make_folder(self._folder, 0o700)
        self.port = self.port or port_of(self._folder / "port")
        password = self._folder / "password"
        if not password.exists():
            write_private(password, secrets.token_urlsafe(24))
        self.password = password_of(password, self._folder)
        # A file, since everybody on the machine can read a command line.
        write_private(self._folder / "redis.conf", self._configuration())

    def ready(self) -> bool:
        client = redis.Redis.from_url(self.url(), socket_timeout=2.0, socket_connect_timeout=2.0)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()

    def stop(self, steps: StopSteps | None = None, *, mode: Literal["save", "kill"] = "save") -> int | None:
        """Stop it; `save` writes its data first, `kill` is SIGKILL, the crash of a server."""
        if mode == "kill":
            self.kill()
        return super().stop(steps)

    def restart(self, mode: Literal["save", "kill"] = "save") -> None:
        """Stop and start it on the same port; returns when it is ready."""
        self.stop(mode=mode)
        self.start()

    def _configuration(self) -> str:
        lines = {
            "bind": HOST,
            "port": str(self.port),
            "requirepass": self.password,
            "dir": f'"{self._folder}"',
            "databases": "128",
            "appendonly": "yes",  # messages survive a restart; at most the last second is lost
            "appendfsync": "everysec",
            "save": '""',  # the append-only file holds everything already
            "maxmemory-policy": "noeviction",  # an evicted key is a lost message
            "loglevel": "warning",
        }
        return "".join(f"{name} {value}\n" for name, value in lines.items())


@dataclass(frozen=True, slots=True)
class Servers:
    """Both servers, running."""

    postgres: Postgres
    redis: Redis

    @property
    def database_url(self) -> str:
        return self.postgres.url()

    @property
    def broker_url(self) -> str:
        return self.redis.url()


@contextmanager
def servers(home: Path | str, *, postgres_options: Mapping[str, str] | None = None) -> Iterator[Servers]:
    """Postgres and Redis in the folder `home`, stopped at the end; their data stay.

    Raises MissingExtra without the extra `embedded`, StateError when servers run in this folder already,
    StackError when one does not start.
    """
    home = Path(home).absolute()
    both = Servers(Postgres(home, postgres_options), Redis(home))
    with server_lock(home):
        try:
            both.postgres.start(wait=False)  # both boot at the same time
            both.redis.start()
            both.postgres.wait_ready()
            yield both
        finally:
            both.redis.stop()
            both.postgres.stop()


@contextmanager
def server_lock(home: Path) -> Iterator[None]:
    """Held by the one process whose children the servers of a folder are."""
    check_owner(home)
    run = make_folder(home / "run", 0o700)
    with only_one(run / "servers.lock", "an embedded Postgres and Redis"):
        yield
