"""Worker, beat and Flower: their command lines, and the three as children of the local stack.

The law: each is Celery's own program on `trellis.tasks`, so whatever Celery users know holds. What is
special to the local stack, names, files and limits, is said here and nowhere else.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from celery import Celery
from celery.utils.nodenames import gethostname
from kombu.exceptions import KombuError
from redis import RedisError

from .child import Child, StopSteps
from .errors import CommunicationError, MissingExtra
from .places import HOST
from .settings import PREFIX, Settings

PING_SECONDS = 0.5
PROBE_TRANSPORT = {"max_retries": 0, "socket_connect_timeout": 1, "socket_timeout": 1}  # an answer or none
# Eight lines at each start as root. On a server it is good advice, and `trellis worker` shows it.
ROOT_WARNING = "ignore:You're running the worker with superuser privileges"
# `python -m` makes the current folder importable for good, as users of `celery` expect.
_HANDING_BACK = 2.0  # seconds in which a worker that has stopped its bodies gives their steps back

CELERY = (sys.executable, "-m", "celery")


def worker_command(
    settings: Settings,
    *,
    queues: Sequence[str] = (),
    concurrency: int | None = None,
    pool: str | None = None,
    name: str | None = None,
    quiet: bool = False,
) -> list[str]:
    """The command of a worker."""
    command = [*CELERY, *(["--quiet"] if quiet else []), "--app=trellis.tasks", "worker"]
    # Mingle and gossip only exchange revokes and clocks, at the price of a second at each start;
    # cancels are facts in Postgres.
    command += ["--without-mingle", "--without-gossip", f"--loglevel={settings.log_level}"]
    if queues:
        command.append(f"--queues={','.join(queues)}")
    if concurrency is not None:
        command.append(f"--concurrency={concurrency}")
    if pool is not None:
        command.append(f"--pool={pool}")
    if name is not None:
        command.append(f"--hostname={name if '@' in name else f'{name}@%h'}")
    return command


def beat_command(settings: Settings, schedule: Path, *, quiet: bool = False) -> list[str]:
    """The command of a beat; it remembers in `schedule` when it last sent what."""
    command = [*CELERY, *(["--quiet"] if quiet else []), "--app=trellis.tasks", "beat"]
    return [*command, f"--loglevel={settings.log_level}", f"--schedule={schedule}"]


def flower_command(port: int, address: str = HOST) -> list[str]:
    """The command of Flower. Raises MissingExtra where it is not installed."""
    if not has_flower():
        raise MissingExtra("flower", "Flower")
    return [*CELERY, "--app=trellis.tasks", "flower", f"--address={address}", f"--port={port}"]


def has_flower() -> bool:
    """Whether the extra is installed."""
    return importlib.util.find_spec("flower") is not None


def environment(settings: Settings, database_url: str, broker_url: str, **more: str) -> dict[str, str]:
    """The environment of a Celery program of this stack."""
    ours = {
        "DATABASE_URL": database_url,
        "BROKER_URL": broker_url,
        "HOME": str(settings.home.absolute()),
        "IMPORTS": ",".join(settings.imports),
        "LOG_FORMAT": settings.log_format,
        **more,
    }
    return {**os.environ, **{PREFIX + name: value for name, value in ours.items()}}


class _CeleryChild(Child):
    mark = "celery"

    def __init__(self, home: Path, command: Iterable[str], env: Mapping[str, str]) -> None:
        super().__init__(home)
        self._command = list(command)
        self._environment = dict(env)

    def command(self) -> list[str]:
        return self._command

    def environment(self) -> Mapping[str, str]:
        return self._environment


class Worker(_CeleryChild):
    """A Celery worker; ready when it answers a ping."""

    name = "worker"

    def __init__(
        self,
        settings: Settings,
        *,
        database_url: str,
        broker_url: str,
        node: str,
        concurrency: int | None,
        pool: str | None,
    ) -> None:
        command = worker_command(settings, concurrency=concurrency, pool=pool, name=node, quiet=True)
        env = environment(settings, database_url, broker_url)
        env["PYTHONWARNINGS"] = ",".join(filter(None, (env.get("PYTHONWARNINGS"), ROOT_WARNING)))
        super().__init__(settings.home, command, env)
        self.node = f"{node}@{gethostname()}"
        patience = settings.shutdown_seconds + settings.timeout_grace + _HANDING_BACK
        self.stop_steps: StopSteps = ((signal.SIGTERM, patience), (signal.SIGQUIT, 10.0))
        self._probe = _probe(broker_url)

    def address(self) -> str:
        return self.node

    def ready(self) -> bool:
        try:
            return bool(self._probe.control.ping(destination=[self.node], timeout=PING_SECONDS, limit=1))
        except (KombuError, RedisError, OSError):
            return False


class Beat(_CeleryChild):
    """Celery beat; ready when it has written its schedule."""

    name = "beat"

    def __init__(self, settings: Settings, *, database_url: str, broker_url: str) -> None:
        self._schedule = settings.home.absolute() / "run" / "beat-schedule"
        command = beat_command(settings, self._schedule, quiet=True)
        # A beat sends one message; it has no use for the user's modules, and none for their errors.
        env = environment(settings, database_url, broker_url, LOG_LEVEL=_routine(settings), IMPORTS="")
        super().__init__(settings.home, command, env)
        self._tick_seconds = settings.tick_seconds
        self._started = 0.0

    def address(self) -> str:
        return f"tick every {self._tick_seconds:g} s"

    def start(self, *, wait: bool = True) -> None:
        self._started = time.time()
        super().start(wait=wait)

    def ready(self) -> bool:
        # The suffix depends on the dbm of this Python. Whether ticks arrive is `trellis doctor`'s question.
        files = self._schedule.parent.glob(f"{self._schedule.name}*")
        return any(file.stat().st_mtime >= self._started for file in files)


class Flower(_CeleryChild):
    """Flower; ready when it answers HTTP."""

    name = "flower"

    def __init__(self, settings: Settings, *, database_url: str, broker_url: str, port: int) -> None:
        env = environment(settings, database_url, broker_url)
        super().__init__(settings.home, [*flower_command(port), f"--logging={_routine(settings)}"], env)
        self._port = port

    def address(self) -> str:
        return f"http://{HOST}:{self._port}"

    def ready(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=1.0)
        try:
            connection.request("GET", "/healthcheck")
            return connection.getresponse().status < 500
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def _routine(settings: Settings) -> str:
    """A log level at which one tick a second and a page view are not news."""
    return "warning" if settings.log_level == "info" else settings.log_level


def _probe(broker_url: str) -> Celery:
    """A bare Celery application that asks once and does not insist."""
    probe = Celery("trellis-probe", broker=broker_url, set_as_current=False)
    probe.conf.broker_transport_options = PROBE_TRANSPORT
    return probe


def check_broker(url: str) -> None:
    """Raise CommunicationError unless the broker answers."""
    try:
        with _probe(url).connection_for_write() as connection:
            connection.connect()
    except (KombuError, RedisError, OSError) as error:
        raise CommunicationError(f"cannot reach the broker: {error}") from error


def port_is_free(port: int, address: str = HOST) -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Some free port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
