"""What happened in the outside world: a file to which each body appends a line by one write.

The law: a line is whole or not there, the kernel orders lines, and no death of a process takes one back. The times are
those of the machine's own clock, read past every clock that the suite sets wrong.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

FILE = "ledger.jsonl"


class Line(NamedTuple):
    """One thing that a body did."""

    at: float  # seconds since the epoch, of the machine's clock
    kind: str  # begin, effect, end, out, full, odd
    run: str
    step: str
    attempt: int
    key: str  # the idempotency key
    pid: int
    group: int  # the worker, as a process group


def now() -> float:
    """The machine's clock."""
    return time.clock_gettime(time.CLOCK_REALTIME)


def write(folder: str | Path, kind: str, run: str, step: str, attempt: int, key: str) -> None:
    """Append a line."""
    line = json.dumps([now(), kind, run, step, attempt, key, os.getpid(), os.getpgrp()]) + "\n"
    descriptor = os.open(Path(folder) / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def size(folder: str | Path) -> int:
    """How long the ledger is now: what is written from here on is read from there."""
    path = Path(folder) / FILE
    return path.stat().st_size if path.exists() else 0


def read(folder: str | Path, start: int = 0) -> dict[str, list[Line]]:
    """The lines of each run, in the order in which they were written."""
    found: dict[str, list[Line]] = defaultdict(list)
    path = Path(folder) / FILE
    if path.exists():
        with path.open() as file:
            file.seek(start)
            for text in file:
                line = Line(*json.loads(text))
                found[line.run].append(line)
    return found
