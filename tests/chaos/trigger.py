"""When a fault happens: a worker's process asks at each point whether it is its turn.

The law: without an armed case a passage costs one `stat`. Passages of an armed point are counted over all processes
by a file to which each appends one byte; whoever makes the n-th commits the fault, and nobody does it again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ARMED = "armed.json"


class Arm(NamedTuple):
    """What is to happen, and when."""

    case: str
    point: str
    passage: int  # the fault happens at the n-th passage of the point
    fault: str
    variant: int  # a number from which a fault draws its details


class _Seen:
    """The armed cases, as this process read them last."""

    stamp = 0
    arms: tuple[Arm, ...] = ()


_faults: dict[str, Callable[[Arm], None]] = {}


def learn(faults: dict[str, Callable[[Arm], None]]) -> None:
    """Say what each fault does in the process in which it happens."""
    _faults.update(faults)


def folder() -> Path:
    """Where harness and workers meet."""
    return Path(os.environ["CHAOS_FOLDER"])


def passed(point: str) -> None:
    """A worker's process passes a point."""
    for arm in _armed():
        if arm.point == point and not (folder() / f"fired-{arm.case}").exists():
            _pass(arm)


def _pass(arm: Arm) -> None:
    descriptor = os.open(folder() / f"passages-{arm.case}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, b".")
        # Where our byte ended: nobody else has the same number.
        passage = os.lseek(descriptor, 0, os.SEEK_CUR)
    finally:
        os.close(descriptor)
    if passage == arm.passage:
        fired = {"pid": os.getpid(), "group": os.getpgrp(), "worker": os.environ.get("CHAOS_WORKER", "")}
        publish(folder() / f"fired-{arm.case}", json.dumps(fired))
        _faults[arm.fault](arm)


def _armed() -> tuple[Arm, ...]:
    try:
        stamp = (folder() / ARMED).stat().st_mtime_ns
    except (KeyError, FileNotFoundError):
        return ()
    if stamp != _Seen.stamp:
        try:
            _Seen.arms = tuple(Arm(*arm) for arm in json.loads((folder() / ARMED).read_text()))
        except FileNotFoundError:
            return ()
        _Seen.stamp = stamp
    return _Seen.arms


def publish(path: Path, text: str) -> None:
    """Write a file that is whole from the moment it is there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def await_file(path: Path, seconds: float = 30.0) -> None:
    """Wait until the harness has written a file."""
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
