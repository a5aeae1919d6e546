"""What happened in the outside world: a file to which each body appends a line by one write.

The law: a line is whole or not there, the kernel orders lines, and no death of a process takes one back. The times are
those of the machine's own clock, read past every clock that the suite sets wrong.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import NamedTuple

FILE = "ledger.jsonl"


class Line(NamedTuple):
    """One thing that a body did."""

    at: float  # seconds since the epoch, of the machine's clock
    kind: str  # begin, effect, end, told, full
    run: str
    step: str
    attempt: int
    key: str  # the idempotency key
    pid: int


def now() -> float:
    """The machine's clock."""
    return time.clock_gettime(time.CLOCK_REALTIME)


def write(folder: str | Path, kind: str, run: str, step: str, attempt: int, key: str) -> None:
    """Append a line."""
    line = json.dumps([now(), kind, run, step, attempt, key, os.getpid()]) + "\n"
    descriptor = os.open(Path(folder) / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read(folder: str | Path) -> list[Line]:
    """All lines, in the order in which they were written."""
    path = Path(folder) / FILE
    if not path.exists():
        return []
    return [Line(*json.loads(line)) for line in path.read_text().splitlines()]
