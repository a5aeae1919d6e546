"""What each fault does, in the process in which it happens; what only the harness can do is asked of it by a file.

The law: a fault is the real thing (a signal, a terminated backend, a flushed server), except three that no test may do
to its machine: a clock set wrong, a full disk, and a commit whose answer is lost (`points`).
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psycopg
import redis

from trellis.tasks.settings import current
from trellis.workflows.engine import engine
from trellis.workflows.records import Ready

from .disk import FLAG
from .trigger import Arm, await_file, folder

HOUR = 3600.0
ELSEWHERE = "elsewhere"  # the queue of an application that knows nothing of Trellis


def kill_child(arm: Arm) -> None:
    """SIGKILL of this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_worker(arm: Arm) -> None:
    """SIGKILL of the worker with all its children."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


def kill_beat(arm: Arm) -> None:
    """SIGKILL of beat."""
    with suppress(ProcessLookupError):
        os.killpg(int((folder() / "beat.pid").read_text()), signal.SIGKILL)


def stop(arm: Arm) -> None:
    """SIGSTOP of this process, or of its whole worker; the harness sends SIGCONT long after the lease."""
    os.kill(0 if arm.variant % 2 else os.getpid(), signal.SIGSTOP)


def server(arm: Arm) -> None:
    """Wait until the harness has taken a server down, or until it is back: the next statement finds it so."""
    await_file(folder() / f"{'down' if arm.variant % 2 else 'back'}-{arm.case}")


def surely(harm: Callable[[Arm], None]) -> Callable[[Arm], None]:
    """Do it again until the server is there: a fault of another case may have taken it down."""

    def again(arm: Arm) -> None:
        deadline = time.monotonic() + 20.0
        while True:
            try:
                return harm(arm)
            except (psycopg.OperationalError, redis.ConnectionError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    return again


@surely
def terminate(arm: Arm) -> None:
    """End every backend of the engine in this database, this process' own among them."""
    with psycopg.connect(current().need_database(), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'trellis' AND pid <> pg_backend_pid()"
        )


@surely
def flush(arm: Arm) -> None:
    """FLUSHALL."""
    with redis.Redis.from_url(current().need_broker()) as broker:
        broker.flushall()


@surely
def duplicate(arm: Arm) -> None:
    """Put every message into its queue once more: those that wait and those that somebody works on.

    Of hints in a worker's hands Redis knows nothing, so each step that waits or runs is announced again.
    """
    with psycopg.connect(current().need_database()) as connection:
        steps = connection.execute(
            "SELECT s.run_id, r.workflow, s.idx, s.name, s.action, s.queue, s.priority FROM step s "
            "JOIN run r ON r.id = s.run_id WHERE s.state IN ('ready', 'running')"
        ).fetchall()
    queues = (current().default_queue, ELSEWHERE)
    with redis.Redis.from_url(current().need_broker()) as broker:
        for key in (key for queue in queues for key in broker.keys(f"{queue}*")):
            if broker.type(key) == b"list":
                waiting = broker.lrange(key, 0, -1)
                if waiting:
                    broker.lpush(key, *waiting)
        for packed in broker.hvals("unacked"):
            message, _, queue = json.loads(packed)
            if queue in queues:
                priority = (message["properties"].get("priority") or 0) // 3 * 3
                broker.lpush(f"{queue}\x06\x16{priority}" if priority else queue, json.dumps(message))
    for run, workflow, *columns in steps:
        again = Ready(*columns, rank=None, expect=None, alone=False)
        engine().dispatcher.publish(str(run), workflow, [again])


def set_clock(path: str | Path, seconds: float) -> None:
    """Set the clock of the workers that read this file wrong by so much."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 8) as memory:
        struct.pack_into("d", memory, 0, seconds)


def clock(arm: Arm) -> None:
    """The clock of this worker jumps an hour, or that of every worker (beat's stays right)."""
    own = Path(os.environ["CHAOS_CLOCK"])
    for file in folder().glob("clock-*") if arm.variant % 2 else [own]:
        set_clock(file, HOUR if arm.fault == "clock ahead" else -HOUR)


def fill_disk(arm: Arm) -> None:
    """No artifact can be written until the harness makes room."""
    (folder() / FLAG).touch()


FAULTS: dict[str, Callable[[Arm], None]] = {
    "kill child": kill_child,
    "kill worker": kill_worker,
    "kill beat": kill_beat,
    "stop past the lease": stop,
    "postgres restart": server,
    "backends terminated": terminate,
    "redis flushall": flush,
    "redis restart": server,
    "duplicate delivery": duplicate,
    "clock ahead": clock,
    "clock behind": clock,
    "disk full": fill_disk,
}
