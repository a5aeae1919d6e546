"""`trellis up` as a person meets it: a real command in an empty folder."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from forks import ran

from trellis.tasks import embedded
from trellis.tasks.accounts import closed
from trellis.tasks.processes import birth

TRELLIS = Path(sys.executable).with_name("trellis")
CHILDREN = ("postgres", "redis", "worker", "beat")
READY = "Ctrl-C stops all"
FLOWS = """
from trellis.workflows import action

@action
def hello(name: str) -> str:
    return f"hello {name}"
"""


def environment(**more: str) -> dict[str, str]:
    """Ours without a developer's settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TRELLIS_")}
    return {**clean, **more}


class Up:
    """A running `trellis up`."""

    def __init__(self, folder: Path, *options: str, prefix: Sequence[str] = (), **env: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [*prefix, str(TRELLIS), "up", *options],
            cwd=folder,
            env=environment(**env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self._lines.append(line)
                self._news.notify_all()

    @property
    def text(self) -> str:
        return "".join(self._lines)

    def shows(self, pattern: str, seconds: float = 90.0) -> re.Match[str]:
        """Wait until the output has something."""
        with self._news:
            found = self._news.wait_for(
                lambda: re.search(pattern, self.text) or self.process.poll() is not None, timeout=seconds
            )
        match = re.search(pattern, self.text)
        assert match, f"{pattern!r} {'did not come' if found else 'came too late'} in:\n{self.text}"
        return match

    def pid(self, service: str) -> int:
        record = self.folder / ".trellis" / "run" / f"{service}.json"
        return int(json.loads(record.read_text())["pid"])

    def stack(self) -> dict[str, Any]:
        facts = json.loads((self.folder / ".trellis" / "stack.json").read_text())
        assert isinstance(facts, dict)
        return facts

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        status = self.process.wait(90)
        self._reader.join(10)
        return status


def trellis(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return ran(["trellis", *arguments], folder, environment(**env))


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        pause.wait(0.02)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A person's project."""
    (tmp_path / "flows.py").write_text(FLOWS)
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Up]]:
    """Starts stacks that end with the test."""
    started: list[Up] = []

    def start(*options: str, **keywords: Any) -> Up:
        up = Up(folder, *options, **keywords)
        started.append(up)
        return up

    yield start
    for up in started:
        if up.process.poll() is None:
            up.process.kill()
            up.process.wait()


def test_a_stack_starts_works_and_stops(folder: Path, start: Callable[..., Up]) -> None:
    up = start("--import", "flows")
    up.shows(READY)
    for service in (*CHILDREN, "flower"):
        assert re.search(rf"│ {service} +│ \S.* │ {up.pid(service)} +│", up.text)
    port = up.shows(r"http://127\.0\.0\.1:(\d+)").group(1)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthcheck", timeout=10) as answer:
        assert answer.status == 200

    stack = up.stack()
    assert stack["pid"] == up.process.pid
    assert (folder / ".trellis" / "stack.json").stat().st_mode & 0o777 == 0o600
    assert embedded.USER in stack["database_url"]
    assert stack["database_url"].split("@")[0].split(":")[-1] not in up.text, "the password is shown"

    # A second terminal needs no variables.
    until(lambda: trellis(folder, "doctor").returncode == 0)
    seen = trellis(folder, "doctor").stdout
    assert "flows.hello" in seen
    second = trellis(folder, "up")
    assert second.returncode == 1
    assert f"a stack runs here already (pid {up.process.pid}" in second.stderr

    with psycopg.connect(stack["database_url"], autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS x")
    pids = [up.pid(service) for service in (*CHILDREN, "flower")]
    assert up.stop(signal.SIGINT) == 0
    assert all(birth(pid) is None for pid in pids)
    assert not (folder / ".trellis" / "stack.json").exists()
    order = [
        up.text.index(f"{service} stopped") for service in ("worker", "beat", "flower", "redis", "postgres")
    ]
    assert order == sorted(order)

    again = start("--no-flower")
    again.shows(READY)
    assert again.stack()["database_url"] == stack["database_url"]
    with psycopg.connect(stack["database_url"]) as connection:
        assert connection.execute("SELECT x FROM kept").fetchone() == (42,)
    assert again.stop(signal.SIGTERM) == 0


def test_children_that_are_killed_come_back(folder: Path, start: Callable[..., Up]) -> None:
    up = start("--no-flower", "--concurrency", "1", "--import", "flows")
    up.shows(READY)
    before = {service: up.pid(service) for service in CHILDREN}
    for service in CHILDREN:
        os.kill(before[service], signal.SIGKILL)
    for service in CHILDREN:
        up.shows(rf"{service} died \(pid {before[service]}, killed by SIGKILL\)")
        up.shows(rf"{service} is back")
        assert up.pid(service) != before[service]
    until(lambda: trellis(folder, "doctor").returncode == 0)
    assert up.stop() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is of Linux")
def test_nothing_is_left_after_a_kill_of_the_parent(folder: Path, start: Callable[..., Up]) -> None:
    up = start("--no-flower")
    up.shows(READY)
    pids = [up.pid(service) for service in CHILDREN]
    up.process.kill()
    up.process.wait()
    until(lambda: all(birth(pid) is None for pid in pids))
    doctor = trellis(folder, "doctor")
    assert doctor.returncode == 1
    assert "of a stack that was killed" in doctor.stdout
    again = start("--no-flower")
    again.shows(READY)
    assert again.stack()["pid"] == again.process.pid
    assert again.stop() == 0


def test_a_stack_stopped_while_it_starts_leaves_nothing(folder: Path, start: Callable[..., Up]) -> None:
    up = start("--no-flower")
    until(lambda: (folder / ".trellis" / "run" / "postgres.json").exists())
    assert up.stop() == 0
    assert list((folder / ".trellis" / "run").glob("*.json")) == []


def test_a_module_that_breaks_the_worker_ends_the_start(folder: Path, start: Callable[..., Up]) -> None:
    (folder / "broken.py").write_text("raise RuntimeError('this module is broken')\n")
    up = start("--no-flower", "--import", "broken")
    assert up.process.wait(90) == 1
    up.shows(
        r"error: worker did not start \(exit status 1\)(.|\n)*broken.py:1: RuntimeError: this module is broken"
    )
    assert "Traceback" not in up.text
    assert list((folder / ".trellis" / "run").glob("*.json")) == []


def test_with_both_addresses_no_server_is_started(
    folder: Path, start: Callable[..., Up], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with embedded.servers(tmp_path_factory.mktemp("elsewhere")) as servers:
        urls = {"TRELLIS_DATABASE_URL": servers.database_url, "TRELLIS_BROKER_URL": servers.broker_url}
        up = start("--no-flower", "--pool", "threads", **urls)
        up.shows(READY)
        assert "TRELLIS_DATABASE_URL" in up.text
        records = {path.stem for path in (folder / ".trellis" / "run").glob("*.json")}
        assert records == {"worker", "beat"}
        assert up.stack()["broker_url"] == servers.broker_url
        assert up.stop() == 0
        assert servers.postgres.ready()
        assert servers.redis.ready()


def test_a_server_that_is_not_there_ends_the_start(folder: Path) -> None:
    nowhere = {
        "TRELLIS_DATABASE_URL": "postgresql://trellis:hidden@127.0.0.1:1/trellis",
        "TRELLIS_BROKER_URL": "redis://:hidden@127.0.0.1:1/0",
    }
    ended = trellis(folder, "up", **nowhere)
    assert ended.returncode == 1
    assert "cannot reach" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "hidden" not in ended.stderr + ended.stdout


def test_a_slip_in_a_module_name_is_answered(folder: Path) -> None:
    ended = trellis(folder, "up", "--import", "flow")
    assert ended.returncode == 2
    assert "did you mean 'flows'" in ended.stderr
    assert not (folder / ".trellis" / "stack.json").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become an ordinary user")
def test_an_ordinary_user_needs_no_root() -> None:
    user = pwd.getpwnam("nobody")
    for path in (TRELLIS, Path(sys.executable).resolve(), Path(embedded.__file__)):
        if closed(path, user.pw_uid, user.pw_gid):
            pytest.skip(f"{user.pw_name} may not reach {path}")
    # The temporary folder of tests belongs to root alone.
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        home.chmod(0o755)
        os.chown(home, user.pw_uid, user.pw_gid)
        up = Up(home, "--no-flower", prefix=("runuser", "-u", user.pw_name, "--"), HOME=name)
        try:
            up.shows(READY)
            assert all(os.stat(f"/proc/{up.pid(service)}").st_uid == user.pw_uid for service in CHILDREN)
            os.kill(int(up.stack()["pid"]), signal.SIGTERM)
            assert up.process.wait(90) == 0
        finally:
            up.process.kill()
            up.process.wait()
