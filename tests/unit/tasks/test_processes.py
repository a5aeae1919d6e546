"""Processes: identity, launch, end, locks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trellis.tasks import processes
from trellis.tasks.errors import ConfigurationError, StateError
from trellis.tasks.processes import Record

WAIT_FOR_EVER = [sys.executable, "-c", "import threading; threading.Event().wait()"]


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for a condition, with a deadline."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        pause.wait(0.02)


def test_a_child_writes_its_log_and_its_end_is_known(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = processes.spawn([sys.executable, "-c", "print('here I am'); raise SystemExit(3)"], log=log)
    assert child.wait(20) == 3
    assert log.read_text() == "here I am\n"
    assert processes.how_it_ended(3) == "exit status 3"


def test_a_child_has_a_session_of_its_own(tmp_path: Path) -> None:
    child = processes.spawn(WAIT_FOR_EVER, log=tmp_path / "log")
    try:
        assert os.getsid(child.pid) == child.pid
    finally:
        status = processes.end(child, ((signal.SIGTERM, 10.0),))
    assert processes.how_it_ended(status) == "killed by SIGTERM"


def test_a_child_that_ignores_the_signals_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    stubborn = "import signal, threading; signal.signal(15, signal.SIG_IGN); print(1, flush=True); "
    child = processes.spawn([sys.executable, "-c", f"{stubborn} threading.Event().wait()"], log=log)
    until(lambda: log.read_text() == "1\n")
    assert processes.end(child, ((signal.SIGTERM, 0.1),)) == -signal.SIGKILL


def test_a_child_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    children: list[subprocess.Popen[bytes]] = []
    log = tmp_path / "log"
    command = [sys.executable, "-c", "print(1, flush=True); import threading; threading.Event().wait()"]
    thread = threading.Thread(target=lambda: children.append(processes.spawn(command, log=log)))
    thread.start()
    thread.join()
    child = children[0]
    try:
        until(lambda: log.read_text() == "1\n")  # long after the thread has ended
        assert child.poll() is None
    finally:
        processes.end(child, ((signal.SIGKILL, 10.0),))


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is of Linux")
def test_a_child_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import pathlib, sys, threading
        from trellis.tasks import processes
        child = processes.spawn({WAIT_FOR_EVER!r}, log=pathlib.Path({str(tmp_path / "log")!r}))
        print(child.pid, flush=True)
        threading.Event().wait()
        """
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        # The launcher sets the death signal before it becomes the program.
        until(lambda: "launch.py" not in processes.command_line(pid))
        parent.kill()
    until(lambda: processes.birth(pid) is None)


def test_a_record_knows_its_process_and_no_other(tmp_path: Path) -> None:
    child = processes.spawn(WAIT_FOR_EVER, log=tmp_path / "log")
    record = Record.of(child.pid, "threading")
    assert record is not None
    path = tmp_path / "record.json"
    record.write(path)
    assert Record.read(path) == record
    assert path.stat().st_mode & 0o777 == 0o600
    until(record.alive)  # a process has no command line for the moment in which it becomes its program
    assert not replace(record, born="long ago").alive()
    assert not replace(record, mark="postgres").alive()
    processes.end(child, ((signal.SIGKILL, 10.0),))
    assert not record.alive()


def test_a_process_that_is_not_ours_gets_no_signal(tmp_path: Path) -> None:
    stranger = processes.spawn(WAIT_FOR_EVER, log=tmp_path / "log")
    try:
        record = Record.of(stranger.pid, "threading")
        assert record is not None
        reused = replace(record, born="another time")
        assert reused.end(((signal.SIGKILL, 0.0),))  # the process of the record is gone
        assert stranger.poll() is None
    finally:
        processes.end(stranger, ((signal.SIGKILL, 10.0),))


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"pid": 1}', "no json"])
def test_a_damaged_record_is_no_record(tmp_path: Path, text: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    assert Record.read(path) is None


def test_a_private_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    processes.write_private(path, "one")
    before = path.stat().st_ino
    processes.write_private(path, "two")
    assert path.read_text() == "two"
    assert path.stat().st_ino != before
    assert list(tmp_path.iterdir()) == [path]


def test_only_one_holds_a_lock_and_the_other_is_told_who(tmp_path: Path) -> None:
    lock = tmp_path / "run" / "lock"
    lock.parent.mkdir()
    assert not processes.is_held(lock)
    with processes.only_one(lock, "a stack"):
        assert processes.is_held(lock)
        with (
            pytest.raises(StateError, match=rf"a stack runs here already \(pid {os.getpid()}"),
            processes.only_one(lock, "a stack"),
        ):
            pass
    assert not processes.is_held(lock)
    with processes.only_one(lock, "a stack"):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(json.dumps(1))
    with pytest.raises(ConfigurationError, match=r"file/sub cannot be made: .*--home"):
        processes.make_folder(tmp_path / "file" / "sub")


def test_an_error_carries_the_end_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    error = processes.failed("postgres", log, "did not start")
    assert error.service == "postgres"
    assert "line 99" in str(error)
    assert "line 10\n" not in str(error)
    assert "is empty" in str(processes.failed("postgres", tmp_path / "none.log", "did not start"))
