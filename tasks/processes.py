"""The processes that this one starts: their launch, their identity, their end.

The law: no signal is ever sent to a process that we cannot prove to be ours. A pid alone proves
nothing, since the kernel gives it away again; a pid with its time of birth and its command does, and
that is what a record on disk holds. A live child of this process is proof by itself.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from .errors import ConfigurationError, StackError, StateError

LAUNCHER = Path(__file__).with_name("launch.py")
POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Account:
    """The system account of a child that may not run as root; `capability` as in launch.py."""

    uid: int
    gid: int
    capability: int | None = None


def spawn(
    command: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    account: Account | None = None,
    death_signal: signal.Signals = signal.SIGTERM,
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, output to the end of `log`; it dies with this process."""
    order = {
        "uid": account.uid if account else None,
        "gid": account.gid if account else None,
        "capability": account.capability if account else None,
        "death_signal": int(death_signal),
        "parent": os.getpid(),
    }
    launch = [sys.executable, "-I", "-S", str(LAUNCHER), json.dumps(order), *command]
    return _spawner().submit(_popen, launch, log, dict(env) if env is not None else None).result()


def _popen(launch: list[str], log: Path, env: dict[str, str] | None) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603 - our own launcher and programs
            launch,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,  # Ctrl-C in the terminal reaches us only, and we stop them in order
        )


@cache
def _spawner() -> ThreadPoolExecutor:
    """One thread starts all children and lives as long as the process.

    The kernel sends the death signal when the *thread* that forked ends, so a server restarted from
    some short-lived thread would be stopped with it.
    """
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="trellis-spawn")


# --- identity


def birth(pid: int) -> str | None:
    """When a process was born, as text that no other process of that pid has; None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _ps(pid, "lstart=")
    except ProcessLookupError:
        return None
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def command_line(pid: int) -> str:
    """The command of a process, empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return "" if Path("/proc/self/stat").exists() else _ps(pid, "command=") or ""


def _ps(pid: int, column: str) -> str | None:
    """Systems without /proc."""
    shown = subprocess.run(  # noqa: S603
        ["/bin/ps", "-p", str(pid), "-o", column], capture_output=True, text=True, check=False
    )
    return shown.stdout.strip() or None


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept on disk about a child, so that a later process can tell whether it is still there."""

    pid: int
    born: str
    mark: str  # a word of its command

    @classmethod
    def of(cls, pid: int, mark: str) -> Record | None:
        born = birth(pid)
        return None if born is None else cls(pid, born, mark)

    @classmethod
    def read(cls, path: Path) -> Record | None:
        try:
            return cls(**json.loads(path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def write(self, path: Path) -> None:
        write_private(path, json.dumps(asdict(self)))

    def alive(self) -> bool:
        """Whether this very process still runs."""
        return birth(self.pid) == self.born and self.mark in command_line(self.pid)

    def end(self, steps: Sequence[tuple[signal.Signals, float]]) -> bool:
        """Stop a process that another left: each signal, then its seconds to go. True when it is gone."""
        for number, seconds in steps:
            if not self.alive():
                return True
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)
            deadline = time.monotonic() + seconds
            while self.alive() and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)  # not our child, so there is nothing to wait on
        return not self.alive()


# --- the end of a child


def end(child: subprocess.Popen[bytes], steps: Sequence[tuple[signal.Signals, float]]) -> int:
    """Stop a child: each signal, then its seconds to go; SIGKILL at last. Returns its exit status."""
    for number, seconds in steps:
        if child.poll() is not None:
            break
        child.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
    if child.poll() is None:
        child.kill()
    return child.wait()


def how_it_ended(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


# --- files


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step; only its owner may read it, since addresses hold passwords."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)


@contextmanager
def only_one(path: Path, what: str) -> Iterator[None]:
    """Hold a lock that the kernel drops when this process ends in any way.

    Raises StateError that names the holder's pid.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            pid = file.read().strip() or "unknown"
            raise StateError(
                f"{what} runs here already (pid {pid}, folder {path.parent.parent}): "
                f"stop it with `kill {pid}`, or choose another folder with --home"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def is_held(path: Path) -> bool:
    """Whether a living process holds this lock."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def make_folder(path: Path, mode: int = 0o755) -> Path:
    """Make a folder and those above it. Raises ConfigurationError with the reason."""
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"the folder {path} cannot be made: {error.strerror}; choose another --home"
        ) from error
    return path


def tail(log: Path, lines: int = 12) -> str:
    """The last lines of a log, for a message."""
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def failed(name: str, log: Path, what: str) -> StackError:
    """The error of a child that does not do what it should, with the end of its log."""
    said = tail(log)
    return StackError(name, what, f"its log {log} ends:\n{said}" if said else f"its log {log} is empty")
