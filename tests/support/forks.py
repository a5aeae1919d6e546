"""Programs of Trellis that are forked from one process which has done the imports (zygote.py): the client's side.

The law: what is started here is a process like any other; it ends at the latest with whoever started it.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile

Ended = subprocess.CompletedProcess[str]


class Zygote:
    """Starts programs quickly."""

    def __init__(self, env: dict[str, str] | None = None) -> None:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        self._lock = threading.Lock()
        program = [sys.executable, str(Path(__file__).with_name("zygote.py")), str(its.fileno())]
        plain = {name: value for name, value in os.environ.items() if not name.startswith("TRELLIS_")}
        with its:
            self._process = subprocess.Popen(
                program, pass_fds=(its.fileno(),), env=plain if env is None else env, stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for whoever started it
            )  # fmt: skip

    def start(self, command: list[str], folder: Path, env: dict[str, str], *descriptors: int) -> int:
        """Start a program: `trellis`, `celery`, `python FILE` or `repl`; answers with its pid."""
        request = {"command": command, "folder": str(folder), "environment": env}
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(request).encode()], list(descriptors))
            return int(json.loads(self._socket.recv(1000)))

    def poll(self, pid: int) -> int | None:
        """The exit status of a program; None while it runs. Asked once after its end."""
        with self._lock:
            self._socket.send(json.dumps({"poll": pid}).encode())
            status = json.loads(self._socket.recv(1000))
        return None if status is None else int(status)

    def wait(self, pid: int, timeout: float = 600.0) -> int:
        """The exit status of a program, once it is over. Raises TimeoutExpired."""
        if (status := self.poll(pid)) is None:
            ending = os.pidfd_open(pid)  # readable when the process ends
            try:
                watch = select.poll()
                watch.register(ending, select.POLLIN)
                if not watch.poll(timeout * 1000):
                    raise subprocess.TimeoutExpired(str(pid), timeout)
            finally:
                os.close(ending)
            status = self.poll(pid)
        assert status is not None
        return status

    def close(self) -> None:
        """End it, and what it has started."""
        self._socket.close()
        self._process.wait(10)


@cache
def zygote() -> Zygote:
    """The one of this process."""
    made = Zygote()
    atexit.register(made.close)
    return made


class Forked:
    """A program that was started by a zygote, as subprocess.Popen shows one."""

    def __init__(
        self, command: list[str], env: dict[str, str], log: Path, maker: Zygote | None = None
    ) -> None:
        self._maker = maker or zygote()
        with log.open("ab") as out, open(os.devnull, "rb") as nothing:
            self.pid = self._maker.start(
                command, log.parent, env, nothing.fileno(), out.fileno(), out.fileno()
            )
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        if self.returncode is None:
            self.returncode = self._maker.poll(self.pid)
        return self.returncode

    def wait(self, timeout: float = 600.0) -> int:
        """The exit status, once it is over. Raises TimeoutExpired."""
        if self.poll() is None:
            self.returncode = self._maker.wait(self.pid, timeout)
        assert self.returncode is not None
        return self.returncode

    def terminate(self) -> None:
        """Send SIGTERM to it, without its children."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


def ran(command: list[str], folder: Path, env: dict[str, str], timeout: float = 120.0) -> Ended:
    """Run a program to its end, as subprocess.run does. Raises TimeoutExpired."""
    with TemporaryFile() as out, TemporaryFile() as err, open(os.devnull, "rb") as nothing:
        pid = zygote().start(command, folder, env, nothing.fileno(), out.fileno(), err.fileno())
        try:
            status = zygote().wait(pid, timeout)
        except subprocess.TimeoutExpired:
            os.killpg(pid, signal.SIGKILL)
            raise
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(command, status, *texts)
