"""How long actions take: what bundling and run-ahead decide by.

The law: an action counts as short only once it was measured. A mean is a smoothed figure of this process,
merged now and then with that of all the others; it steers speed alone, never correctness.
"""

from __future__ import annotations

import threading
import time

import psycopg

from ..tasks.errors import CommunicationError
from .journal import Journal
from .ranks import SHORT_SECONDS

_SHARE_EVERY = 2.0  # seconds between writes of what this process measured
_READ_EVERY = 10.0  # seconds for which the others' measurements are believed
_SMOOTHING = 0.05  # weight of the newest measurement
_SHORT_MS = SHORT_SECONDS * 1000.0  # a mean up to this counts as short


class Durations:
    """Mean milliseconds by action."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        self._mean: dict[str, float] = {}
        self._own: set[str] = set()  # measured here: what others say no longer counts
        self._new: dict[str, tuple[int, float]] = {}
        self._shared_at = time.monotonic()
        self._read_at = -_READ_EVERY

    def measured(self, action: str, seconds: float) -> None:
        """Take note of one run of a body."""
        ms = seconds * 1000.0
        with self._lock:
            old = self._mean.get(action)
            self._mean[action] = ms if old is None else old + _SMOOTHING * (ms - old)
            self._own.add(action)
            runs, mean = self._new.get(action, (0, 0.0))
            self._new[action] = (runs + 1, mean + (ms - mean) / (runs + 1))

    def mean_ms(self, action: str) -> float | None:
        """The mean of an action; None where nobody has measured it."""
        with self._lock:
            return self._mean.get(action)

    def short(self) -> dict[str, float]:
        """The actions that a worker may run at once when it frees a step of them, with their milliseconds."""
        with self._lock:
            return {action: mean for action, mean in self._mean.items() if mean <= _SHORT_MS}

    def refresh(self) -> None:
        """Read the others' means, if ours are old. For processes that publish without running bodies."""
        now = time.monotonic()
        if now - self._read_at < _READ_EVERY:
            return
        self._read_at = now
        shared = self._journal.durations()
        with self._lock:
            for action, mean in shared.items():
                if action not in self._own:
                    self._mean[action] = mean

    def share(self) -> None:
        """Write what is new, if the last time is long ago. Losing it costs nothing but speed."""
        now = time.monotonic()
        if now - self._shared_at < _SHARE_EVERY or not self._new:
            return
        with self._lock:
            new, self._new = self._new, {}
            self._shared_at = now
        try:
            self._journal.learn(new)
        except (CommunicationError, psycopg.Error):
            return


def bundle_size(mean_ms: float | None, budget_ms: float, limit: int) -> int:
    """How many steps of an action one message may carry: pure. Unknown or slow actions travel alone."""
    if mean_ms is None or budget_ms <= 0 or mean_ms > budget_ms / 2:
        return 1
    return max(1, min(limit, int(budget_ms / max(mean_ms, 1e-6))))
